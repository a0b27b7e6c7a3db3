"""Protocols define the prompt of a sample, the tools that a turn may call, and the messages that answer a turn.

A protocol is data: a file `prompts/NAME.toml`, which names a parser. A config overrides any of its values, or names another
protocol by `path/to/file.toml`, `path/to/file.py:name` or `package.module:name`.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Formatter

from vitar_jax.episodes.actions import Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.parsers import PARSERS
from vitar_jax.episodes.regions import Frame
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.tools import TOOLS, Tool
from vitar_jax.episodes.trace_parser import SEG
from vitar_jax.errors import ConfigError
from vitar_jax.processing.chat import Content, Message, ProtocolText
from vitar_jax.runtime.config import to_dataclass
from vitar_jax.runtime.registry import Registry, is_address

JSON_TURN = (
    "You are an assistant for medical images. Think, then act, and write one JSON object: "
    '{"thought": "...", "actions": [{"name": "...", "arguments": {...}}]}.'
)
IMAGE = "{image}"  # the place of the image in an observation


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol as data.

    Attributes:
      system: The system message. `{tools}` stands for the tools' JSON schemas, one per line, and `{json_turn}` for the
        introduction to ViTAR's JSON turns.
      tools: Tools that the model may call: registered names or addresses.
      max_turns: Maximum number of turns; the last one should answer.
      max_calls: Maximum number of tool calls per turn, which are played in order; one may name the image that an earlier one
        returned. With 1, actions after the first one are ignored. Among the formats, only "json" writes several.
      parser: Format of the turns: a registered name or an address.
      early_answer: Whether a turn before the last may answer. If not, an early answer is an error and the episode continues.
      too_long_ends: Whether a turn cut off by its budget ends the episode. If not, it is an error and the episode continues.
      question, options: Templates of the user's message without and with options. Each option is written as `option`, with
        `option_separator` between them.
      observation: Message that accompanies a tool's image. `{image}` is the place of the image; without it, the image comes
        first.
      error: Message that reports an error.
      frame: Frame in which the model writes boxes.
      allowed_tokens: Added tokens of the tokenizer, by spelling, that the system message, the question's template and turns may
        contain, for example `<tool_call>`. Elsewhere, and without an entry here, such a spelling is plain text and the token
        is banned.

    Raises:
      ConfigError: If the parser or a tool is unknown, max_turns or max_calls is below 1, a template has an unknown field, or
        the observation has two places for the image.
    """

    name: str
    system: str
    tools: tuple[str, ...] = ()
    max_turns: int = 1
    max_calls: int = 1
    parser: str = "json"
    early_answer: bool = True
    too_long_ends: bool = False
    question: str = "{question}"
    options: str = "{question}\nOptions:\n{options}"
    option: str = "{letter} {text}"
    option_separator: str = "\n"
    observation: str = "This is the region you asked for. Look again, then answer."
    error: str = "Error: {message}"
    frame: Frame = "model_input"
    allowed_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            PARSERS.find(self.parser)
            if wrong := [tool for tool in self.tools if not isinstance(TOOLS.find(tool), Tool)]:
                raise ConfigError(f"tools: {wrong[0]!r} is not a Tool")
        except ConfigError as error:
            raise ConfigError(f"protocol {self.name}: {error}") from error
        if self.max_turns < 1:
            raise ConfigError(f"protocol {self.name}: max_turns: got {self.max_turns}, expected at least 1")
        if self.max_calls < 1:
            raise ConfigError(f"protocol {self.name}: max_calls: got {self.max_calls}, expected at least 1")
        if self.observation.count(IMAGE) > 1:
            raise ConfigError(f"protocol {self.name}: observation: got {IMAGE} more than once, expected it at most once")
        for template, fields in _FIELDS.items():
            try:
                getattr(self, template).format(**dict.fromkeys(fields, ""))
            except (KeyError, IndexError, ValueError) as error:
                raise ConfigError(
                    f"protocol {self.name}: {template}: got {error!r}, expected only the fields {', '.join(fields)}"
                ) from error

    @property
    def most_images(self) -> int:
        """Maximum number of images that tools can return in an episode: those of every turn but the last."""
        return (self.max_turns - 1) * self.max_calls

    @property
    def makes_masks(self) -> bool:
        """Whether the states at a turn's `[SEG]` tokens become masks on image 0."""
        return SEG in self.allowed_tokens

    def system_text(self) -> str:
        """Returns the text of the system message."""
        system = self.system.replace("{json_turn}", JSON_TURN)
        return system.replace("{tools}", "\n".join(json.dumps(tool.schema()) for tool in self.toolbox.values()))

    def opening(self, sample: Sample, images: Sequence[int]) -> list[Message]:
        """Returns the messages before the first turn: the system message, unless it is empty, and the question.

        Args:
          images: Number of tokens of each image of the sample.
        """
        system = self.system_text()
        said: list[Message] = [("system", [ProtocolText(system, self.allowed_tokens)])] if system else []
        return [*said, self.question_message(sample, images)]

    def question_message(self, sample: Sample, images: Sequence[int] = ()) -> Message:
        """Returns the user's message with a sample's question. Added tokens come of the protocol's own text alone."""
        template = self.options if sample.options else self.question
        options = self.option_separator.join(self.option.format(letter=letter, text=text) for letter, text in sample.options)
        values = {"question": sample.question.strip(), "options": options}
        contents: list[Content] = [*images]
        for literal, field, form, conversion in Formatter().parse(template):
            contents.append(ProtocolText(literal, self.allowed_tokens))
            if field is not None:
                named = f"{{{field}{conversion and f'!{conversion}' or ''}:{form}}}"
                contents.append(named.format(**values))
        return "user", contents

    def observation_message(self, said: str, images: Sequence[int]) -> Message:
        """Returns the user message with a tool's observation.

        Args:
          said: Text that the tool returned.
          images: Number of tokens of each image that the tool returned.
        """
        before, _, after = self.observation.rpartition(IMAGE) if images else ("", "", "")
        return "user", [before, *images, "\n".join(part for part in (after, said) if part)]

    def read(self, text: str) -> ParsedTurn:
        """Parses a turn. Never raises."""
        return PARSERS.find(self.parser).read(text)

    def write(self, thought: str, outcome: Answer | ToolCall) -> str:
        """Writes a turn that `read` reads as this outcome.

        Raises:
          ConfigError: If the parser has no writer.
          DataError: If the format cannot express the outcome.
        """
        write = PARSERS.find(self.parser).write
        if write is None:
            raise ConfigError(f"protocol {self.name}: parser {self.parser!r} has no writer, which demonstrations need")
        return write(thought, outcome)

    @property
    def toolbox(self) -> dict[str, Tool]:
        """The protocol's tools, by the names that the model uses."""
        return {tool.name: tool for tool in map(TOOLS.find, self.tools)}


