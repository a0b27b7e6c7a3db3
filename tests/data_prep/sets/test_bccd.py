"""BCCD: the published smears, and small ones of our own; questions of all kinds; damaged files."""

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from data_prep.curation.candidates import Kind
from data_prep.reading.published import Published
from data_prep.sets.bccd import CLASSES, LISTS, SET, read, read_smears
from tests.kit.bccd import published
from tests.kit.datasets import assert_round_trip, card
from vitar_jax.errors import DataError

BOX_OF_ONE_PIXEL = (
    "<object><name>RBC</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"
)

def test_the_built_set_is_what_was_read(build_set, tmp_path):
    source = published(tmp_path / "bccd")
    data_dir = build_set("bccd", source)
    assert_round_trip("bccd", read, source, data_dir)
    made = card(data_dir, "bccd")
    assert list(made["splits"]) == list(LISTS) == ["train", "validation", "test"] and not made["leaks"]
    assert {split: count["images"] for split, count in made["splits"].items()} == {"train": 6, "validation": 3, "test": 3}
    assert len(made["files"]) == 12 + 3  # annotations and lists; images have a hash of their own


def test_questions_keep_to_what_the_boxes_say(tmp_path):
    records = [record for some in read(Published(published(tmp_path))).values() for record in some]
    asked = Counter((record.sample.metadata["kind"], record.sample.metadata["finding"]) for record in records)
    assert {kind for kind, _ in asked} == {*get_args(Kind)} and {name for _, name in asked} == {*CLASSES}
    assert not any(asked[kind, "RBC"] for kind in ("presence", "part", "count"))
    assert all(record.sample.boxes or record.sample.metadata["kind"] == "presence" for record in records)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ImageSets/Main/test.txt": "smear_9 smear_10 smear_11 smear_99\n"}, r"test.txt: smear_99 has no file in Annotations"),
        ({"Annotations/smear_3.xml": "<annotation><filename>"}, r"smear_3.xml: cannot be read as XML"),
        ({"JPEGImages/smear_3.jpg": b"no picture"}, r"smear_3.xml: .*smear_3.jpg: not an image"),
        ({"Annotations/smear_3.xml": (r"<name>\w+<", "<name>lymphocyte<")}, r"smear_3.xml: got class lymphocyte, expected Pl"),
        ({"Annotations/smear_3.xml": (r"<xmax>\d+<", "<xmax>999<")}, r"smear_3.xml: \w+: .* within the image"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, words):
    source = published(tmp_path / "bccd", files)
    with pytest.raises(DataError, match=words):
        read(Published(source))
    bad: list[DataError] = []
    left = sum(map(len, read_smears(Published(source, bad)).values()))
    assert len(bad) == 1 and left == 12 - ("smear_3" in words), (bad, left)


@pytest.mark.parametrize("name", ["Annotations", "JPEGImages", "ImageSets"])
def test_a_missing_folder_is_named(tmp_path, name):
    source = published(tmp_path / "bccd")
    (source / name).rename(tmp_path / "away")
    with pytest.raises(DataError, match=name):
        read(Published(source))


def test_a_box_of_one_pixel_shows_nothing(tmp_path):
    source = published(tmp_path)
    file = source / "Annotations" / "smear_0.xml"
    file.write_text(file.read_text().replace("</annotation>", BOX_OF_ONE_PIXEL + "</annotation>"))
    before = read_smears(Published(published(tmp_path / "other")))["train"]
    assert [one.boxes for one in read_smears(Published(source))["train"]] == [one.boxes for one in before]


@pytest.mark.slow
def test_the_published_smears(test_data: Path):
    splits = read_smears(Published(test_data / "bccd"))
    assert {split: len(smears) for split, smears in splits.items()} == {"train": 205, "validation": 87, "test": 72}
    smears = [smear for some in splits.values() for smear in some]
    counts = {name: sum(len(smear.boxes.get(name, ())) for smear in smears) for name in CLASSES}
    assert counts == {"Platelets": 361, "RBC": 4155 - 2, "WBC": 372}
    assert sum("Platelets" not in smear.boxes for smear in smears) == 163
    assert {Image.open(smear.image).size for smear in smears[:9]} == {(640, 480)} and SET.licence == "MIT"
