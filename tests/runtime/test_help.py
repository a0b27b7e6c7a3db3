"""--help shows every flag of a command, under a subject, with its default."""

import contextlib
from collections.abc import Iterator
from importlib import import_module

import pytest
from absl import flags

from vitar_jax.runtime.help import help_text, subject, subjects

COMMANDS = ("attend", "compare", "evaluate", "infer", "plan.__main__", "quickstart", "serve.__main__", "train")


@contextlib.contextmanager
def deleted(names: set[str]) -> Iterator[set[str]]:
    """Deletes flags in the end."""
    try:
        yield names
    finally:
        for name in names:
            delattr(flags.FLAGS, name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command_has_a_subject(name: str) -> None:
    command = import_module(f"vitar_jax.{name}")
    known = set(flags.FLAGS)  # also those of libraries
    command.define_flags()
    with deleted(set(flags.FLAGS) - known) as defined:
        assert sorted(flag for names in subjects().values() for flag in names) == sorted(defined)


def test_entries() -> None:
    with subject("Colours"):
        flags.DEFINE_enum("kind", "", ["", "red", "blue"], "Colour to take (default: any).")
        flags.DEFINE_integer("many", 0, "Number of colours.")
        flags.DEFINE_list("names", ["a", "b"], "Names " + "of the colours " * 10 + "that count.")
        flags.DEFINE_bool("dark", False, "Whether it is dark.")
    flags.DEFINE_string("unlisted", "", "A flag of no command.")
    with deleted({"kind", "many", "names", "dark", "unlisted"}):
        lines = help_text("Paints.\n\nExamples:\n  paint\n").splitlines()
    assert lines[:8] == [
        "Paints.",
        "",
        "Examples:",
        "  paint",
        "",
        "Colours:",
        "  --kind               <red|blue>: Colour to take (default: any).",
        "  --many               Number of colours (default: 0).",
    ]
    assert lines[8].startswith("  --names              Names of") and lines[9].endswith("that count (default: a,b).")
    assert lines[9].startswith(23 * " ") and lines[10:] == ["  --[no]dark           Whether it is dark."]
