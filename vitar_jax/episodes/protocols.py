"""Protocols: how a sample becomes a prompt, what a turn may ask for, and what the model is told afterwards."""

import dataclasses
import json

from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, parse_turn
from vitar_jax.episodes.boxes import Frame
from vitar_jax.episodes.sample import Sample


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol as data.

    Attributes:
      system: the system message.
      tools: names of tools the model may call.
      max_turns: generations by the model; the last one should answer.
      json_turns: turns are ViTAR's JSON; else a turn's whole text is the answer.
      question, options: templates of the user's message; `options` is used for samples that have some, and
        `option_separator` stands between them.
      observation, error: what is said with a tool's image, and what is said when a turn was no good.
      frame: the pixel space the model writes boxes in.
    """

    name: str
    system: str
    tools: tuple[str, ...] = ()
    max_turns: int = 1
    json_turns: bool = True
    question: str = "{question}"
    options: str = "{question}\nOptions:\n{options}"
    option_separator: str = "\n"
    observation: str = "This is the region you asked for. Look again, then answer."
    error: str = "Error: {message}"
    frame: Frame = "model_input"

    def user_text(self, sample: Sample) -> str:
        """The text of the first user message."""
        template = self.options if sample.options else self.question
        options = self.option_separator.join(f"{letter} {text}" for letter, text in sample.options)
        return template.format(question=sample.question.strip(), options=options)

    def read(self, text: str) -> ParsedTurn:
        """What a turn asks for. Never raises."""
        if self.json_turns:
            return parse_turn(text)
        answer = text.strip()
        return ParsedTurn(None, None, Answer(answer) if answer else ActionError("bad_answer", "The answer is empty."))


_SYSTEM = (
    "You are an assistant for medical images. Think, then act, and write one JSON object: "
    '{"thought": "...", "actions": [{"name": "...", "arguments": {...}}]}. '
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="vitar",
            system=_SYSTEM + "First mark or zoom a box of the image; when you have looked again, Terminate with your answer.",
            tools=("mark", "zoom"),
            max_turns=2,
        ),
        Protocol(name="direct", system=_SYSTEM + "Terminate with your answer."),
        Protocol(name="plain", system="You are an assistant for medical images.", json_turns=False),
    )
}


def write_turn(thought: str, name: str, **arguments: object) -> str:
    """A turn in ViTAR's JSON, as experts write it."""
    return json.dumps({"thought": thought, "actions": [{"name": name, "arguments": arguments}]})
