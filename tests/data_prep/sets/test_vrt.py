"""VRT's training set and benchmark: what is read of TFRecords in their published form, and what is refused."""

import json

import numpy as np
import pytest

from data_prep.reading.published import Published
from data_prep.sets import vrt_80k, vrt_bench
from tests.kit.datasets import assert_round_trip, card, read_back
from tests.kit.images import picture
from tests.kit.tfrecords import write_examples
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Answer, Demonstration
from vitar_jax.errors import DataError

WIDTH, HEIGHT = SIZE = (40, 30)
IMAGE = picture(5, size=SIZE)


def pixels(left: int, top: int, side: int) -> np.ndarray:
    array = np.zeros((HEIGHT, WIDTH), bool)
    array[top : top + side, left : left + side] = True
    return array


def coco(array: np.ndarray, *, compressed: bool = True) -> dict:
    """Run lengths as COCO has them, encoded independently of the package if they are not compressed."""
    if compressed:
        return {"size": [*array.shape], "counts": Mask.of(array, "original").counts.decode()}
    flat = array.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return {"size": [*array.shape], "counts": np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()}


A, B, C = pixels(2, 3, 6), pixels(20, 10, 9), pixels(30, 0, 4)


def training(**change) -> dict:
    candidate = {
        "id": 1,
        "question": "Which is larger?",
        "reasoning": "A disc (<ver><obj7></ver>) and a ring (<ver><obj2></ver>); the ring (<ver><obj2></ver>) is larger.",
        "answer_objects": ["<obj2>"],
        "answer_caption": "The ring (<vea><obj2></vea>).",
        "score": 9,
    } | change
    annotations = {
        "<obj2>": {"segmentation": [coco(B), coco(C, compressed=False)], "caption": "a ring"},
        "<obj7>": {"segmentation": coco(A), "caption": "a disc"},
        "<obj9>": {"segmentation": coco(C), "caption": "not mentioned"},
    }
    content = {
        "image_name": "a.jpg",
        "generated_ver_data": {"candidates": [candidate], "comments": ""},
        "original_annotation": {"objects_anns": annotations},
    }
    return {"key": [b"k1"], "json": [json.dumps(content).encode()], "image": [IMAGE]}


def benchmark(objects=None, **change) -> dict:
    objects = objects or {
        "4": {"mask": coco(A), "original_id": 1, "caption": "a disc"},
        "11": {"mask": coco(B), "original_id": 2, "caption": "a ring"},
        "12": {"mask": coco(C), "original_id": 3, "caption": "not in the trace"},
    }
    return {
        "key": [b"k2"],
        "image": [IMAGE],
        "question": [b"Which is larger?"],
        "objects_info_json": [json.dumps(objects).encode()],
        "human_labeled_r_objs": [4, 11],
        "human_labeled_a_objs": [11],
        "human_confidence": [5],
        "class_ids": [b"#comp", b"#loc"],
        "human_reasoning": [b""],
    } | change


def masked(mask) -> dict:
    """A record of the benchmark in which object 4 has another mask."""
    return benchmark({"4": {"mask": mask}, "11": {"mask": coco(B)}})


def published(folder, *examples) -> Published:
    write_examples(folder / "a.tfrecord", examples)
    return Published(folder, [])


def test_a_trace_becomes_a_demonstration(tmp_path):
    (record,) = vrt_80k.read(published(tmp_path, training()))["train"]
    sample = record.sample
    first, second = sample.objects
    assert (first.name, first.caption, first.in_reasoning, first.in_answer) == ("obj1", "a disc", True, False)
    assert (second.name, second.caption, second.in_reasoning, second.in_answer) == ("obj2", "a ring", True, True)
    np.testing.assert_array_equal(first.mask.array, A)
    np.testing.assert_array_equal(second.mask.array, B | C)
    thought = "A disc (<ver><obj1></ver>) and a ring (<ver><obj2></ver>); the ring (<ver><obj2></ver>) is larger."
    assert sample.demonstration == Demonstration((), Answer(thought, "The ring (<vea><obj2></vea>)."))
    assert (sample.sample_id, sample.question, sample.answer) == ("vrt-80k-k1", "Which is larger?", "The ring.")


