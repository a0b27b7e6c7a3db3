"""Masks as files: in COCO's form and as pictures, with sizes that are those of the pixels, also in mm."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from tests.kit.images import dicom, noise
from tests.kit.trajectories import WIDE, make_trace
from tests.kit.vrt import VRT, chat
from vitar_jax import infer
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.mask_files import Played, save_masks
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory_files import TrajectoryWriter

MASKS = make_trace().turns[0].masks  # of an image of 300 x 200; one has no pixel, and one [SEG] has no mask
SPACING = (0.5, 0.2)  # mm, of rows and of columns


def read(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Returns images and annotations by id, as pycocotools indexes them."""
    return {kind: {one["id"]: one for one in items} for kind, items in json.loads(path.read_text()).items()}


def sample(path: Path, sample_id: str = "s") -> Sample:
    return Sample(sample_id, "Where?", (str(path),), "")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(np.asarray(noise(*WIDE).convert("L")), PixelSpacing=list(SPACING)))
    return path


def test_masks_are_written_as_coco_and_as_pictures(tmp_path: Path, scan: Path) -> None:
    noise(*WIDE).save(tmp_path / "photo.png")
    played = [Played(2, sample(scan, "a"), [MASKS[:3], MASKS[3:]]), Played(7, sample(tmp_path / "photo.png"), [MASKS[:1]])]
    saved = save_masks(tmp_path / "out.json", played)
    coco = read(tmp_path / "out.json")
    made = [(one, one.mask) for one in (*MASKS, MASKS[0]) if one.mask is not None]
    assert list(coco["annotations"]) == [1, 2, 3, 4, 5] and list(coco["categories"]) == [1]
    for annotation, (one, mask) in zip(coco["annotations"].values(), made, strict=True):
        assert Mask.from_coco(annotation["segmentation"]) == mask
        picture = np.asarray(Image.open(tmp_path / annotation["file_name"]))
        np.testing.assert_array_equal(picture, 255 * mask.array)
        assert annotation["area"] == mask.array.sum()
        assert (annotation["name"], annotation["part"], annotation["score"]) == (one.name, one.part, one.score)
        assert (annotation["category_id"], annotation["iscrowd"]) == (1, 0)
    where = [(annotation["image_id"], annotation["turn"]) for annotation in coco["annotations"].values()]
    assert where == [(2, 1), (2, 1), (2, 2), (2, 2), (7, 1)]
    image = coco["images"][2]
    assert (image["width"], image["height"], image["sample_id"], image["file_name"]) == (*WIDE, "a", str(scan))
    assert (image["pixel_height_mm"], image["pixel_width_mm"], image["mm_at_detector"]) == (*SPACING, False)
    assert [coco["annotations"][id_]["bbox"] for id_ in (1, 2)] == [[40.0, 35.0, 80.0, 50.0], [0.0, 0.0, 0.0, 0.0]]
    assert [(one.turn, one.path and one.path.name) for one in saved[2]] == [
        (0, "2_turn1_mask1.png"),
        (0, "2_turn1_mask2.png"),
        (0, None),
        (1, "2_turn2_mask1.png"),
        (1, "2_turn2_mask2.png"),
    ]


def test_sizes_are_in_mm_where_the_file_states_them(tmp_path: Path, scan: Path) -> None:
    y, x = np.mgrid[: WIDE[1], : WIDE[0]]
    tall = Mask.of((abs(y - 100) < 40) & (abs(x - 50) < 3), "original")
    photo = tmp_path / "photo.png"
    noise(*WIDE).save(photo)
    one = ObjectMask(0, "obj1", "answer", tall, 0.5)
    saved = save_masks(tmp_path / "out.json", [Played(1, sample(scan), [[one]]), Played(2, sample(photo), [[one]])])
    in_mm, plain = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert in_mm["area"] == plain["area"] == 79 * 5
    assert in_mm["diameter"] == plain["diameter"] == pytest.approx(math.hypot(79, 5))
    assert in_mm["area_mm2"] == pytest.approx(79 * 5 * 0.5 * 0.2)
    assert in_mm["diameter_mm"] == pytest.approx(math.hypot(79 * 0.5, 5 * 0.2))
    assert plain["area_mm2"] is plain["diameter_mm"] is None
    words = "mask of obj1 (answer): 395 px, longest diameter 79.2 px"
    assert saved[1][0].words == f"{words}; 39.5 mm2, longest diameter 39.5 mm: {tmp_path}/out/1_turn1_mask1.png"
    assert saved[2][0].words == f"{words}: {tmp_path}/out/2_turn1_mask1.png"