_FIELDS = {
    "question": ("question", "options"),
    "options": ("question", "options"),
    "option": ("letter", "text"),
    "error": ("message",),
}


def find_protocol(name: str, protocols: Mapping[str, Protocol]) -> Protocol:
    """Returns a protocol: one of `protocols`, the one in a TOML file, or the one at an address (see `Registry`).

    Args:
      name: A key of `protocols`, `path/to/file.toml`, or an address.

    Raises:
      ConfigError: If no protocol has this name, or its file cannot be read.
    """
    if name in protocols:
        return protocols[name]
    if name.endswith(".toml"):
        try:
            return _from_toml(name, Path(name).read_text())
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read ({error})") from error
    if is_address(name):
        found = PROTOCOLS.find(name)
        if not isinstance(found, Protocol):
            raise ConfigError(f"protocol {name!r}: got {type(found).__name__}, expected a Protocol")
        return dataclasses.replace(found, name=name)
    raise ConfigError(f"{PROTOCOLS.unknown(name, protocols)}, path/to/file.toml")


def _from_toml(name: str, text: str) -> Protocol:
    try:
        return to_dataclass(Protocol, {"name": name} | tomllib.loads(text), name)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from error


PROTOCOLS: Registry[Protocol] = Registry("protocol")
for _file in sorted((files("vitar_jax.episodes") / "prompts").iterdir(), key=str):
    _name = _file.name.removesuffix(".toml")
    PROTOCOLS[_name] = _from_toml(_name, _file.read_text())
