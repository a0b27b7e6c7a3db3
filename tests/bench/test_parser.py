"""The parsers' bench tells of what a parser raises, and its strings reach every kind of outcome."""

from typing import get_args
from unittest.mock import patch

import pytest

from tests.kit.errors import Main
from vitar_jax.bench import __main__ as command_line
from vitar_jax.bench import parser
from vitar_jax.episodes.actions import ActionError, ErrorKind
from vitar_jax.episodes.parsers import PARSERS, Parser, parse_json


def test_no_parser_raises_and_the_command_says_so(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command_line, "parser", "--count=500", commands=command_line.COMMANDS) == 0
    shown = capsys.readouterr().out
    assert "no exceptions" in shown and all(f"{name}: 500 strings" in shown for name in PARSERS)


def test_what_a_parser_raises_is_counted_and_told() -> None:
    def fragile(text: str):
        if "NaN" in text:
            raise ZeroDivisionError
        return parse_json(text)

    said: list[str] = []
    with patch.dict(PARSERS, fragile=Parser(fragile)):
        raised = parser.run(500, 0, said.append)
    assert raised == sum("NaN" in text for text in parser.damaged(500, 0)) > 0
    assert "fragile raised on" in said[0] and "ZeroDivisionError" in said[0] and said[-1] == f"\n{raised} exceptions"


@pytest.mark.slow
def test_its_strings_reach_every_error_of_a_parser() -> None:
    outcomes = [known.read(text).outcome for text in parser.damaged(30_000, 1) for known in PARSERS.values()]
    kinds = {outcome.kind for outcome in outcomes if isinstance(outcome, ActionError)}
    # These are of the episode and its tools, and no turn calls a tool that takes a text.
    assert kinds == set(get_args(ErrorKind)) - {
        "too_early",
        "too_long",
        "unknown_tool",
        "box_outside",
        "box_too_small",
        "bad_shape",
        "no_mask",
        "no_values",
        "bad_text",
    }
    assert any(len(text) > 10_000 for text in parser.damaged(30_000, 1))