def test_damaged_spacing_costs_the_mm_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(np.zeros((4, 5), np.uint8), PixelSpacing=[0, 0]))
    one = ObjectMask(0, None, None, Mask.of(np.ones((4, 5), bool), "original"), 0.5)
    saved = save_masks(tmp_path / "out.json", [Played(1, sample(path), [[one]])])
    assert saved[1][0].words.startswith("mask of an unnamed object: 20 px, longest diameter 6.4 px: ")
    assert "scan.dcm: no sizes in mm: damaged: its PixelSpacing" in caplog.text
    at_detector = tmp_path / "film.dcm"
    at_detector.write_bytes(dicom(np.zeros((4, 5), np.uint8), ImagerPixelSpacing=[0.1, 0.1]))
    saved = save_masks(tmp_path / "out.json", [Played(1, sample(at_detector), [[one]])])
    assert "0.2 mm2, longest diameter 0.6 mm at the detector" in saved[1][0].words


def test_without_masks_nothing_is_written(tmp_path: Path) -> None:
    lone = ObjectMask(3, "obj1", "reasoning")
    saved = save_masks(tmp_path / "out.json", [Played(1, sample(tmp_path / "gone.png"), [[], [lone]])])
    assert [one.words for one in saved[1]] == ["mask of obj1 (reasoning): none"] and list(tmp_path.iterdir()) == []


def test_a_question_prints_and_saves_its_masks(tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processor = dataclasses.replace(tiny.processor(4, 12), chat=chat())
    episode = Episode(sample(scan), VRT, processor, Limits(3000, 300))
    turn = make_trace().turns[0]
    token_ids = [*chat().turn(turn.text.replace("\U0001fac1 ", ""), VRT.allowed_tokens)]
    episode.add_turn(token_ids, None, masks=[(one.mask, 0.5) for one in MASKS[:2] if one.mask])
    infer.tell(episode, tmp_path / "looks", "scan")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mask of")]
    assert [line.split(":")[0] for line in lines] == [
        "mask of obj1 (reasoning)",
        "mask of obj2 (reasoning)",
        "mask of obj3 (reasoning)",
        "mask of an unnamed object (reasoning)",
        "mask of obj1 (answer)",
    ]
    assert "3152 px" in lines[0] and " mm2" in lines[0] and "no pixel" in lines[1] and lines[2].endswith(": none")
    assert len(read(tmp_path / "looks" / "scan_masks.json")["annotations"]) == 2
    episode.ask("And?")  # a conversation goes on
    token_ids = chat().turn("<answer>This (<vea><obj1> [SEG]</vea>).</answer>", VRT.allowed_tokens)
    episode.add_turn(token_ids, None, masks=[(one.mask, 0.5) for one in MASKS[4:] if one.mask])
    infer.tell(episode, tmp_path / "looks", "scan", first=1)
    assert capsys.readouterr().out.count("mask of") == 1
    assert len(read(tmp_path / "looks" / "scan_masks.json")["annotations"]) == 3


def test_a_file_of_questions_has_its_masks_in_one_file(tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answers"
    writer = TrajectoryWriter(output)
    writer.write([make_trace(sample_id="b"), make_trace(sample_id="c", turns=())])
    infer._write_answers(output, [sample(scan, "a"), sample(scan, "b"), sample(scan, "c")])
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert [answer.get("masks") for answer in answers] == [None, [f"masks/2_turn1_mask{n}.png" for n in (1, 2, 4, 5)], None]
    assert all((output / name).exists() for name in answers[1]["masks"])
    assert list(read(output / "masks.json")["images"]) == [2]
    assert f"masks: 4 in {output / 'masks.json'}" in capsys.readouterr().out
