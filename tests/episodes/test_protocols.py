"""Protocols as data: those built in, those of a user's file, and what is no protocol."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.kit.images import noise
from vitar_jax.episodes.actions import Answer, ToolCall
from vitar_jax.episodes.parsers import PARSERS, write_turn
from vitar_jax.episodes.protocols import PROTOCOLS, Protocol, find_protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.tools import TOOLS
from vitar_jax.errors import ConfigError
from vitar_jax.runtime.config import to_dataclass

OWN = """
from vitar_jax.episodes.actions import Answer, ParsedTurn
from vitar_jax.episodes.parsers import PARSERS, Parser
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.affine import Affine
from vitar_jax.episodes.tools import Observation, tool

def last_line(text):
    return ParsedTurn(None, None, Answer(text.splitlines()[-1]))

PARSERS["last_line"] = Parser(last_line)
unnamed = Parser(last_line)

@tool("mirror", "Turns left and right around.")
def mirror(context):
    return Observation(context.image.transpose(0), to_source=Affine(a=-1, c=context.image.width))

brief = Protocol("brief", system="Be brief.", parser="last_line", tools=("mirror",))
number = 7
"""


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a user's file registers is gone after the test."""
    with patch.dict(PARSERS), patch.dict(TOOLS):
        yield


def test_those_built_in() -> None:
    looks = {"vitar": ("mark",), "zoom": ("zoom",), "direct": (), "plain": (), "vitar_reference": ("mark_as_published",)}
    assert {name: protocol.tools for name, protocol in PROTOCOLS.items()} == looks | {
        "medeyes": ("Gaze",),
        "vrt": (),
        "outline": ("outline",),
        "viewer": ("zoom", "ct_window", "clahe", "invert", "rotate", "ruler"),
    }
    for name, protocol in PROTOCOLS.items():
        turns = 5 if name in ("medeyes", "viewer") else 2 if protocol.tools else 1
        assert protocol.name == name and protocol.max_turns == turns
        assert protocol.frame == ("original" if name == "vitar_reference" else "model_input")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_data(name: str) -> None:
    stored = json.loads(json.dumps(dataclasses.asdict(PROTOCOLS[name])))
    assert to_dataclass(Protocol, stored) == PROTOCOLS[name]


def test_a_system_message_tells_of_the_tools() -> None:
    protocol = Protocol("mine", "Use {tools}!", tools=("mark", "window"))
    first, second = protocol.system_text().removeprefix("Use ").removesuffix("!").split("\n")
    assert [json.loads(first), json.loads(second)] == [TOOLS["mark"].schema(), TOOLS["window"].schema()]
    assert '{"thought": "...", "actions"' in PROTOCOLS["vitar"].system_text()  # other braces are text


def test_a_question_is_put_as_the_templates_say() -> None:
    def text(protocol: Protocol, sample: Sample) -> str:
        role, contents = protocol.question_message(sample)
        assert role == "user"
        return "".join(part if isinstance(part, str) else part.text for part in contents)

    sample = Sample("s", " Which {one}? ", (noise(9, 9),), "A", options=(("A", "flat"), ("B", "{x}")))
    assert text(PROTOCOLS["vitar_reference"], sample) == "Which {one}?\nOptions:\nA flat\nB {x}"
    changed = Protocol("mine", "", options="{options} <- {question}", option="({letter}) {text}", option_separator="; ")
    assert text(changed, sample) == "(A) flat; (B) {x} <- Which {one}?"
    assert text(changed, dataclasses.replace(sample, options=())) == "Which {one}?"
    shouted = dataclasses.replace(changed, options="{{x}}{question!r:>20}")
    assert text(shouted, sample) == "{x}" + repr("Which {one}?").rjust(20)


