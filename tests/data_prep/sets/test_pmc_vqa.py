"""PMC-VQA in the forms of both its versions."""

import zipfile

import pytest

from data_prep.reading.published import Published
from data_prep.sets.pmc_vqa import SET, read
from tests.kit.datasets import assert_round_trip, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.errors import DataError

ONE = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
TWO = "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split\n"


def published(folder):
    write_files(
        folder,
        {
            "test_clean.csv": ONE + "PMC1_F1.jpg,What is it?,Focal pattern, A:Diffuse , B:Focal pattern,C:No,D:Unknown,B\n",
            "test_2.csv": TWO + '7,PMC2_Fig4_41.jpg,"A caption, long",Where?,A: left,B:right,C:both,D:,C,test\n',
        },
    )
    for name, member in (("images.zip", "images/PMC1_F1.jpg"), ("images_2.zip", "figures/PMC2_Fig4_41.jpg")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr(member, picture(len(member), "JPEG"))
    return folder


def test_both_versions(build_set, tmp_path):
    source = published(tmp_path / "source")
    data_dir = build_set("pmc_vqa", source)
    assert_round_trip(SET.name, read, source, data_dir)
    (first,), (second,) = (read_back(data_dir, "pmc_vqa", split) for split in ("test_clean", "test_2"))
    assert first.options == (("A", "Diffuse"), ("B", "Focal pattern"), ("C", "No"), ("D", "Unknown")) and first.answer == "B"
    assert second.options == (("A", "left"), ("B", "right"), ("C", "both"), ("D", "")) and second.answer == "C"
    assert second.metadata == {"figure": "PMC2_Fig4_41.jpg", "caption": "A caption, long"}


@pytest.mark.parametrize("gold", ["B", "b.", "(B)", "right", "B: right"])
def test_a_gold_answer_becomes_a_letter(tmp_path, gold):
    table = TWO + f"7,PMC2_Fig4_41.jpg,x,Where?,A: left,B:right,C:both,D:,{gold},test\n"
    (record,) = read(Published(write_files(published(tmp_path), {"test_2.csv": table})))["test_2"]
    assert record.sample.answer == "B"


def test_options_of_one_text_are_all_right(tmp_path):
    table = TWO + "7,PMC2_Fig4_41.jpg,x,Where?,A: left,B:right,C:right,D:,C,test\n"
    (record,) = read(Published(write_files(published(tmp_path), {"test_2.csv": table})))["test_2"]
    assert (record.sample.answer, record.sample.answers) == ("C", ("C", "B"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            ONE + "PMC1_F1.jpg,What?,x,A:1,B:2,C:3,D:4,E\n",
            "test_clean.csv:2: Answer_label: got 'E', expected one of the options A .1., B",
        ),
        (ONE + "PMC9.jpg,What?,x,A:1,B:2,C:3,D:4,A\n", "test_clean.csv:2: no such image: PMC9.jpg"),
        (ONE + "PMC1_F1.jpg,,x,A:1,B:2,C:3,D:4,A\n", "test_clean.csv:2: Question is missing"),
        ("Figure_path,Question\n", "test_clean.csv:1: got the columns"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, table, words):
    source = write_files(published(tmp_path), {"test_clean.csv": table})
    with pytest.raises(DataError, match=words):
        list(read(Published(source))["test_clean"])


def test_no_table_or_no_images(tmp_path):
    with pytest.raises(DataError, match="no train.csv or .* found"):
        read(Published(tmp_path))
    with pytest.raises(DataError, match="no images or figures or .* found"):
        read(Published(write_files(tmp_path, {"test.csv": ONE})))
