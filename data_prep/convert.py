"""Converts the training data of other trainers into a question file.

    python -m data_prep.convert verl --source=train.parquet --output=DIR
    python -m data_prep.convert trl --source=train.jsonl --output=DIR

Writes `questions.jsonl` and `images/` to DIR, for `data_prep.build own`, `vitar_jax.data.questions` and `vitar_jax.infer`.

Rows of verl have `prompt` (messages), `images`, `data_source`, `reward_model.ground_truth` and optionally `extra_info`, whose
texts and numbers are kept, including `split`.
Rows of TRL have `prompt` (messages or text), `image` or `images`, and `solution` or `answer`.
"""

import argparse
import json
import re
import string
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitar_jax.data.questions import COLUMNS, split_options
from vitar_jax.data.tables import Row, jsonl_rows, parquet_rows
from vitar_jax.episodes.answers import tagged
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.runtime.user_errors import one_line_errors

_TAKEN = (*COLUMNS, "data_source")  # columns that extra_info cannot set
_PLACEHOLDER = re.compile(r"<image>\s*")


def verl_row(row: Row) -> dict[str, Any]:
    """Converts a row of verl to a question. Its images are not written yet."""
    reward = row.values.get("reward_model")
    if not isinstance(reward, Mapping) or reward.get("ground_truth") in (None, ""):
        raise DataError(f"{row.where}: reward_model.ground_truth is missing")
    answer = Row(reward, f"{row.where}: reward_model").text("ground_truth")
    more = {"data_source": row.text("data_source")}
    extra = row.values.get("extra_info")
    if isinstance(extra, Mapping):
        more |= {key: value for key, value in extra.items() if isinstance(value, str | int | float) and key not in _TAKEN}
    return {**_question(row, answer), **more, "images": _images(row)}


def trl_row(row: Row) -> dict[str, Any]:
    """Converts a row of TRL to a question. Takes the answer from an <answer> tag, if any. Its images are not written yet."""
    key = "solution" if "solution" in row.values else "answer"
    answer = row.text(key)
    answer = answer if (inside := tagged(answer)) is None else inside
    return {**_question(row, answer), "images": _images(row)}


KINDS: Mapping[str, Callable[[Row], dict[str, Any]]] = {"verl": verl_row, "trl": trl_row}


def convert(kind: str, source: Path, output: Path) -> int:
    """Converts the rows of a .parquet or .jsonl file to questions. Returns the number of questions.

    Raises:
      DataError: If `output` exists or a row is malformed. Nothing is written then.
    """
    if output.exists():
        raise DataError(f"{output}: already exists")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as work:
        made = Path(work) / "made"
        (made / "images").mkdir(parents=True)
        number = 0
        with (made / "questions.jsonl").open("w", encoding="utf-8") as opened:
            for number, row in enumerate(_rows(source), start=1):
                question = KINDS[kind](row)
                names = [
                    _write(image, f"{row.where}: image {n}", source.parent, made, f"{number - 1}-{n}")
                    for n, image in enumerate(question["images"])
                ]
                opened.write(json.dumps({"id": str(number - 1), **question, "images": names}, ensure_ascii=False) + "\n")
        if not number:
            raise DataError(f"{source}: no rows found")
        made.rename(output)
    return number


def _rows(source: Path) -> Iterator[Row]:
    readers = {".parquet": parquet_rows, ".jsonl": jsonl_rows}
    if source.suffix.lower() not in readers:
        raise DataError(f"{source}: unknown file type, expected {' or '.join(readers)}")
    yield from readers[source.suffix.lower()](source)


def _question(row: Row, answer: str) -> dict[str, Any]:
    """Returns a question with the text of the only user message. Ignores the system message, which the protocol replaces.

    Removes image placeholders from the text. Options at the end of the question, such as "A) ... B) ...", become separate
    options if the answer is one of their letters.
    """
    prompt = row.values.get("prompt")
    if isinstance(prompt, list):
        users = [one for one in prompt if isinstance(one, Mapping) and one.get("role") == "user"]
        if len(users) != 1:
            raise row.wrong("prompt", "text, or messages with exactly one from the user")
        prompt = users[0].get("content")
    if isinstance(prompt, list):  # parts of a message
        prompt = "\n".join(str(part["text"]) for part in prompt if isinstance(part, Mapping) and part.get("text"))
    if not isinstance(prompt, str) or not (question := _PLACEHOLDER.sub("", prompt).strip()):
        raise row.wrong("prompt", "text, or messages with exactly one from the user")
    stem, options = split_options(question)
    if stem and answer in list(string.ascii_uppercase[: len(options)]):
        return {"question": stem, "options": options, "answer": answer}
    return {"question": question, "answer": answer}


def _images(row: Row) -> list[Any]:
    found = [row.values["image"]] if row.values.get("image") else row.values.get("images") or []
    if not isinstance(found, list):
        raise row.wrong("images", "a list")
    return found


def _write(image: Any, where: str, folder: Path, made: Path, name: str) -> str:
    """Writes an image file unchanged. `image` is bytes, {"bytes", "path"} (as in `datasets`), {"image": ...} or a path."""
    suffix = ""
    if isinstance(image, Mapping):
        suffix = Path(image.get("path") or "").suffix
        image = image.get("bytes") or image.get("path") or image.get("image")
    if isinstance(image, str):
        scheme, _, named = image.partition("://")
        path = folder / (named if scheme == "file" else image)
        if not path.is_file():
            raise DataError(f"{where}: no such file: {path}")
        suffix, image = path.suffix, path.read_bytes()
    if not isinstance(image, bytes):
        raise DataError(f"{where}: expected an image as bytes or a path, got {type(image).__name__}")
    try:
        open_image(image)
    except ImageError as error:
        raise DataError(f"{where}: {error}") from error
    (made / "images" / f"{name}{suffix}").write_bytes(image)
    return f"images/{name}{suffix}"


@one_line_errors()
def main() -> None:
    """Converts rows in the format of verl or TRL into a question file."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.convert", description=main.__doc__)
    parser.add_argument("kind", choices=sorted(KINDS), help="trainer that the rows are for")
    parser.add_argument("--source", type=Path, required=True, help="input rows, .parquet or .jsonl")
    parser.add_argument("--output", type=Path, required=True, help="output folder, created by the command")
    arguments = parser.parse_args()
    number = convert(arguments.kind, arguments.source, arguments.output)
    print(f"{arguments.output}: {number} questions")


if __name__ == "__main__":
    main()
