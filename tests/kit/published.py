"""Small published data sets for tests: files of exact names, and pictures that differ."""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from data_prep import built
from data_prep.building.records import Record
from data_prep.reading.published import Published
from vitar_jax.episodes.sample import Sample
from vitar_jax.processing.files import open_image

Reader = Callable[[Published], Mapping[str, Iterable[Record]]]


def picture(number: int, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    """The content of an image file, a different picture for each number."""
    content = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256 % 256, number // 65536)).save(content, kind)
    return content.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Writes files by name; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read_back(data_dir: Path, name: str, split: str) -> list[Sample]:
    """All samples of a built split."""
    samples = built.source(split, set=name, data_dir=str(data_dir))
    return [samples[n] for n in range(len(samples))]


def assert_round_trip(name: str, read: Reader, source: Path, data_dir: Path) -> None:
    """What is read back is what the reader yields, split by split: every field, and the pixels."""
    splits = read(Published(source))
    assert list(card(data_dir, name)["splits"]) == list(splits)
    for split, records in splits.items():
        for record, back in zip(records, read_back(data_dir, name, split), strict=True):
            assert replace(back, images=()) == record.sample
            published = [open_image(image.read()) for image in record.images]
            assert [(image.size, image.tobytes()) for image in back.images] == [(p.size, p.tobytes()) for p in published]


def parquet(file: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> None:
    """Writes rows as `datasets` would."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)


def card(data_dir: Path, name: str) -> dict[str, Any]:
    """The card of a built set."""
    return json.loads((data_dir / name / "1.0.0" / "card.json").read_text())