def test_the_benchmark_has_masks_for_reasoning_and_answer(tmp_path):
    (record,) = vrt_bench.read(published(tmp_path, benchmark()))["test"]
    sample = record.sample
    assert [(o.name, o.in_reasoning, o.in_answer) for o in sample.objects] == [("obj4", True, False), ("obj11", True, True)]
    np.testing.assert_array_equal(sample.objects[0].mask.array, A)
    assert sample.metadata == {"classes": ["comp", "loc"], "confidence": 5}


@pytest.mark.parametrize(("module", "example"), [(vrt_80k, training), (vrt_bench, benchmark)], ids=["vrt_80k", "vrt_bench"])
def test_what_is_built_is_what_was_read(module, example, build_set, tmp_path):
    published(tmp_path / "source", example())
    data_dir = build_set(module.SET.name, tmp_path / "source")
    assert_round_trip(module.SET.name, module.read, tmp_path / "source", data_dir)
    (sample,) = read_back(data_dir, module.SET.name, *module.read(Published(tmp_path / "source")))
    assert sample.objects[0].mask.array.shape == sample.images[0].size[::-1]


@pytest.mark.parametrize(
    ("module", "example", "words"),
    [
        (vrt_80k, benchmark(), "json: is missing; got .*it is a record of vrt_bench"),
        (vrt_bench, training(), "objects_info_json: is missing; got .*it is a record of vrt_80k"),
        (vrt_80k, training(reasoning="A <ver><obj3></ver>."), "<obj3> is missing"),
        (vrt_80k, training(reasoning=""), "reasoning: got '', expected text"),
        (vrt_80k, training() | {"json": [b"{"]}, "json: is not JSON"),
        (vrt_80k, training() | {"image": [IMAGE] * 2}, "image: got 2 values, expected one"),
        (vrt_80k, training() | {"image": [b"no picture"]}, "segmentation: .*image"),
        (vrt_bench, benchmark(human_labeled_a_objs=[5]), "object 5 has no mask"),
        (vrt_bench, masked(coco(A.T)), r"\(40, 30\), expected the image's .*\(30, 40\)"),
        (vrt_bench, masked({"size": [30, 40], "counts": [1200, 1]}), "1201 pixels"),
        (vrt_bench, masked({"size": [30, 40]}), "no run lengths of COCO"),
    ],
)
def test_a_bad_record_is_named_and_the_others_are_read(module, example, words, tmp_path):
    source = published(tmp_path, (training if module is vrt_80k else benchmark)(), example)
    (records,) = module.read(source).values()
    assert len(list(records)) == 1
    (error,) = source.bad
    assert isinstance(error, DataError) and str(error).startswith(f"{tmp_path / 'a.tfrecord'}, record 1: ")
    with pytest.raises(DataError, match=words):
        raise error


def test_a_damaged_record_is_left_out_of_the_build(build_set, tmp_path, capsys):
    """A flipped bit within the second of three records: its checksum no longer fits, and the build goes on."""
    write_examples(tmp_path / "source" / "a.tfrecord", [training() | {"key": [key]} for key in (b"k1", b"k2", b"k3")])
    content = bytearray((tmp_path / "source" / "a.tfrecord").read_bytes())
    content[content.index(b"k2")] ^= 1
    (tmp_path / "source" / "a.tfrecord").write_bytes(content)
    data_dir = build_set("vrt_80k", tmp_path / "source")
    assert [sample.sample_id for sample in read_back(data_dir, "vrt_80k", "train")] == ["vrt-80k-k1", "vrt-80k-k3"]
    assert "a.tfrecord, record 1: its checksum is wrong" in capsys.readouterr().err
    assert "1 invalid records were left out." in card(data_dir, "vrt_80k")["notes"]


def test_the_files_of_the_other_set_are_no_set(build_set, tmp_path, capsys):
    published(tmp_path / "source", benchmark(), benchmark())
    with pytest.raises(SystemExit):
        build_set("vrt_80k", tmp_path / "source")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: split train: no questions found; all 2 records are invalid, the first: ")
    assert said.endswith("it is a record of vrt_bench")
