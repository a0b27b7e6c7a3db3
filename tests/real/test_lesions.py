"""Real lesions and experts' masks in each format of annotations."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.annotations import KINDS, admitted
from tests.kit.datasets import lesion_mask, lesions, write_boxes


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
