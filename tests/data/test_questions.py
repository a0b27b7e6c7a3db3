"""A user's own questions: both kinds of file give the same samples, and what is wrong with a row is named."""

import base64
import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit.images import picture
from vitar_jax.data.questions import read, read_rows, write
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.episodes.regions import Box, Mask, Unit, bounding_box, to_frame
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample, letters
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image

CSV = """id,image,question,options,answer,ward
7,a.png,"Which texture,
do you think?",flat | rows,B,3
x,/elsewhere/b.dcm,Is it large?,,,
t,,What is a CT?,,,4
"""
ROWS: list[dict[str, Any]] = [
    {
        "id": 7,
        "image": "a.png",
        "question": "Which texture,\ndo you think?",
        "options": ["flat", "rows"],
        "answer": "B",
        "ward": "3",
    },
    {"id": "x", "image": "/elsewhere/b.dcm", "question": "Is it large?", "options": None, "answer": ""},
    {"id": "t", "question": " What is a CT? ", "images": [], "ward": "4"},
]


def csv(directory: Path, text: str | bytes) -> Path:
    path = directory / "questions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(directory: Path, *rows: Any) -> Path:
    path = directory / "questions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_both_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    samples = read(csv(tmp_path, CSV))
    assert read(csv(tmp_path, CSV.encode("utf-8-sig"))) == samples  # as spreadsheets write it
    assert read(jsonl(tmp_path, *ROWS)) == samples
    assert [sample.sample_id for sample in samples] == ["7", "x", "t"]
    assert samples[0].images == (str(tmp_path / "a.png"),) and samples[1].images == ("/elsewhere/b.dcm",)
    assert samples[0].options == (("A", "flat"), ("B", "rows")) and samples[0].answer == "B"
    assert samples[0].metadata == {"ward": "3"} and samples[2].images == () and samples[2].answer == ""
    images = tmp_path / "images"
    images.mkdir()
    assert read(csv(tmp_path, CSV), images)[0].images == (str(images / "a.png"),)


def test_an_image_may_be_a_frame_or_text_that_holds_it(tmp_path: Path) -> None:
    """In both kinds of file, also if it is longer than the cells that Python's reader takes."""
    large, text = (base64.b64encode(picture(1, "BMP", size)).decode() for size in ((300, 200), (8, 6)))
    images = [f"data:image/bmp;base64,{large}", text, "scan.dcm#frame=12"]
    rows = "".join(f'{n},"{image}",Which?\n' for n, image in enumerate(images))
    by_csv = read(csv(tmp_path, f"id,image,question\n{rows}"))
    by_jsonl = read(jsonl(tmp_path, *({"id": n, "image": image, "question": "Which?"} for n, image in enumerate(images))))
    assert by_csv == by_jsonl
    assert [sample.images for sample in by_csv] == [(images[0],), (text,), (str(tmp_path / images[2]),)]
    assert [open_image(sample.images[0]).size for sample in by_csv[:2]] == [(300, 200), (8, 6)]
    (long,) = read(jsonl(tmp_path, {"image": "ä" * 300, "question": "Which?"}))  # no file can have this name
    assert str(long.images[0]).endswith("ä" * 300)
    (tmp_path / unicodedata.normalize("NFD", "Schädel.dcm")).touch()
    (named,) = read(jsonl(tmp_path, {"image": "Schädel.dcm#frame=3", "question": "Which?"}))
    assert Path(str(named.images[0]).removesuffix("#frame=3")).exists()


def test_several_images(tmp_path: Path) -> None:
    listed = read(jsonl(tmp_path, {"question": "Which grew?", "images": ["a.png", "b.png"]}))
    assert listed[0].images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    assert read(csv(tmp_path, "images,question\na.png|b.png,Which grew?\n")) == listed


