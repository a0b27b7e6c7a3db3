"""Records of one's own: which split their images fall into, what is wrong with them, and how often a file is opened."""

import hashlib
import json
import re
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from data_prep.building.own import Own
from data_prep.building.own_images import OwnImages
from data_prep.reading.bad_records import BadRecords
from data_prep.reading.identifiers import identifiers, patient_of
from tests.kit.datasets import card, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.episodes.regions import Box, Mask, region_to_json
from vitar_jax.errors import DataError
from vitar_jax.processing.files import open_image

CT = Path(str(get_testdata_file("CT_small.dcm")))


def jsonl(file: Path, *rows: dict[str, Any] | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def splits_of(source: Path, **arguments: Any) -> dict[str, str]:
    """Returns the split of each question."""
    read = Own(source, source.parent / "work", **arguments).read()
    return {record.sample.question: split for split, records in read.items() for record in records}


# --- splits -------------------------------------------------------------------------------------


def test_files_of_one_name_in_many_folders_are_many_images(tmp_path: Path) -> None:
    names = [f"xmlab{n}/source.jpg" for n in range(40)]
    write_files(tmp_path / "here", {name: picture(n) for n, name in enumerate(names)})
    source = jsonl(tmp_path / "here" / "q.jsonl", *({"question": name, "image": name} for name in names))
    splits = splits_of(source)
    assert set(splits.values()) == {"train", "validation", "test"}
    # The same in another place, with other spellings of the paths, and in other company.
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = tmp_path / "there" / "q.jsonl"
    for spelled in ("./{}", "xmlab0/../{}", f"{tmp_path}/there/{{}}"):
        jsonl(there, *({"question": name, "image": spelled.format(name)} for name in names[::2]))
        assert splits_of(there) == {name: splits[name] for name in names[::2]}
    jsonl(tmp_path / "there" / "tables" / "q.jsonl", *({"question": name, "image": f"../{name}"} for name in names))
    assert len(set(splits_of(tmp_path / "there" / "tables" / "q.jsonl").values())) == 3


def test_a_folder_without_folders_keeps_the_splits_of_earlier_versions(tmp_path: Path) -> None:
    """They were drawn from the name of the file alone."""
    names = [f"{n}.png" for n in range(30)]
    write_files(tmp_path, {name: picture(n) for n, name in enumerate(names)})
    splits = splits_of(jsonl(tmp_path / "q.jsonl", *({"question": name, "image": name} for name in names)), seed=3)
    for name in names:
        place = int.from_bytes(hashlib.sha256(f"3:{name}".encode()).digest()[:8], "big") / 2**64
        assert splits[name] == ("train" if place < 0.8 else "validation" if place < 0.9 else "test")


def test_both_forms_of_a_name_are_one_image_or_patient(tmp_path: Path) -> None:
    composed, decomposed = (
        [unicodedata.normalize(form, f"Müller {n}") for n in range(30)] for form in ("NFC", "NFD")
    )
    write_files(tmp_path, {f"{name}.png": picture(n) for n, name in enumerate(decomposed)})
    for key, suffix in (("image", ".png"), ("patient", "")):
        rows = [
            {"question": f"{n} {form}", key: name + suffix}
            for form, names in enumerate((composed, decomposed))
            for n, name in enumerate(names)
        ]
        splits = splits_of(jsonl(tmp_path / "q.jsonl", *rows))
        assert all(splits[f"{n} 0"] == splits[f"{n} 1"] for n in range(30)) and len(set(splits.values())) == 3


def test_an_empty_split_is_said(build_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"{n}?", "patient": "one"} for n in range(20)]
    build_set("own", jsonl(tmp_path / "q.jsonl", *rows))
    assert list(card(tmp_path / "built", "own")["splits"]) == ["train"]
    assert "No question is in validation, test: the shares are of patients" in capsys.readouterr().out


# --- bad records ----------------------------------------------------------------------------------

