"""Text that harms any page that does not escape it."""

HOSTILE = '</script><img src=x onerror="document.title=1"> <!-- <script> \u2028 \u202e \U0001fac1 ${1} {{ 1 }} "\'\\ \ud800 end'
SHOWN = HOSTILE.replace("\ud800", "\ufffd")  # a lone surrogate cannot be shown
