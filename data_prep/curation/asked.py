"""Questions and thoughts that a language model behind an endpoint words. A second model checks the questions."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TypeVar

from data_prep.curation.candidates import Candidate, Draft, Rejected
from data_prep.curation.marked import marked
from data_prep.reading.replies import reply_object, reply_text
from vitar_jax.episodes.regions import to_frame
from vitar_jax.errors import EndpointError
from vitar_jax.runtime.endpoint import ChatClient, message

T = TypeVar("T")

SENT_PIXELS = 1024  # longer side of the images sent to the models
MOST_OPTIONS = 8

SYSTEM = "You help to make examination questions about medical images. Reply with one JSON object and nothing else."
SHOWN = "Its annotation says that the image shows {finding}, where it is outlined in red: {boxes} \
(left, upper, right, lower, as shares of the image's sides)."
NOT_SHOWN = "Its annotation says that the image does not show {finding}."
TOPICS = {
    "finding": "which finding is at the point ({x:.2f}, {y:.2f}), as shares of the image's width from the left and of its \
height from the top. Name the point in the question, and not the finding; the wrong options are other findings",
    "quadrant": "in which quadrant of the image {finding} is",
    "side": "in which half of the image, left or right, {finding} is",
    "presence": "whether the image shows {finding}; the options are Yes and No",
}
WRITE = """{facts}
Write one multiple-choice question about {topic}.
It is asked about the image without the outline, so do not mention that. One option alone is right. Reply:
{{"question": "...", "options": ["...", "..."], "answer": "the letter of the right option, A for the first"}}"""
VERIFY = """{question}
{options}
If there is a red outline, it shows where the annotation of this image found something. Look for yourself. Reply:
{{"answer": "the letter of the one right option, or none where no option or several are right"}}"""
THINK = """{facts}
A student is asked: {question}
{options}
The right answer is {answer}. The student first looks at the plain image, thinks, and marks a region; then sees it outlined as
here, thinks again, and answers. Write both thoughts in one to three sentences each, in the first person: the first on where to
look and why, without the answer, the second on what the region shows and what follows. Reply:
{{"thought": "...", "rethought": "..."}}"""

_OUTLINE = re.compile(r"\b(outlin|highlight|rectang|bounding|marked|annotat|red box)", re.IGNORECASE)
_LETTERED = re.compile(r"^\s*\(?[A-H][).:]\s+")


@dataclass(frozen=True)
class AskedWriter:
    """A writer that words questions with `writer` and rejects those that `verifier` answers differently. Both see the boxes."""

    writer: ChatClient
    verifier: ChatClient

    def question(self, candidate: Candidate) -> Draft:
        x, y = candidate.point
        topic = TOPICS[candidate.kind].format(finding=candidate.finding, x=x, y=y)
        draft = _ask(self.writer, candidate, WRITE.format(facts=_facts(candidate), topic=topic), read_draft)
        if _OUTLINE.search(draft.question):
            raise Rejected("the question mentions the outline")
        return draft

    def verify(self, candidate: Candidate, draft: Draft) -> None:
        text = VERIFY.format(question=draft.question, options=_options(draft))
        answer = _ask(self.verifier, candidate, text, lambda reply: read_letter(reply, len(draft.options)))
        if not answer:
            raise Rejected("the verifier finds no answer")
        if answer != draft.answer:
            raise Rejected("the verifier gives another answer")

    def thoughts(self, candidate: Candidate, draft: Draft) -> tuple[str, str]:
        asked = {"question": draft.question, "options": _options(draft), "answer": f"{draft.answer} {draft.answer_text}"}
        text = THINK.format(facts=_facts(candidate), **asked)
        return _ask(self.writer, candidate, text, read_thoughts)


def read_draft(reply: str) -> Draft:
    """Parses the writer's question.

    Raises:
      EndpointError: If the reply is a refusal ("refusal"), no JSON ("bad_json"), or JSON of another form ("bad_schema").
    """
    said = reply_object(reply)
    options = said.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= MOST_OPTIONS:
        raise EndpointError("bad_schema", f"options: got {options!r}, expected a list of 2 to {MOST_OPTIONS}")
    texts = tuple(_LETTERED.sub("", reply_text(option, "option")) for option in options)
    if len({text.lower() for text in texts}) < len(texts):
        raise EndpointError("bad_schema", f"options: got {options!r}, expected distinct texts")
    answer = read_letter(reply, len(texts))
    if not answer:
        raise EndpointError("bad_schema", "answer: got none, expected the letter of an option")
    return Draft(reply_text(said.get("question"), "question"), texts, answer)


def read_letter(reply: str, options: int) -> str:
    """Parses the letter of an answer. Returns an empty string for the answer "none".

    Raises:
      EndpointError: If the reply is a refusal ("refusal"), no JSON ("bad_json"), or JSON of another form ("bad_schema").
    """
    answer = reply_text(reply_object(reply).get("answer"), "answer").upper()
    letter = answer.rstrip(").:")
    if letter == "NONE":
        return ""
    if len(letter) != 1 or letter not in ascii_uppercase[:options]:
        raise EndpointError("bad_schema", f"answer: got {answer!r}, expected one of {ascii_uppercase[:options]}")
    return letter


def read_thoughts(reply: str) -> tuple[str, str]:
    """Parses the two thoughts of a demonstration.

    Raises:
      EndpointError: If the reply is a refusal ("refusal"), no JSON ("bad_json"), or JSON of another form ("bad_schema").
    """
    said = reply_object(reply)
    return reply_text(said.get("thought"), "thought"), reply_text(said.get("rethought"), "rethought")


def _ask(client: ChatClient, candidate: Candidate, text: str, read: Callable[[str], T]) -> T:
    image = marked(candidate.detection.image, candidate.boxes, SENT_PIXELS)
    return read(client.ask([message("system", SYSTEM), message("user", text, [image])], read))


def _facts(candidate: Candidate) -> str:
    size = candidate.detection.size
    shares = (to_frame(box, "normalized", size, size).xyxy for box in candidate.boxes)
    boxes = ", ".join(str([round(value, 2) for value in share]) for share in shares)
    return (SHOWN if boxes else NOT_SHOWN).format(finding=candidate.finding, boxes=boxes)


def _options(draft: Draft) -> str:
    return "\n".join(f"{letter} {text}" for letter, text in zip(ascii_uppercase, draft.options, strict=False))
