"""MedVIGIL in the columns of its published harness, on made files."""

import pytest

from data_prep.reading.published import Published
from data_prep.sets.medvigil import SET, read
from tests.kit.datasets import assert_round_trip, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.errors import DataError

MANIFEST = "case_id,question,gold_answer,risk_tier,source_dataset,image_file\nc1,Where?,left,L4,VQA-RAD,c1.png\n"
CHOICES = ",".join(f"choice_{letter}" for letter in "ABCDE")
COLUMNS = f"case_id,probe_id,probe_axis,probe_kind,question,{CHOICES},correct_letter,image_file\n"
PROBES = (
    "c1,c1__original,text,original,Where is it?,left,right,both,,Cannot be answered,A,c1.png\n"
    "c1,c1__roi_masked,image,roi_masked,Where is it?,left,right,both,,Cannot be answered,E,images_perturbed/c1_roi_masked.png\n"
    "c1,c1__knowledge_only,text,knowledge_only,Where is the heart?,left,right,both,,Cannot be answered,A,\n"
)


def published(folder, probes=PROBES):
    write_files(folder, {"manifest.csv": MANIFEST, "probes_mcq.csv": COLUMNS + probes})
    for number, name in enumerate(("images/c1.png", "images_perturbed/c1_roi_masked.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


def test_probes_of_a_case(build_set, tmp_path):
    source = published(tmp_path / "source")
    data_dir = build_set("medvigil", source)
    assert_round_trip(SET.name, read, source, data_dir)
    original, masked, knowledge = read_back(data_dir, "medvigil", "test")
    options = (("A", "left"), ("B", "right"), ("C", "both"), ("E", "Cannot be answered"))
    assert original.options == masked.options == options and (original.answer, masked.answer) == ("A", "E")
    assert masked.metadata == {
        "patient": "c1",
        "risk_tier": "L4",
        "source_dataset": "VQA-RAD",
        "probe_kind": "roi_masked",
        "probe_axis": "image",
    }
    assert original.images[0] != masked.images[0] and not knowledge.images


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("c2,x,text,original,Where?,left,right,,,no,A,c1.png\n", "probes_mcq.csv:2: case_id: manifest.csv has no case c2"),
        ("c1,x,text,original,Where?,left,right,,,no,D,c1.png\n", "probes_mcq.csv:2: correct_letter: got 'D'"),
        ("c1,x,text,original,Where?,left,right,,,no,A,c9.png\n", "probes_mcq.csv:2: no such image: c9.png"),
        ("c1,x,text,original,,left,right,,,no,A,c1.png\n", "probes_mcq.csv:2: question is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, probe, words):
    with pytest.raises(DataError, match=words):
        list(read(Published(published(tmp_path, probe)))["test"])
