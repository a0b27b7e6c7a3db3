"""Text that refers to objects by tags, as VRT's traces do: `a nodule (<ver><obj1></ver>) beside the aorta (<ver><obj2></ver>)`.

`<objN>` is a mention of an object. `<ver>` encloses the mentions of the reasoning and `<vea>` those of the answer (Visual
Reasoning Tracer, arXiv:2512.05091). In a model's turn, the token `[SEG]` follows every mention; texts here are without it.
"""

import re
from collections.abc import Sequence

MENTION = re.compile(r"<(obj\d+)>")
_TAG = r"</?ve[ra]>|<obj\d+>"
_IN_BRACKETS = re.compile(rf"\s*\((?:{_TAG}|[\s,;]|\band\b)+\)")
_MARKUP = re.compile(rf"\s*(?:{_TAG})")


def mentions(text: str) -> list[str]:
    """Returns the names of the objects that a text mentions, in order, with repetitions."""
    return MENTION.findall(text)


def renumber(texts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Renames the objects to obj1, obj2, ... in the order of their first mention.

    Returns:
      The texts, and the new name of each mentioned object.
    """
    found = dict.fromkeys(name for text in texts for name in mentions(text))
    names = {old: f"obj{number}" for number, old in enumerate(found, start=1)}
    return [MENTION.sub(lambda match: f"<{names[match[1]]}>", text) for text in texts], names


def without_tags(text: str) -> str:
    """Returns a text as a reader would want it: without tags, and without brackets that contain only tags."""
    return _MARKUP.sub("", _IN_BRACKETS.sub("", text)).strip()
