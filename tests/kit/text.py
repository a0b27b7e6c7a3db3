"""Text that would do harm where it is not shown as text."""

HOSTILE = '</script><img src=x onerror="document.title=1"> <!-- <script> \u2028 \u202e \U0001fac1 ${1} {{ 1 }} "\'\\ \ud800 end'
SHOWN = HOSTILE.replace("\ud800", "\ufffd")  # half a character cannot be shown