def test_a_question_without_an_id_is_called_by_what_it_asks(tmp_path: Path) -> None:
    """So an answer stays with its question when rows are moved, and goes when the question is changed."""
    rows = [{"question": "Large?", "image": name} for name in ("a.png", "b.png")] + [{"question": "Small?", "image": "a.png"}]
    forward, backward = read(jsonl(tmp_path, *rows)), read(jsonl(tmp_path, *rows[::-1]))
    assert forward == backward[::-1] and len({sample.sample_id for sample in forward}) == 3


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    boxes = (Box(1, 2.5, 30, 40, "original"),)
    plain = Sample("p", "Wo ist die Läsion?", (str(tmp_path / "images" / "a.png"),), "B", (("A", "links"), ("B", "rechts")))
    mask = Mask.of(np.arange(12).reshape(3, 4) % 5 == 1, "original")
    looks = (Look("I mark it.", "mark", boxes), Look("Darker.", "window", (mask,), 1, {"centre": 40.5, "width": 80}))
    shown = Demonstration(looks, Answer("It is on the left | or is it?", "B"))
    samples = (plain, replace(plain, sample_id="q", boxes=boxes, demonstration=shown, metadata={"kind": "side", "n": 3}))
    write(tmp_path / "questions.jsonl", samples)
    assert read(tmp_path / "questions.jsonl") == samples
    assert json.loads((tmp_path / "questions.jsonl").read_text().splitlines()[1])["images"] == ["images/a.png"]


@pytest.mark.parametrize(
    ("unit", "box", "pixels"),
    [
        ("", [50, 20, 100, 40], (50, 20, 100, 40)),
        ("pixels", [0, 0, 1, 1], (0, 0, 1, 1)),
        ("normalized", [0.25, 0.2, 0.5, 0.4], (50, 20, 100, 40)),
        ("1000", [250, 200, 500, 400], (50, 20, 100, 40)),
    ],
)
def test_boxes_are_in_the_unit_that_is_declared(unit: Any, box: list[float], pixels: tuple[float, ...], tmp_path: Path) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    look = {"thought": "I mark it.", "tool": "mark", "regions": [box]}
    shown = {"looks": [look], "answer": {"thought": "So it is."}}
    row = {"image": "a.png", "question": "Which?", "answer": "b", "boxes": [box], "demonstration": shown}
    (listed,) = read(jsonl(tmp_path, row), boxes=unit)
    (table,) = read(csv(tmp_path, f'image,question,boxes\na.png,Which?,"[{box}]"\n'), boxes=unit)
    assert listed.boxes == table.boxes and listed.boxes[0].xyxy == pytest.approx(pixels)
    assert listed.boxes[0].frame == "original" and listed.demonstration
    (region,) = listed.demonstration.looks[0].regions
    assert to_frame(bounding_box(region), "original", (200, 100), (200, 100)).xyxy == pytest.approx(pixels)


def test_boxes_of_another_unit_are_refused(tmp_path: Path) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    shares = [0.6, 0.6, 0.8, 0.8]
    old = {"thoughts": ["I mark it.", "So it is."], "tool": "mark", "boxes": [shares]}
    for row in ({"boxes": [shares]}, {"boxes": [[10, 10, 20, 20], shares]}, {"demonstration": old}):
        with pytest.raises(DataError, match="questions.jsonl:1: .*--boxes"):
            read(jsonl(tmp_path, {"image": "a.png", "question": "Which?", **row}))
    outside: dict[Unit, list[float]] = {"normalized": [0.5, 0.5, 1.1, 1], "1000": [10, 10, 1200, 900]}
    for unit, box in outside.items():
        with pytest.raises(DataError, match="questions.jsonl:1: boxes: .* within the image of size 200 x 100"):
            read(jsonl(tmp_path, {"image": "a.png", "question": "Which?", "boxes": [box]}), boxes=unit)
    with pytest.raises(ConfigError, match="boxes: got 'pixel'"):
        read(jsonl(tmp_path, {"question": "Which?"}), boxes="pixel")  # type: ignore[arg-type]


