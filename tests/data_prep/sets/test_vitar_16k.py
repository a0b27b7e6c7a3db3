"""ViTAR-16K: options out of the question, boxes from 0 to 1 into pixels."""

import pytest

from data_prep.reading.published import Published
from data_prep.sets.vitar_16k import SET, read
from tests.kit.datasets import assert_round_trip, parquet, read_back
from tests.kit.images import picture
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError

# Its published example.
QUESTION = (
    "<image>What is the type of tumor at image coordinates (0.4, 0.55)? "
    "A) Glioma B) Meningioma C) Pituitary D) Other normal area"
)


def row(**change):
    image = {"bytes": picture(3, size=(200, 100)), "path": "2754.jpg"}
    return {"image": image, "question": QUESTION, "answer": "C", "bbox": [[0.33, 0.5, 0.45, 0.62]]} | change


def test_the_published_example(build_set, tmp_path):
    source = tmp_path / "source"
    several = row(bbox=[[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4]], question="Is it large?", answer="yes")
    for shard, rows in enumerate(([row()], [several])):
        parquet(source / f"train-0000{shard}-of-00002.parquet", rows)
    data_dir = build_set("vitar_16k", source)
    assert_round_trip(SET.name, read, source, data_dir)
    first, second = read_back(data_dir, "vitar_16k", "train")
    assert first.question == "What is the type of tumor at image coordinates (0.4, 0.55)?" and first.answer == "C"
    assert first.options == (("A", "Glioma"), ("B", "Meningioma"), ("C", "Pituitary"), ("D", "Other normal area"))
    (box,) = first.boxes
    assert box.xyxy == pytest.approx((66, 50, 90, 62)) and box.frame == "original"
    assert second.boxes[0] == Box(0, 0, 200, 100, "original") and len(second.boxes) == 2
    assert (second.answer, second.options) == ("yes", ())


@pytest.mark.parametrize("gold", ["C", "(C)", "Pituitary", "C) Pituitary"])
@pytest.mark.parametrize("marks", ["A) {} B) {} C) {}", "(A) {} (B) {} (C) {}", "\nA. {}\nB. {}\nC. {}", "A: {} B: {} C: {}"])
@pytest.mark.parametrize("instruction", ["", " Answer with the option's letter directly."])
def test_options_in_other_forms(tmp_path, gold, marks, instruction):
    question = "<image>Which type? " + marks.format("Glioma", "Meningioma", "Pituitary") + instruction
    parquet(tmp_path / "train-00000-of-00001.parquet", [row(question=question, answer=gold)])
    (record,) = read(Published(tmp_path))["train"]
    assert (record.sample.question, record.sample.answer) == ("Which type?", "C")
    assert [text for _, text in record.sample.options] == ["Glioma", "Meningioma", "Pituitary"]
    assert record.sample.metadata == ({"instruction": instruction.strip()} if instruction else {})


def test_a_flat_box_is_one_box(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [row(bbox=[0.1, 0.2, 0.3, 0.4])])
    (record,) = read(Published(tmp_path))["train"]
    assert record.sample.boxes[0].xyxy == pytest.approx((20, 20, 60, 40))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bbox": []}, "bbox: got"),
        ({"bbox": [[0.1, 0.2, 0.3]]}, "bbox: got"),
        ({"bbox": [[0.3, 0.2, 0.1, 0.4]]}, "bbox: got"),
        ({"bbox": [[10.0, 20.0, 30.0, 40.0]]}, "bbox: got .* from 0 to 1"),
        ({"bbox": [[0.1, 0.2, 0.3, float("nan")]]}, "bbox: got"),
        ({"answer": "Lung"}, "answer: got 'Lung', expected one of the options A .Glioma."),
        ({"question": QUESTION + ". Keep it brief."}, "cannot tell where the last option ends"),
        ({"question": "What is it?"}, "question: got .* because the answer is a letter"),
        ({"image": {"bytes": b"x", "path": ""}}, "image: .*not an image"),
        ({"answer": " "}, "answer is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    parquet(tmp_path / "train-00000-of-00001.parquet", [row(**change)])
    with pytest.raises(DataError, match=f"train-00000-of-00001.parquet, row 0: {words}"):
        list(read(Published(tmp_path))["train"])
