"""Rows of verl and TRL become questions that are read, and built, as one's own."""

import base64
import io
import json

import pyarrow
import pytest

from data_prep import convert
from data_prep.convert import convert as converted
from tests.kit.datasets import parquet, read_back
from tests.kit.files import write_files
from tests.kit.images import noise, picture
from vitar_jax.data import questions
from vitar_jax.errors import DataError
from vitar_jax.processing.files import open_image

VERL = {
    "data_source": "med_box",
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>Which texture? A) flat B) rows"},
    ],
    "images": [{"bytes": picture(1), "path": "a.png"}],
    "reward_model": {"style": "rule", "ground_truth": "B"},
    "extra_info": {"split": "train", "index": 5, "answer": "no", "boxes": "[1]", "nested": [1]},
}
TRL = {
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which texture?"}]}],
    "image": {"bytes": picture(2, "JPEG"), "path": None},
    "solution": "<think>Rows.</think> <answer> rows </answer>",
}


def test_rows_of_verl(tmp_path, build_set):
    parquet(tmp_path / "train.parquet", [VERL, VERL | {"images": [], "prompt": [VERL["prompt"][1]]}])
    assert converted("verl", tmp_path / "train.parquet", tmp_path / "out") == 2
    first, second = questions.read(tmp_path / "out" / "questions.jsonl")
    assert first.question == "Which texture?" and (first.answer, first.options) == ("B", (("A", "flat"), ("B", "rows")))
    assert first.metadata == {"data_source": "med_box", "split": "train", "index": 5}
    assert open_image(first.images[0]).tobytes() == open_image(picture(1)).tobytes() and first.images[0].endswith(".png")
    assert (second.images, second.sample_id) == ((), "1")
    data_dir = build_set("own", tmp_path / "out" / "questions.jsonl")
    assert [sample.question for sample in read_back(data_dir, "own", "train")] == [first.question] * 2


def test_rows_of_trl(tmp_path):
    """Conversational or text, one image or several, embedded or files, a solution or an answer."""
    parquet(tmp_path / "train.parquet", [TRL])
    converted("trl", tmp_path / "train.parquet", tmp_path / "one")
    rows = [
        {"prompt": "<image>Which <image>grew?", "images": ["i/a.png", (tmp_path / "i" / "b.png").as_uri()], "answer": 2},
        {"prompt": [{"role": "user", "content": "What is a CT?"}], "solution": "an image"},
    ]
    table = "".join(json.dumps(row) + "\n" for row in rows)
    write_files(tmp_path, {"i/a.png": picture(1), "i/b.png": picture(2), "t.jsonl": table})
    converted("trl", tmp_path / "t.jsonl", tmp_path / "two")
    (first,) = questions.read(tmp_path / "one" / "questions.jsonl")
    second, third = questions.read(tmp_path / "two" / "questions.jsonl")
    assert (first.question, first.answer) == ("Which texture?", "rows")
    assert open_image(first.images[0]).tobytes() == open_image(picture(2, "JPEG")).tobytes()
    assert (second.question, second.answer, len(second.images)) == ("Which grew?", "2", 2)
    assert [open_image(path).tobytes() for path in second.images] == [open_image(picture(n)).tobytes() for n in (1, 2)]
    assert (third.question, third.answer, third.images) == ("What is a CT?", "an image", ())


OPTIONS = ["A) Lung B) Heart", "(A) Lung (B) Heart", "\nA. Lung\nB. Heart", "A: Lung B: Heart", "\n(A) Lung\n(B) Heart"]
GOLDS = ["B", "(B)", "b.", "Heart", r"\boxed{B}", r"It beats. $\boxed{\text{B}}$"]
GOLDS += ["<answer>B</answer>", r"<answer>\boxed{B}</answer>"]
TAILS = [
    "",
    " You FIRST think about the reasoning process. The final answer MUST BE put in \\boxed{}.",
    "\nAnswer with the option's letter from the given choices directly.",
]


