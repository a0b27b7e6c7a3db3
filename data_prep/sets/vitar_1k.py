"""Interactive examples for ViTAR's first stage: a question, a turn that marks a region of the image, and an answer.

The thousand examples of the paper are not published. The format follows the paper, with one object per line of `train.jsonl`:

    {"image": "a.png", "question": "Which texture?", "options": ["flat", "rows"], "turns": [
      {"thought": "...", "actions": [{"name": "mark", "arguments": {"box": [[10, 20, 40, 50]]}}]},
      {"thought": "...", "actions": [{"name": "Terminate", "arguments": {"answer": "B"}}]}]}

Boxes are in pixels of the stored image. A turn may also be the text of its JSON object. `mark_bbox` is an alias of `mark`.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import ImageFile, Images, Published
from vitar_jax.data.options import Options
from vitar_jax.data.tables import Row, jsonl_rows
from vitar_jax.episodes.actions import ActionError, Answer, ToolCall
from vitar_jax.episodes.parsers import parse_json
from vitar_jax.episodes.regions import Box, declared, inside
from vitar_jax.episodes.sample import Answer as Shown
from vitar_jax.episodes.sample import Demonstration, Look, Sample
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image

QUESTIONS = "train.jsonl"
TOOLS = ("mark", "zoom")


def read(published: Published) -> Mapping[str, list[Record]]:
    """Returns the records by split."""
    images = published.images("images", "images.zip")
    rows = jsonl_rows(published.file(QUESTIONS), published.bad)
    return {"train": list(published.records(rows, partial(_record, images=images)))}


def _record(row: Row, images: Images) -> Record:
    image = images.find(row.text("image"), row.where)
    turns = row.list("turns")
    if len(turns) != 2:
        raise DataError(f"{row.where}: got {len(turns)} turns, expected 2")
    first, call = _turn(turns[0], f"{row.where}: turn 0")
    last, answer = _turn(turns[1], f"{row.where}: turn 1")
    if not isinstance(call, ToolCall) or call.name not in TOOLS or call.image:
        raise DataError(f"{row.where}: turn 0: expected a call of {' or '.join(TOOLS)} on the image")
    if not isinstance(answer, Answer):
        raise DataError(f"{row.where}: turn 1: got a tool call, expected an answer")
    boxes = _boxes(call, image, row.where)
    options = Options.of(row.values.get("options", []), f"{row.where}: options")
    letter = options.letter(answer.text, f"{row.where}: turn 1: answer", "letter")
    sample = Sample(
        sample_id=f"vitar-1k-{row.number}",
        question=row.text("question"),
        images=(),
        answer=letter,
        answers=options.equal_to(letter),
        options=options.pairs,
        demonstration=Demonstration((Look(first, call.name, boxes),), Shown(last, letter)),
    )
    return Record(sample, (image,), row.where)


def _turn(turn: Any, where: str) -> tuple[str, ToolCall | Answer]:
    """Parses the thought and the action of a turn, like the output of a model."""
    written = turn if isinstance(turn, str) else json.dumps(turn)
    parsed = parse_json(written.replace('"mark_bbox"', '"mark"'))
    if isinstance(parsed.outcome, ActionError):
        raise DataError(f"{where}: {parsed.outcome.message}")
    if parsed.thought is None:
        raise DataError(f"{where}: thought is missing")
    return parsed.thought, parsed.outcome


def _boxes(call: ToolCall, image: ImageFile, where: str) -> tuple[Box, ...]:
    try:
        size = open_image(image.read()).size
        return tuple(inside(declared(Box(*box, frame="original"), ""), size) for box in call.boxes)
    except ImageError as error:
        raise DataError(f"{where}: image {image.name}: {error}") from error
    except ValueError as error:
        raise DataError(f"{where}: turn 0: {error}") from error


SET = DataSet(
    name="vitar_1k",
    title="Interactive examples in the format of ViTAR's first stage",
    url="https://arxiv.org/abs/2510.10052",
    licence="that of the examples' images; the thousand examples of the paper are not published",
    citation="ViTAR, arXiv:2510.10052",
    layout=f"{QUESTIONS} (its format is in data_prep/sets/vitar_1k.py), and images/ or images.zip",
)
