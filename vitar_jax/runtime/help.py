"""The help of a command: its documentation, which has examples, and its flags by subject."""

import contextlib
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from absl import flags

_WIDTH = 120


@contextlib.contextmanager
def subject(title: str) -> Iterator[None]:
    """Lists the flags that are defined within under a title."""
    before = set(flags.FLAGS)
    yield
    for name in set(flags.FLAGS) - before:
        _flag(name).subject = title


def subjects() -> dict[str, list[str]]:
    """Returns the names of the flags by subject, both in the order of definition. The command's other flags are "Flags"."""
    found: dict[str, list[str]] = {}
    others = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    for name in flags.FLAGS:
        if title := getattr(_flag(name), "subject", "Flags" if name in others else ""):
            found.setdefault(title, []).append(name)
    return found


def help_text(documentation: str) -> str:
    """Returns what --help prints."""
    parts = [documentation.strip()]
    for title, names in subjects().items():
        parts.append("\n".join((f"{title}:", *map(_entry, names))))
    return "\n\n".join(parts)


def _flag(name: str) -> Any:
    return flags.FLAGS[name]


def _entry(name: str) -> str:
    flag = _flag(name)
    head = f"  --[no]{name}" if flag.boolean else f"  --{name}"
    text = " ".join((flag.help or "").split()).replace("<|", "<", 1)  # absl writes the choices, of which "" may be one
    if "(default" not in text and flag.default not in (None, "", []) and not flag.boolean:
        default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        text = f"{text.rstrip('.')} (default: {default})."
    return textwrap.fill(text, _WIDTH, initial_indent=f"{head:<22} ", subsequent_indent=" " * 23)