def test_the_older_form_of_a_demonstration_is_read(tmp_path: Path) -> None:
    old = {"thoughts": ["I mark it.", "So it is."], "tool": "mark", "boxes": [[1, 2, 3, 4]]}
    alone = {"thoughts": ["I look, then I answer."], "tool": "", "boxes": []}
    rows = [{"question": f"q{n}", "answer": "b", "demonstration": shown} for n, shown in enumerate((old, alone))]
    first, second = read(jsonl(tmp_path, *rows))
    look = Look("I mark it.", "mark", (Box(1, 2, 3, 4, "original"),))
    assert first.demonstration == Demonstration((look,), Answer("So it is.", "b"))
    assert second.demonstration == Demonstration((), Answer("I look, then I answer.", "b"))


def test_recipes_read_it_too(tmp_path: Path) -> None:
    config = SourceConfig("questions", options={"file": str(csv(tmp_path, CSV))})
    assert load_source(config) == read(tmp_path / "questions.csv")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ":1: got the columns"),
        ("image,quetsion\na,b\n", ":1: .*'quetsion'"),
        ("question,question\na,b\n", ":1: got the columns"),
        ("question\n", "no questions"),
        ("question,image\na,b\n\n,c\n", ":4: question is missing"),
        ("question,image\na,b,c\n", ":2: got 3 cells"),
        ('question,image\n"a\nb",c\n"d",e,f\n', ":4: got 3 cells"),
        ("id,question\n1,a\n2,b\n1,c\n", ":4: id '1' occurs twice"),
        ("question,image\na,b\na,b\n", ":3: question without an id"),
        ("question,image,images\na,b,c\n", ":2: got both image and images"),
        ("question,options\na,b||c\n", ":2: options: got ''"),
        ("question,options\na," + "|".join("abcdefghijklmnopqrstuvwxyz0") + "\n", ":2: options: got 27"),
        ('question\n"a\n', "cannot be read"),
        (b"question\n\xff\n", "cannot be read"),
    ],
)
def test_a_bad_row_of_csv_is_named(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"questions.csv.*{words}"):
        read(csv(tmp_path, text))