def lines(folder, *rows):
    return write_files(folder, {"t.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}) / "t.jsonl"


@pytest.mark.parametrize("tail", TAILS)
def test_options_and_answers_in_the_forms_of_prompts(tmp_path, tail):
    prompts = [{"prompt": f"<image>Which organ? {marked}{tail}", "solution": gold} for marked in OPTIONS for gold in GOLDS]
    verl = [{"data_source": "x", **row, "reward_model": {"ground_truth": row["solution"]}} for row in prompts]
    for kind, rows in (("trl", prompts), ("verl", verl)):
        assert converted(kind, lines(tmp_path / kind, *rows), tmp_path / kind / "out") == len(rows)
        for sample in questions.read(tmp_path / kind / "out" / "questions.jsonl"):
            assert (sample.question, sample.answer) == ("Which organ?", "B")
            assert sample.options == (("A", "Lung"), ("B", "Heart"))
            assert sample.metadata.get("instruction", "") == tail.strip()


def test_questions_without_options_stay_whole(tmp_path):
    rows = [
        {"prompt": "Image A: CT. Image B: MRI. What changed?", "solution": "its size"},
        {"prompt": "Which vitamin is it?", "solution": "B"},
        {"prompt": "How wide is it?", "solution": r"It is \boxed{3 \text{cm}}."},
        {"prompt": "Compare A. left B. right", "solution": "larger"},
    ]
    converted("trl", lines(tmp_path, *rows), tmp_path / "out")
    read = questions.read(tmp_path / "out" / "questions.jsonl")
    assert [sample.question for sample in read] == [row["prompt"] for row in rows]
    assert [sample.answer for sample in read] == ["its size", "B", "3 cm", "larger"]
    assert not any(sample.options for sample in read)


def test_nan_and_lists_as_text(tmp_path):
    write_files(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    nan = float("nan")
    row = {
        "prompt": "What?",
        "data_source": "s",
        "image": nan,
        "images": "['a.png', 'b.png']",
        "reward_model": {"ground_truth": "x"},
        "extra_info": {"split": nan, "index": 3, "site": None, "note": "None"},
    }
    converted("verl", lines(tmp_path, row), tmp_path / "out")
    (sample,) = questions.read(tmp_path / "out" / "questions.jsonl")
    assert sample.metadata == {"data_source": "s", "index": 3, "note": "None"} and len(sample.images) == 2
    with pytest.raises(DataError, match="ground_truth is missing"):
        converted("verl", lines(tmp_path, row | {"reward_model": {"ground_truth": nan}}), tmp_path / "other")


def test_messages_and_objects_as_text(tmp_path):
    """As pandas writes them to a table of text."""
    row = {key: str(value) if isinstance(value, list | dict) else value for key, value in VERL.items()} | {"images": "[]"}
    converted("verl", lines(tmp_path, row), tmp_path / "out")
    (sample,) = questions.read(tmp_path / "out" / "questions.jsonl")
    assert (sample.question, sample.answer, sample.metadata["index"]) == ("Which texture?", "B", 5)


@pytest.mark.parametrize(
    ("prompt", "solution", "words"),
    [
        ("Which? A) Lung B) Heart", "C", "answer: got 'C', expected one of the options A .Lung., B .Heart."),
        ("Which? A) Lung B) Heart", "Kidney", "answer: got 'Kidney', expected one of the options"),
        ("Which? A) Lung B) Lung", "Lung", "answer: got 'Lung', which fits the options A and B"),
        ("Which? A) Lung B) Heart. Keep it brief.", "B", "cannot tell where the last option ends"),
        ("Which? A) Lung B) Heart", "<answer>A</answer> or <answer>B</answer>", "solution: got .* one <answer>"),
        ("Which? A) Lung B) Heart", r"\boxed{}", "solution: got .* not empty"),
        ("Which? A) Lung B) Heart", r"\boxed{A} or \boxed{B}", r"solution: got .* one \\boxed"),
    ],
)
def test_an_unclear_answer_or_option_is_refused(tmp_path, prompt, solution, words):
    with pytest.raises(DataError, match=f"t.jsonl:1: {words}"):
        converted("trl", lines(tmp_path, {"prompt": prompt, "solution": solution}), tmp_path / "out")


def test_images_as_text_and_frames(tmp_path):
    """Base64 and data URIs, as JSON needs them; a frame stays chosen."""
    content = picture(1, size=(60, 50))
    text = base64.b64encode(content).decode()
    pages = io.BytesIO()
    shown = [noise(20, 10, "RGB", seed) for seed in range(3)]
    shown[0].save(pages, "TIFF", save_all=True, append_images=shown[1:])
    write_files(tmp_path, {"pages.tif": pages.getvalue()})
    forms = [text, f"data:image/png;base64,{text}", {"bytes": text, "path": "a.png"}, {"image": text}]
    source = lines(tmp_path, *({"prompt": f"Which {n}?", "image": form, "answer": "x"} for n, form in enumerate(forms)))
    converted("trl", source, tmp_path / "out")
    for sample in questions.read(tmp_path / "out" / "questions.jsonl"):
        assert open_image(sample.images[0]).tobytes() == open_image(content).tobytes()
    frames = [{"prompt": f"{n}?", "image": f"pages.tif#frame={n}", "answer": "x"} for n in (2, 1)]
    converted("trl", lines(tmp_path, *frames), tmp_path / "frames")
    samples = questions.read(tmp_path / "frames" / "questions.jsonl")
    assert [open_image(sample.images[0]).tobytes() for sample in samples] == [shown[2].tobytes(), shown[1].tobytes()]


@pytest.mark.parametrize("image", ["data:image/png,abc", "data:image/png;base64,iVBOR!", base64.b64encode(bytes(999)).decode()])
def test_a_damaged_text_is_refused_in_one_short_line(tmp_path, image):
    with pytest.raises(DataError, match="t.jsonl:1: image 0: ") as caught:
        converted("trl", lines(tmp_path, {"prompt": "Which?", "image": image, "answer": "x"}), tmp_path / "out")
    assert len(str(caught.value)) < 400 and "AAAA" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("verl", {"reward_model": {"style": "rule"}}, "reward_model.ground_truth is missing"),
        ("verl", {"reward_model": None}, "reward_model.ground_truth is missing"),
        ("verl", {"data_source": None}, "data_source is"),
        ("verl", {"prompt": [{"role": "system", "content": "x"}]}, "prompt: got .* from the user"),
        ("verl", {"prompt": "<image>"}, "prompt: got '<image>'"),
        ("verl", {"images": "a.png"}, "images: got 'a.png', expected a list"),
        ("verl", {"images": ["none.png"]}, "image 0: no such file: .*none.png"),
        ("verl", {"images": [3]}, r"image 0: expected an image as bytes or a path, got int"),
        ("trl", {}, "answer is missing"),
    ],
)
def test_what_is_wrong_is_named_and_leaves_nothing(tmp_path, kind, change, words):
    rows = [{**VERL, "images": []}, {**VERL, "images": [], **change}]
    source = write_files(tmp_path, {"t.jsonl": "".join(json.dumps(row) + "\n" for row in rows[kind == "trl" :])}) / "t.jsonl"
    with pytest.raises(DataError, match=f"t.jsonl:[12]: {words}"):
        converted(kind, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_places_that_are_wrong_are_named(tmp_path, monkeypatch, capsys):
    parquet(tmp_path / "bad.parquet", [TRL | {"image": {"bytes": b"x", "path": None}}])
    with pytest.raises(DataError, match="bad.parquet, row 0: image 0: .*not an image"):
        converted("trl", tmp_path / "bad.parquet", tmp_path / "out")
    parquet(tmp_path / "none.parquet", [], pyarrow.schema([("prompt", pyarrow.string())]))
    for source, words in (("none.parquet", "no rows found"), ("t.csv", "unknown file type, expected .parquet or .jsonl")):
        with pytest.raises(DataError, match=words):
            converted("trl", tmp_path / source, tmp_path / "out")
    write_files(tmp_path, {"there/x": ""})
    monkeypatch.setattr("sys.argv", ["convert", "trl", f"--source={tmp_path}/t.jsonl", f"--output={tmp_path}/there"])
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    assert stopped.value.code == 2 and capsys.readouterr().err == f"error: {tmp_path}/there: already exists\n"
