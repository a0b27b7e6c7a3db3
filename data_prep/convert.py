"""Converts the training data of other trainers into a question file.

    python -m data_prep.convert verl --source=train.parquet --output=DIR
    python -m data_prep.convert trl --source=train.jsonl --output=DIR

Writes `questions.jsonl` and `images/` to DIR, for `data_prep.build own`, `vitar_jax.data.questions` and `vitar_jax.infer`.

Rows of verl have `prompt` (messages), `images`, `data_source`, `reward_model.ground_truth` and optionally `extra_info`, whose
texts and numbers are kept, including `split`.
Rows of TRL have `prompt` (messages or text), `image` or `images`, and `solution` or `answer`.

A gold answer is what `\\boxed{}` or <answer> holds, else the whole text. Options at the end of a prompt, such as
"A) ... B) ..." or "(A) ...", become separate options, and the gold answer their letter. An instruction behind them is kept as
`instruction`.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.reading.bad_records import HELP, listing, refuse
from vitar_jax.data.option_lists import read_options
from vitar_jax.data.questions import COLUMNS
from vitar_jax.data.tables import Row, as_list, as_literal, is_missing, jsonl_rows, parquet_rows
from vitar_jax.errors import DataError, ImageError
from vitar_jax.evaluation.extraction import boxed
from vitar_jax.processing.files import open_image
from vitar_jax.processing.sources import inline_content, is_inline, split_frame
from vitar_jax.runtime.user_errors import LONGEST_PATH, one_line_errors

_TAKEN = (*COLUMNS, "data_source")  # columns that extra_info cannot set
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_STYLED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_PLACEHOLDER = re.compile(r"<image>\s*")


def verl_row(row: Row) -> dict[str, Any]:
    """Converts a row of verl to a question. Its images are not written yet."""
    reward = as_literal(row.values.get("reward_model"), f"{row.where}: reward_model")
    if not isinstance(reward, Mapping) or is_missing(reward.get("ground_truth")):
        raise DataError(f"{row.where}: reward_model.ground_truth is missing")
    answer = _gold(Row(reward, f"{row.where}: reward_model"), "ground_truth")
    more = {"data_source": row.text("data_source")}
    extra = as_literal(row.values.get("extra_info"), f"{row.where}: extra_info")
    if isinstance(extra, Mapping):
        kept = Row(extra, row.where).values.items()
        more |= {key: value for key, value in kept if isinstance(value, str | int | float) and key not in _TAKEN}
    return {**more, **_question(row, answer), "images": _images(row)}


def trl_row(row: Row) -> dict[str, Any]:
    """Converts a row of TRL to a question. Its images are not written yet."""
    answer = _gold(row, "solution" if "solution" in row.values else "answer")
    return {**_question(row, answer), "images": _images(row)}


def _gold(row: Row, key: str) -> str:
    r"""Returns the content of `<answer>`, and of `\boxed{}` in it, or else the whole text."""
    found = [row.text(key)]
    for kind, contents in (("<answer>", _ANSWER.findall), (r"\boxed{}", _all_boxed)):
        inside = {one.strip() for one in contents(found[0])}
        if len(inside) > 1:
            raise row.wrong(key, f"a text with one {kind}")
        found = list(inside) or found
    plain = _STYLED.sub(r"\1", found[0]).strip()
    if not plain:
        raise row.wrong(key, "an answer that is not empty")
    return plain


def _all_boxed(text: str) -> list[str]:
    found = []
    while (last := boxed(text)) is not None:
        found.append(last)
        text = text[: text.rfind(r"\boxed{")]
    return found


KINDS: Mapping[str, Callable[[Row], dict[str, Any]]] = {"verl": verl_row, "trl": trl_row}


def convert(
    kind: str, source: Path, output: Path, *, bad: list[DataError] | None = None, skip_bad: bool = False
) -> int:
    """Converts the rows of a .parquet or .jsonl file to questions. Returns the number of questions.

    Args:
      bad: Collects the errors of single rows. If None, the first one is raised.
      skip_bad: Whether to leave out the rows with errors in `bad`.

    Raises:
      BadRecords: If there are errors in `bad`, unless `skip_bad`. Nothing is written then, nor after another error.
      DataError: If `output` exists, the file cannot be read, or a row is malformed.
    """
    if output.exists():
        raise DataError(f"{output}: already exists")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as work:
        made = Path(work) / "made"
        (made / "images").mkdir(parents=True)
        count = 0
        with (made / "questions.jsonl").open("w", encoding="utf-8") as opened:
            for row in _rows(source, bad):
                try:
                    question = KINDS[kind](row)
                    named = [(f"{row.where}: image {n}", image) for n, image in enumerate(question["images"])]
                    files = [_image(image, where, source.parent) for where, image in named]
                except DataError as error:
                    if bad is None:
                        raise
                    bad.append(error)
                    continue
                names = [_write(file, made, f"{row.number}-{n}") for n, file in enumerate(files)]
                opened.write(json.dumps({"id": str(row.number), **question, "images": names}, ensure_ascii=False) + "\n")
                count += 1
        if bad:
            refuse(source, bad, count + len(bad), skip_bad=skip_bad)
        if not count:
            raise DataError(f"{source}: no {'valid ' if bad else ''}rows found")
        made.rename(output)
    return count


def _rows(source: Path, bad: list[DataError] | None) -> Iterator[Row]:
    match source.suffix.lower():
        case ".parquet":
            return parquet_rows(source)
        case ".jsonl":
            return jsonl_rows(source, bad)
        case _:
            raise DataError(f"{source}: unknown file type, expected .parquet or .jsonl")


def _question(row: Row, answer: str) -> dict[str, Any]:
    """Returns a question with the text of the only user message. Ignores the system message, which the protocol replaces.

    Removes image placeholders from the text. Options at the end of the question become separate options.
    """
    prompt = row.values.get("prompt")
    if isinstance(prompt, str) and prompt.lstrip().startswith("[{"):  # messages, written as text
        prompt = as_literal(prompt, f"{row.where}: prompt")
    if isinstance(prompt, list):
        users = [one for one in prompt if isinstance(one, Mapping) and one.get("role") == "user"]
        if len(users) != 1:
            raise row.wrong("prompt", "text, or messages with exactly one from the user")
        prompt = users[0].get("content")
    if isinstance(prompt, list):  # parts of a message
        prompt = "\n".join(str(part["text"]) for part in prompt if isinstance(part, Mapping) and part.get("text"))
    if not isinstance(prompt, str) or not (question := _PLACEHOLDER.sub("", prompt).strip()):
        raise row.wrong("prompt", "text, or messages with exactly one from the user")
    split, options, answer = read_options(question, answer, row.where)
    if not options.pairs:
        return {"question": question, "answer": answer}
    made = {"question": split.question, "options": [option for _, option in options.pairs], "answer": answer}
    return made | ({"instruction": split.instruction} if split.instruction else {})


def _images(row: Row) -> list[Any]:
    key = "image" if "image" in row.values else "images"
    found = row.values.get(key, [])
    listed = as_list(found, f"{row.where}: {key}")
    if listed is None and key == "images":
        raise row.wrong("images", "a list")
    return [found] if listed is None else listed


class _Image(NamedTuple):
    content: bytes
    suffix: str
    frame: int | None


def _image(image: Any, where: str, folder: Path) -> _Image:
    """Returns the content of an image file, which can be read, its suffix, and the frame that `image` chooses.

    `image` is bytes, {"bytes", "path"} (as in `datasets`), {"image": ...} or a text that names an image (`processing.sources`).
    """
    suffix, frame = "", None
    if isinstance(image, Mapping):
        suffix = Path(image.get("path") or "").suffix
        image = image.get("bytes") or image.get("path") or image.get("image")
    try:
        if isinstance(image, str) and is_inline(image):
            image = inline_content(image)
        elif isinstance(image, str):
            scheme, _, named = image.partition("://")
            place, frame = split_frame(named if scheme == "file" else image)
            path = folder / place
            if not os.path.isfile(path):  # false where the text is too long for a path
                raise DataError(f"{where}: no such file: {str(path)[:LONGEST_PATH]}")
            suffix, image = path.suffix, path.read_bytes()
        if not isinstance(image, bytes):
            raise DataError(f"{where}: expected an image as bytes or a path, got {type(image).__name__}")
        open_image(image, frame=frame)
    except ImageError as error:
        raise DataError(f"{where}: {error}") from error
    return _Image(image, suffix, frame)


def _write(image: _Image, made: Path, name: str) -> str:
    """Writes an image file unchanged, and returns its path, with the frame."""
    (made / "images" / f"{name}{image.suffix}").write_bytes(image.content)
    return f"images/{name}{image.suffix}" + ("" if image.frame is None else f"#frame={image.frame}")


@one_line_errors(paths=True)
def main() -> None:
    """Converts rows in the format of verl or TRL into a question file."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.convert", description=main.__doc__)
    parser.add_argument("kind", choices=sorted(KINDS), help="trainer that the rows are for")
    parser.add_argument("--source", type=Path, required=True, help="input rows, .parquet or .jsonl")
    parser.add_argument("--output", type=Path, required=True, help="output folder, created by the command")
    parser.add_argument("--skip_bad", action="store_true", help=HELP)
    arguments = parser.parse_args()
    bad: list[DataError] = []
    with listing(bad):
        number = convert(arguments.kind, arguments.source, arguments.output, skip_bad=arguments.skip_bad, bad=bad)
    print(f"{arguments.output}: {number} questions")


if __name__ == "__main__":
    main()