@pytest.mark.parametrize(
    "row, words",
    [
        ("{", "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ([], "got a list"),
        ({"image": "a"}, "question is missing"),
        ({"question": ""}, "question is missing"),
        ({"question": ["a"]}, "question: got .* text"),
        ({"question": True}, "question: got True"),
        ({"question": "\ud800"}, "question: got .* UTF-8"),
        ({"question": "a", "image": False}, "image: got False"),
        ({"question": "a", "images": {"b": 1}}, "images: got .* list"),
        ({"question": "a", "options": ["b", None]}, "options: got None"),
        ({"question": "a", "boxes": "1|2|3|4"}, "boxes: got .* expected boxes"),
        ({"question": "a", "boxes": [[1, 2, 3]]}, "boxes: got .* expected boxes"),
        ({"question": "a", "boxes": [["b", 2, 3, 4]]}, "boxes: got .* expected boxes"),
        ({"question": "a", "boxes": [[3, 2, 1, 4]]}, "boxes: .* is empty"),
        ({"question": "a", "boxes": [[1, 2, 3, 10**400]]}, "boxes: got .* expected boxes"),
        ({"question": "a", "demonstration": []}, "demonstration: got .* thoughts, tool and boxes"),
        ({"question": "a", "demonstration": {"looks": [], "answer": "b"}}, "demonstration: looks must be"),
        ({"question": "a", "demonstration": {"looks": [{}], "answer": {}}}, "demonstration: look 0: tool: got None"),
        (
            {"question": "a", "demonstration": {"looks": [{"tool": "zoom", "image": -1}], "answer": {}}},
            "demonstration: look 0: image",
        ),
        (
            {"question": "a", "demonstration": {"looks": [{"tool": "zoom", "regions": [{"shape": [2, 2]}]}], "answer": {}}},
            "demonstration: look 0: regions: ",
        ),
        (
            {"question": "a", "demonstration": {"thoughts": [], "tool": "mark", "boxes": []}},
            "demonstration: thoughts are missing",
        ),
        ({"question": "a", "demonstration": {"thoughts": ["b"], "tool": 1.5, "boxes": [1]}}, "demonstration: boxes: "),
    ],
)
def test_a_bad_row_of_jsonl_is_named(row: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"questions.jsonl:3: {words}"):
        read(jsonl(tmp_path, {"question": "fine"}, "", row))


def test_a_place_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.csv"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="questions.txt: .*csv or .jsonl"):
        read(tmp_path / "questions.txt")
    with pytest.raises(DataError, match="nowhere: .*folder"):
        read(csv(tmp_path, CSV), tmp_path / "nowhere")


def test_options_get_letters() -> None:
    assert letters(["flat", "rows"], "--options") == (("A", "flat"), ("B", "rows"))
    with pytest.raises(DataError, match="--options: got 27"):
        letters([""] * 27, "--options")


ANSWERED = [
    ("Right lung", "B"),
    ("right  lung.", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("B. Right lung", "B"),
    (0, "A"),
    (2, "B"),
    (2.0, "B"),
]


@pytest.mark.parametrize(("gold", "letter"), ANSWERED)
def test_a_gold_answer_becomes_a_letter_in_both_kinds_of_file(gold: Any, letter: str, tmp_path: Path) -> None:
    (sample,) = read(jsonl(tmp_path, {"question": "Which?", "options": ["Left lung", "Right lung"], "answer": gold}))
    assert sample.answer == letter
    (sample,) = read(csv(tmp_path, f"question,options,answer\nWhich?,Left lung|Right lung,{gold}\n"))
    assert sample.answer == letter


@pytest.mark.parametrize("gold", ["Lung", "C", 1, 3, "A and B", "Left lung or right lung", "(A) Right lung"])
def test_a_gold_answer_that_fits_no_single_option_is_refused(gold: Any, tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"question": "Which?", "options": ["Left lung", "Right lung"], "answer": gold})
    with pytest.raises(DataError, match=rf"questions.jsonl:1: answer: got '{re.escape(str(gold))}'"):
        read(file)


WRITTEN = ["['Left lung', 'Right lung']", '["Left lung", "Right lung"]', "['Left lung' 'Right lung']", "Left lung | Right lung"]


@pytest.mark.parametrize("cell", [*WRITTEN, '{"A": "Left lung", "B": "Right lung"}', "['A. Left lung', 'B. Right lung']"])
def test_options_that_other_programs_wrote_are_a_list(cell: str, tmp_path: Path) -> None:
    doubled = cell.replace('"', '""')
    from_csv = read(csv(tmp_path, f'question,options,answer\nWhich?,"{doubled}",right lung\n'))
    assert from_csv == read(jsonl(tmp_path, {"question": "Which?", "options": cell, "answer": "B"}))
    assert from_csv[0].options == (("A", "Left lung"), ("B", "Right lung"))


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("cell", ["['a.png', 'b.png']", '["a.png", "b.png"]', "['a.png' 'b.png']"])
def test_images_that_other_programs_wrote_are_a_list(key: str, cell: str, tmp_path: Path) -> None:
    (sample,) = read(jsonl(tmp_path, {"question": "Which grew?", key: cell}))
    assert sample.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))


def test_several_answers(tmp_path: Path) -> None:
    options = {"options": ["flat", "rows", "checks"]}
    rows: list[dict[str, Any]] = [
        {"question": "a", "answers": ["left", "to the left"]},
        {"question": "b", "answer": "['left', 'to the left']"},
        {"question": "c", "answer": "rows", "answers": ["C", "rows"], **options},
        {"question": "d", "answer": ["rows"], **options},
        {"question": "e", "answer": "[3, 5]"},
        {"question": "f", "answer": "A", "options": ["flat", "rows", "Flat"]},
    ]
    samples = read(jsonl(tmp_path, *rows))
    expected = [("left", ("left", "to the left"))] * 2 + [("B", ("C", "B")), ("B", ()), ("[3, 5]", ()), ("A", ("A", "C"))]
    assert [(sample.answer, sample.answers) for sample in samples] == expected
    write(tmp_path / "again.jsonl", samples)
    assert [(sample.answer, sample.answers) for sample in read(tmp_path / "again.jsonl")] == expected
    with pytest.raises(DataError, match="answer: got 'A', which is not one of the answers B, C"):
        read(jsonl(tmp_path, {"question": "a", "answer": "flat", "answers": ["B", "C"], **options}))


