"""PathVQA, and VQA-RAD's copy on the hub, which has the same form."""

import pytest

from data_prep.reading.published import Published
from data_prep.sets import path_vqa, vqa_rad
from tests.kit.datasets import assert_round_trip, card, parquet, read_back
from tests.kit.images import picture
from vitar_jax.errors import DataError


def published(folder, splits):
    for n, split in enumerate(splits):
        for shard in range(2):
            rows = [
                {"image": {"bytes": picture(10 * n + shard), "path": "x.jpg"}, "question": f"{split} {row}?", "answer": "yes"}
                for row in range(20)
            ]
            parquet(folder / "data" / f"{split}-0000{shard}-of-00002-abc.parquet", rows)
    return folder


@pytest.mark.parametrize("module", [path_vqa, vqa_rad])
def test_rows_in_parquet(build_set, tmp_path, module):
    splits = ("train", "validation", "test") if module is path_vqa else ("train", "test")
    source = published(tmp_path / "source", splits)
    data_dir = build_set(module.SET.name, source)
    assert_round_trip(module.SET.name, module.read, source, data_dir)
    samples = read_back(data_dir, module.SET.name, "test")
    assert len({sample.sample_id for sample in samples}) == len(samples) == 40
    assert (samples[3].question, samples[3].answer, samples[3].options) == ("test 3?", "yes", ())
    made = card(data_dir, module.SET.name)
    assert made["splits"]["test"] == {"questions": 40, "images": 2} and len(made["files"]) == 2 * len(splits)
    assert "test has 40 questions; the authors report" in made["notes"][-1]


def test_what_is_wrong_is_named(tmp_path):
    source = published(tmp_path, ("train", "validation"))
    with pytest.raises(DataError, match=r"no data/test-\*.parquet found"):
        path_vqa.read(Published(source))
    good = {"image": {"bytes": picture(1), "path": None}, "question": "a?", "answer": "b"}
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    for change, words in (
        ({"answer": None}, "row 1: answer is missing"),
        ({"image": {"bytes": None, "path": "x.jpg"}}, "row 1: image: got NoneType"),
        ({"image": None}, "row 1: image: got NoneType"),
    ):
        parquet(file, [good, good | change])
        with pytest.raises(DataError, match=f"test-00000-of-00001.parquet, {words}"):
            list(path_vqa.read(Published(source))["test"])
    parquet(file, [{"picture": "x", "question": "a?", "answer": "b"}])
    with pytest.raises(DataError, match="expected them to include 'image' and 'question' and 'answer'"):
        list(path_vqa.read(Published(source))["test"])
