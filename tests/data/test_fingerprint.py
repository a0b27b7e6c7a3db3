"""Fingerprints of data sets: any change of a list of questions is seen, and nothing else."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import built
from tests.kit.images import noise
from tests.kit.slake import published
from vitar_jax.data import questions
from vitar_jax.data.fingerprint import fingerprint
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import DataError
from vitar_jax.processing.sources import file_digest

ROWS = """id,image,question,options,answer,boxes,modality
1,a.png,Which texture?,flat|rows,B,,CT
2,b.png,Which texture?,flat|rows,A,"[[1, 2, 9, 9]]",CT
"""


def write(folder: Path, rows: str = ROWS) -> tuple[Any, ...]:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate("ab"):
        noise(40 + number, 32).save(folder / f"{name}.png")
    (folder / "set.csv").write_text(rows)
    return questions.read(folder / "set.csv")


def test_the_same_questions_in_another_folder_are_the_same(tmp_path: Path) -> None:
    assert fingerprint(write(tmp_path / "one")) == fingerprint(write(tmp_path / "two"))


@pytest.mark.parametrize(
    "old, new",
    [
        ("flat|rows,B", "flat|rows,A"),
        ("Which texture?,flat|rows,A", "Which one?,flat|rows,A"),
        ("flat|rows,A", "flat|dots,A"),
        ("[[1, 2, 9, 9]]", "[[1, 2, 9, 8]]"),
        (",CT\n2", ",MR\n2"),
        ("1,a.png", "1,b.png"),
        ("\n1,", "\n3,"),
        (ROWS[ROWS.index("2,") :], ""),
        (ROWS, ROWS + "3,a.png,Which texture?,flat|rows,B,,CT\n"),
    ],
)
def test_every_change_of_a_row_is_seen(old: str, new: str, tmp_path: Path) -> None:
    assert old in ROWS
    assert fingerprint(write(tmp_path)) != fingerprint(write(tmp_path, ROWS.replace(old, new, 1)))


def test_the_order_is_seen(tmp_path: Path) -> None:
    head, *rows = ROWS.splitlines(keepends=True)
    assert fingerprint(write(tmp_path)) != fingerprint(write(tmp_path, head + "".join(reversed(rows))))


def test_another_image_behind_a_name_is_seen(tmp_path: Path) -> None:
    samples = write(tmp_path)
    before = fingerprint(samples)
    shutil.copy(tmp_path / "b.png", tmp_path / "a.png")
    assert fingerprint(samples) != before
    (tmp_path / "a.png").unlink()
    assert fingerprint(samples) != before


def test_a_large_file_counts_by_its_size_and_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytearray(300_000)
    seen = set()
    for place in (0, 299_999):
        content[place] ^= 1
        path.write_bytes(content)
        seen.add(file_digest(path))
    path.write_bytes(content + b"\0")
    assert len(seen | {file_digest(path)}) == 3


def test_a_frame_and_a_text_that_holds_an_image_count(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(20, 20).save(path)
    first = file_digest(path)
    assert len({first, file_digest(f"{path}#frame=0"), file_digest(f"{path}#frame=1")}) == 3
    noise(20, 20, seed=1).save(path)
    assert file_digest(f"{path}#frame=0") not in (file_digest(path), "missing")
    assert file_digest(path) != first
    texts = [f"data:image/png;base64,{'A' * 200_000}{letter}{'A' * 200_000}" for letter in "AB"]
    assert len({*map(file_digest, texts), "missing"}) == 3


class Drawn:
    """A thousand questions that are made when they are read."""

    def __init__(self, make: Callable[[int], Any], count: int = 1000):
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        return self.make(index)


def test_samples_that_are_drawn_are_probed(tmp_path: Path) -> None:
    first = dataclasses.replace(write(tmp_path)[0], images=(noise(20, 20),), metadata={"object": object()})
    before = fingerprint(Drawn(lambda number: first))
    assert before == fingerprint(Drawn(lambda number: dataclasses.replace(first, metadata={"object": object()})))
    assert before != fingerprint(Drawn(lambda number: first, 999))
    assert before != fingerprint(Drawn(lambda number: dataclasses.replace(first, images=(noise(20, 21),))))


def test_a_sample_that_cannot_be_read_does_not_end_it() -> None:
    def fail(number: int) -> Any:
        raise DataError("a bad record")

    assert fingerprint(Drawn(fail)) == fingerprint(Drawn(fail))


def test_phantoms_are_the_same_in_every_process() -> None:
    source = SourceConfig("data_prep.phantom:source", options={"length": 64})
    assert fingerprint(load_source(source)) == fingerprint(load_source(source))


def test_a_built_set_is_told_from_one_with_other_contents(tmp_path: Path, build_set: Callable[..., Path]) -> None:
    data_dir = build_set("slake", published(tmp_path / "slake"))
    opened = built.source("test_en", set="slake", data_dir=str(data_dir))
    before = fingerprint(opened)
    assert before == fingerprint(built.source("test_en", set="slake", data_dir=str(data_dir)))
    assert before != fingerprint(built.source("train_en", set="slake", data_dir=str(data_dir)))
    card = opened.folder / "card.json"
    card.write_text(card.read_text().replace("images_sha256", "images_sha256 "))
    assert fingerprint(opened) != before
