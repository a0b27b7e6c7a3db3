"""Real lesions and experts' masks in each format of annotations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from data_prep import curate
from tests.kit import masked
from tests.kit.annotations import KINDS, admitted
from tests.kit.datasets import lesion_mask, lesions, write_boxes
from vitar_jax.data import questions
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.sample import Sample
from vitar_jax.evaluation.measures import MEASURES
from vitar_jax.learning.traced_masks import traced_masks
from vitar_jax.processing.files import open_image
from vitar_jax.processing.mask_targets import MaskShape
from vitar_jax.processing.masks import nearest

LIMITS = Limits(tokens=1024, turn_tokens=512, images=1)
OF_MASKS = MaskShape(masked.SIDE, images=1, entries=1, masks=3)


@pytest.mark.parametrize("kind", KINDS)
def test_real_lesions_come_back(kind: str, test_data: Path, tmp_path: Path) -> None:
    images, records = lesions(test_data)
    boxes = {Path(record["image"]).name: [("brain_lesion", record["bbox_xyxy"])] for record in records}
    found = admitted(write_boxes(tmp_path, images, boxes, kind))
    assert len(found) == 10
    for image, ((_, box),) in boxes.items():
        assert found[image].size == (256, 256) and found[image].boxes.keys() == {"brain lesion"}
        (ours,) = found[image].boxes["brain lesion"]
        assert ours.xyxy == pytest.approx(box, abs=1e-9) and ours.frame == "original"


def test_masks_of_experts_have_the_boxes_that_were_derived_from_them(test_data: Path, tmp_path: Path) -> None:
    """One slice has a lesion in two parts: two boxes, which together reach as far as that of both."""
    images, records = lesions(test_data)
    (tmp_path / "masks").mkdir()
    for record in records:
        mask = lesion_mask(test_data, record["case"], record["z"])
        Image.fromarray(mask).save(tmp_path / "masks" / Path(record["image"]).name)
    (tmp_path / "names.yaml").write_text("names:\n  1: lesion\n")
    flags = ["--format=masks", f"--annotations={tmp_path}/masks", f"--images={images}", f"--classes={tmp_path}/names.yaml"]
    found, parts = admitted(flags), []
    for record in records:
        boxes = [box.xyxy for box in found[Path(record["image"]).name].boxes["lesion"]]
        parts.append(len(boxes))
        low, high = np.min(boxes, axis=0)[:2], np.max(boxes, axis=0)[2:]
        assert [*low, *high] == record["bbox_xyxy"]
    assert sorted(parts) == [1] * 9 + [2]


def curated(folder: Path, images: Path, masks: dict[str, np.ndarray], names: str) -> list[Sample]:
    """Traces of label masks, by the name of their image."""
    (folder / "labels").mkdir()
    for name, mask in masks.items():
        Image.fromarray(mask).save(folder / "labels" / f"{name}.png")
    (folder / "names.yaml").write_text(f"names:\n{names}")
    flags = ["--format=masks", f"--annotations={folder}/labels", f"--images={images}", f"--classes={folder}/names.yaml"]
    curate.main([*flags, "--traces", f"--output={folder}/out"])
    return [*questions.read(folder / "out" / "traces.jsonl")]


@pytest.mark.slow
def test_traces_of_real_lesions_are_built_and_scored(test_data: Path, tmp_path: Path, build_set, make_trajectory) -> None:
    """Masks of a built sample are the experts' own, training learns them, and an episode that outlines just them is perfect."""
    images, records = lesions(test_data)
    masks = {Path(record["image"]).stem: lesion_mask(test_data, record["case"], record["z"]) for record in records}
    rows = curated(tmp_path, images, masks, "  1: lesion\n")
    assert {row.metadata["kind"] for row in rows} == {"size", "where"}  # one slice has a lesion in two parts
    data_dir = build_set("own", tmp_path / "out" / "traces.jsonl", "--shares=train:1")
    built = load_source(SourceConfig("data_prep.built:source", "train", options={"set": "own", "data_dir": str(data_dir)}))
    assert len(built) == len(rows)
    by_pixels = {open_image(images / f"{name}.png").convert("L").tobytes(): mask for name, mask in masks.items()}
    rng, found = np.random.default_rng(0), {score: [] for score in ("r_lq", "a_miou")}
    for number in range(len(built)):
        sample = built[number]
        mask = by_pixels[sample.images[0].convert("L").tobytes()]
        together = np.any([one.mask.array for one in sample.objects], axis=0)
        np.testing.assert_array_equal(together, mask == 1)
        learnt = traced_masks(demonstrate(sample, masked.VRT, masked.processor(), LIMITS), rng, OF_MASKS)
        assert learnt is not None and len(learnt.positions) == OF_MASKS.masks
        fitted = [nearest(one.mask.array, masked.SIDE // 4, masked.SIDE // 4) for one in sample.objects]
        assert all(any(np.array_equal(target, one) for one in fitted) for target in learnt.targets)
        said = tuple(ObjectMask(0, one.name, part, one.mask) for one in sample.objects for part in ("reasoning", "answer"))
        played = make_trajectory(0, sample_id=sample.sample_id, objects=sample.objects)
        played = replace(played, turns=(*played.turns[:-1], replace(played.turns[-1], masks=said)))
        for score, values in found.items():
            values += MEASURES[score].values(played)
    assert found == {"r_lq": [1] * len(found["r_lq"]), "a_miou": [1] * len(rows)} and len(found["r_lq"]) > len(rows)


def test_a_segmentation_of_dicom_is_traced(test_data: Path, tmp_path: Path) -> None:
    """The liver of a DICOM SEG file, over noise: the file has no image of its own."""
    liver = dcmread(test_data / "pydicom" / "liver_1frame.dcm").pixel_array.astype(np.uint8)
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, liver.shape, np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "liver.png")
    (row,) = curated(tmp_path, tmp_path / "images", {"liver": liver}, "  1: liver\n")
    assert (row.question, row.answer) == ("Where in the image does the liver lie?", "In the centre.")
    left_out = np.argwhere(row.objects[0].mask.array != liver)
    assert len(left_out) == 2  # stray pixels apart from the liver