BAD: dict[int, tuple[dict[str, Any] | str, str]] = {
    2: ("{", "invalid JSON"),
    3: ({"id": 3, "image": "a.png"}, "question is missing"),
    5: ({"id": 5, "question": "q?", "image": "none.png"}, "image: .*none.png: file does not exist"),
    6: ({"id": 6, "question": "q?", "options": ["x", "y"], "answer": "z"}, "answer: got 'z', expected one of the options"),
    7: ({"id": 7, "question": "q?", "image": "a.png", "boxes": [[2, 2, 9, 4]]}, "boxes: got box .* within the image of size 8"),
    8: ({"id": 1, "question": "q?"}, "id '1' occurs twice, first at .*q.jsonl:1"),
    9: ({"id": 9, "question": "q?", "image": "broken.png"}, "image: .*broken.png: not an image"),
    10: ({"id": 10, "question": "q?", "image": "none.png"}, "image: .*none.png: file does not exist"),
    11: ({"id": 11, "question": "q?", "split": "Train"}, "got split 'Train'"),
    12: ({"id": 12, "question": "q?", "split": float("nan")}, "split is missing, but other questions have one"),
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Twelve lines, of which the first and fourth are right."""
    write_files(tmp_path, {"a.png": picture(1), "broken.png": b"no picture"})
    rows = [BAD[n][0] if n in BAD else {"id": n, "question": f"{n}?", "image": "a.png"} for n in range(1, 13)]
    return jsonl(tmp_path / "q.jsonl", *(row if isinstance(row, str) else {"split": "train", **row} for row in rows))


def test_all_bad_records_are_listed_at_once(
    mixed: Path, build_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_set("own", mixed)
    *listed, summary = [line for line in capsys.readouterr().err.splitlines() if str(mixed) in line]
    assert stopped.value.code == 2 and [line.split(":")[1] for line in listed] == [str(n) for n in BAD]
    for line, (_, words) in zip(listed, BAD.values(), strict=True):
        assert re.search(words, line)
    assert summary == f"error: {mixed}: 10 of 12 records are invalid; mend them, or leave them out with --skip_bad"
    assert list((tmp_path / "built").iterdir()) == []


def test_bad_records_can_be_left_out(mixed: Path, build_set: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = build_set("own", mixed, "--skip_bad")
    assert [sample.sample_id for sample in read_back(data_dir, "own", "train")] == ["1", "4"]
    (note,) = card(data_dir, "own")["notes"]
    assert note == "10 invalid records were left out, in the lines 2, 3, 5, 6, 7, 8, 9, 10, 11, 12."
    listed = capsys.readouterr().err
    assert all(f"{mixed}:{n}: " in listed for n in BAD) and [path.name for path in data_dir.iterdir()] == ["own"]


def test_a_file_of_bad_records_alone_is_an_error(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "q.jsonl", "{")
    with pytest.raises(DataError, match="q.jsonl: holds no valid questions"):
        Own(source, tmp_path / "work", skip_bad=True).read()
    with pytest.raises(BadRecords, match="q.jsonl:1: invalid JSON"):
        Own(source, tmp_path / "work").read()


# --- boxes ------------------------------------------------------------------------------------------


def look(region: Any, image: int = 0) -> dict[str, Any]:
    first = {"thought": "a", "tool": "mark", "regions": [region], "image": image}
    return {"demonstration": {"looks": [first], "answer": {"thought": "b"}}}


MASK = region_to_json(Mask.of(np.ones((5, 8), bool), "original"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": [[-2, 0, 4, 4]]}, "expected one within the image of size 8 x 6"),
        ({"boxes": [[1, 1, 4, 4], [0, 0, 8, 7]]}, "expected one within the image of size 8 x 6"),
        (look([0, 0, 9, 6]), "expected one within the image of size 8 x 6"),
        (look([0, 0, 8, 6], image=1), "expected one within the image of size 4 x 3"),
        (look(MASK), "expected that of the image, .6, 8."),
        ({"images": [], "boxes": [[1, 1, 4, 4]]}, "got boxes, but no image"),
        ({"boxes": [[1, 1, 4, 4]], "other_boxes": [[0, 0, 8, 7]]}, "expected one within the image of size 8 x 6"),
        ({"images": [], "other_boxes": [[1, 1, 4, 4]]}, "got boxes, but no image"),
    ],
)
def test_a_box_outside_its_image_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_files(tmp_path, {"a.png": picture(1), "b.png": picture(2, size=(4, 3))})
    row = {"question": "q?", "images": ["a.png", "b.png"], "answer": "x"} | change
    with pytest.raises(DataError, match=f"q.jsonl:1: boxes: .*{words}"):
        Own(jsonl(tmp_path / "q.jsonl", row), tmp_path / "work").read()


def test_boxes_at_the_edge_are_kept(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": picture(1)})
    row = {"question": "q?", "image": "a.png", "answer": "x", "boxes": [[0, 0, 8, 6], [0, 0, 8.4, 6]]}
    row |= look([0, 0, 99, 99], image=1)
    ((record,),) = Own(jsonl(tmp_path / "q.jsonl", row), tmp_path / "work").read().values()
    assert [box.xyxy for box in record.sample.boxes] == [(0, 0, 8, 6), (0, 0, 8, 6)]


@pytest.mark.parametrize(("unit", "whole"), [("normalized", 1), ("1000", 1000)])
def test_boxes_in_another_unit_are_declared(
    unit: str, whole: float, build_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path, {"a.png": picture(1)})
    box = [0.25 * whole, 0.5 * whole, 0.75 * whole, whole]
    row = {"question": "q?", "image": "a.png", "answer": "x", "split": "train", **look(box)}
    row |= {"boxes": [box], "other_boxes": [box]}
    source = jsonl(tmp_path / "q.jsonl", row)
    with pytest.raises(SystemExit):
        build_set("own", source)
    said = capsys.readouterr().err
    assert "--boxes" in said if whole == 1 else "within the image" in said
    (sample,) = read_back(build_set("own", source, f"--boxes={unit}"), "own", "train")
    assert sample.demonstration
    assert sample.boxes == sample.demonstration.looks[0].regions == (Box(2, 3, 6, 6, "original"),)
    assert sample.metadata["other_boxes"] == [[2, 3, 6, 6]]


# --- files ------------------------------------------------------------------------------------------

OPENED: Counter[str] = Counter()
WATCHED: list[str] = []


def count_open(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED and event == "open" and str(arguments[0]).startswith(WATCHED[0]):
        OPENED[Path(str(arguments[0])).name] += 1


@pytest.fixture(scope="module")
def watch() -> None:
    sys.addaudithook(count_open)  # cannot be removed, and counts nothing while WATCHED is empty


@pytest.mark.parametrize("unit", ["pixels", "normalized"])
def test_each_image_is_opened_once(build_set: Any, watch: None, tmp_path: Path, unit: str) -> None:
    write_files(tmp_path / "images", {f"{n}.png": picture(n) for n in range(3)})
    shutil.copy(CT, tmp_path / "images" / "3.dcm")
    names = ["0.png", "1.png", "2.png", "3.dcm", "none.png"]
    rows = [{"question": f"{n}?", "images": [names[n % 5], "../images/0.png"], "boxes": [[0, 0, 1, 1]]} for n in range(25)]
    OPENED.clear()
    WATCHED.append(f"{tmp_path}/images/")
    try:
        build_set("own", jsonl(tmp_path / "q.jsonl", *rows), f"--images={tmp_path}/images", "--skip_bad", f"--boxes={unit}")
    finally:
        WATCHED.clear()
    assert OPENED == dict.fromkeys(names, 1)


def test_a_second_file_in_the_same_place_is_an_error(
    build_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = jsonl(tmp_path / "a.jsonl", {"id": "first", "question": "q?", "split": "train"})
    second = jsonl(tmp_path / "b.jsonl", {"id": "second", "question": "q?", "split": "train"})
    data_dir = build_set("own", first)
    build_set("own", first)
    assert "already built" in capsys.readouterr().out
    for source, row in ((second, {}), (first, {"id": "changed", "question": "q?", "split": "train"})):
        if row:
            jsonl(source, row)
        with pytest.raises(SystemExit) as stopped:
            build_set("own", source)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert f"holds the questions of a.jsonl, not those of {source.name}" in error and "--overwrite" in error
        assert read_back(data_dir, "own", "train")[0].sample_id == "first"
    build_set("own", second, "--overwrite")
    assert read_back(data_dir, "own", "train")[0].sample_id == "second"


def test_dicom_without_its_preamble_is_read_the_same(tmp_path: Path) -> None:
    whole = CT
    bare = tmp_path / "bare.dcm"
    dataset = dcmread(whole)
    start = whole.read_bytes().index(b"\x08\x00\x05\x00CS")  # SpecificCharacterSet, the first element behind group 2
    bare.write_bytes(whole.read_bytes()[start:])
    images = OwnImages(tmp_path / "work")
    for file in (whole, bare):
        image = images.read(str(file))
        assert open_image(image.png).tobytes() == open_image(file).tobytes() == open_image(whole).tobytes()
        assert (image.patient, image.identifiers) == (patient_of(file), identifiers(file))
        assert image.patient == str(dataset.PatientID)


def test_what_an_expert_says_may_not_name_the_patient(tmp_path: Path) -> None:
    header = dcmread(CT)
    header.PatientName = "Doe^Jane"
    header.save_as(tmp_path / "a.dcm")
    shown = {"looks": [], "answer": {"thought": "Jane Doe has a nodule.", "text": "x"}}
    for key, change in (("demonstration", {"demonstration": shown}), ("answer", {"answers": ["x", "Jane Doe"]})):
        source = jsonl(tmp_path / "q.jsonl", {"question": "q?", "image": "a.dcm", "answer": "x"} | change)
        with pytest.raises(DataError, match=f"q.jsonl:1: {key} repeats the PatientName"):
            Own(source, tmp_path / "work").read()