@pytest.mark.parametrize(
    "observation, said, images, contents",
    [
        ("See.", "", [9], [9, "See."]),
        ("See.", "7 mm", [9, 4], [9, 4, "See.\n7 mm"]),
        ("See.", "7 mm", [], ["7 mm"]),
        ("{x} {}", "", [9], [9, "{x} {}"]),  # other braces are text
        ("<{image}>", "", [9], ["<", 9, ">"]),
        ("<{image}>", "7 mm", [9], ["<", 9, ">\n7 mm"]),
        ("<{image}>", "{image}", [9], ["<", 9, ">\n{image}"]),
        ("<{image}>", "7 mm", [], ["7 mm"]),
        ("See: {image}", "", [9, 4], ["See: ", 9, 4]),
        ("", "", [9], [9]),
    ],
)
def test_an_observation_has_its_image_where_the_protocol_says(
    observation: str, said: str, images: list[int], contents: list[int | str]
) -> None:
    role, made = Protocol("mine", "", observation=observation).observation_message(said, images)
    assert role == "user" and [part for part in made if part != ""] == contents


# Files of a user's


def test_a_protocol_of_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "look.toml"
    path.write_text('system = "Look."\ntools = ["zoom"]\nmax_turns = 4\n')
    found = find_protocol(str(path), PROTOCOLS)
    assert found == Protocol(str(path), "Look.", tools=("zoom",), max_turns=4)
    assert isinstance(found.read(write_turn("spot", "zoom", box=[[1, 2, 3, 4]])).outcome, ToolCall)


def test_a_protocol_of_a_python_file_with_its_parser_and_tool(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    found = find_protocol(f"{path}:brief", PROTOCOLS)
    assert (found.name, found.system) == (f"{path}:brief", "Be brief.")
    assert found.read("I think\nB").outcome == Answer("B")
    assert '"mirror"' in dataclasses.replace(found, system="{tools}").system_text()
    # A protocol elsewhere names them by their file.
    other = Protocol("other", "{tools}", tools=(f"{path}:mirror",), parser=f"{path}:unnamed")
    assert other.read("I think\nB").outcome == Answer("B") and list(other.toolbox) == ["mirror"]
    with pytest.raises(ConfigError, match="no writer"):
        other.write("", Answer("B"))


@pytest.mark.parametrize(
    "name, content, parts",
    [
        ("vitra", "", ["'vitra'", "vitar"]),
        ("FILE.toml", None, ["FILE.toml"]),
        ("FILE.toml", "system = ", ["FILE.toml", "Invalid value"]),
        ("FILE.toml", "tools = []", ["FILE.toml.system", "must be set"]),
        ("FILE.toml", 'system = ""\nsytem = ""', ["FILE.toml.sytem", "no such key"]),
        ("FILE.toml", 'system = ""\nparser = "xml"', ["FILE.toml", "'xml'", "json"]),
        ("FILE.py:brief", None, ["FILE.py"]),
        ("FILE.py:brief", "1 / 0", ["FILE.py", "ZeroDivisionError"]),
        ("FILE.py:brief", "import = 1", ["FILE.py", "SyntaxError"]),
        ("FILE.py:number", OWN, ["FILE.py:number"]),
        ("FILE.py:nothing", OWN, ["FILE.py", "'nothing'"]),
        ("FILE.py:", OWN, ["FILE.py"]),
    ],
)
def test_what_is_no_protocol_is_named(name: str, content: str | None, parts: list[str], tmp_path: Path) -> None:
    name = name.replace("FILE", str(tmp_path / "FILE"))
    if content is not None:
        Path(name.partition(":")[0] if "FILE" in name else tmp_path / "none").write_text(content)
    with pytest.raises(ConfigError) as caught:
        find_protocol(name, PROTOCOLS)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"parser": "xml"}, "'xml'"),
        ({"tools": ("mark", "crop")}, "'crop'"),
        ({"max_turns": 0}, "max_turns"),
        ({"question": "{answer}"}, "question"),
        ({"options": "{letter}"}, "options"),
        ({"option": "{"}, "option"),
        ({"error": "{}"}, "error"),
        ({"observation": "{image} and {image}"}, "observation"),
    ],
)
def test_a_protocol_that_cannot_be_played_is_refused(changes: dict, part: str) -> None:
    with pytest.raises(ConfigError, match="protocol vitar: ") as caught:
        dataclasses.replace(PROTOCOLS["vitar"], **changes)
    assert part in str(caught.value)