def test_the_answer_of_a_demonstration_becomes_a_letter(tmp_path: Path) -> None:
    shown = {"looks": [], "answer": {"thought": "It is so.", "text": "rows"}}
    row = {"question": "a", "options": ["flat", "rows"], "answer": "B", "demonstration": shown}
    (sample,) = read(jsonl(tmp_path, row))
    assert sample.demonstration == Demonstration((), Answer("It is so.", "B"))
    shown["answer"] = {"text": "checks"}
    with pytest.raises(DataError, match="questions.jsonl:1: demonstration: answer: got 'checks'"):
        read(jsonl(tmp_path, row))


def test_nan_is_missing(tmp_path: Path) -> None:
    """As `json.dumps` writes a row of pandas."""
    nan = float("nan")
    row = {"id": nan, "image": nan, "options": nan, "answer": nan, "boxes": nan, "demonstration": nan, "split": nan}
    assert read(jsonl(tmp_path, {"question": "a", **row})) == read(jsonl(tmp_path, {"question": "a"}))
    typed = read(csv(tmp_path, "id,question,answer\n1,a,nan\n2,b,None\n3,c,N/A\n4,d,NA\n5,e,\n"))
    assert [sample.answer for sample in typed] == ["nan", "None", "N/A", "NA", ""]
    for row in ({"options": ["a", nan]}, {"images": [nan]}, {"answers": [nan]}, {"answer": float("inf")}):
        with pytest.raises(DataError, match="questions.jsonl:1: .*: got (nan|inf), expected text"):
            read(jsonl(tmp_path, {"question": "a", **row}))


def test_a_file_is_found_under_either_form_of_its_name(tmp_path: Path) -> None:
    """As macOS and Linux write it."""
    composed, decomposed = (unicodedata.normalize(form, "Läsion/ä.png") for form in ("NFC", "NFD"))
    for there, written in ((composed, decomposed), (decomposed, composed)):
        file = tmp_path / there
        file.parent.mkdir()
        file.touch()
        (sample,) = read(jsonl(tmp_path, {"question": "a", "image": written}))
        assert sample.images == (str(file),)
        file.unlink()
        file.parent.rmdir()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_all_bad_rows_are_collected(kind: str, tmp_path: Path) -> None:
    rows = [
        {"id": 1, "question": "a", "options": "x|y", "answer": "z"},
        {"id": 2, "question": "b", "options": "x|y", "answer": "x"},
        {"id": 3, "question": ""},
        {"id": 2, "question": "c"},
    ]
    if kind == "csv":
        columns = ("id", "question", "options", "answer")
        cells = [",".join(str(row.get(key, "")) for key in columns) for row in rows]
        file, first = csv(tmp_path, "\n".join([",".join(columns), *cells, "5,e,,,,"])), 2
    else:
        file, first = jsonl(tmp_path, *rows, "{"), 1
    wrong: list[DataError] = []
    assert [(where, sample.sample_id) for where, sample in read_rows(file, wrong=wrong)] == [(f"{file}:{first + 1}", "2")]
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value) == f"{wrong[0]} (and 3 more invalid records)"
    lines = [str(error).removeprefix(f"{file}:").split(":")[0] for error in wrong]
    assert lines == [str(first + n) for n in (0, 2, 3, 4)] and f"first at {file}:{first + 1}" in str(wrong[2])
