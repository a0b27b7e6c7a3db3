"""The size of a DICOM file's pixels: the order of its two numbers, whose they are, and what is damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.kit.images import dicom, item, noise
from vitar_jax.errors import ImageError
from vitar_jax.processing.spacing import Spacing, read_spacing

PIXELS = np.zeros((2, 6, 4), np.uint8)  # frames, rows, columns


def spacing(tmp_path: Path, frame: str = "", **elements: Any) -> Spacing | None:
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom(PIXELS, **elements))
    return read_spacing(f"{path}{frame}")


def test_the_first_number_is_the_distance_between_rows(tmp_path: Path) -> None:
    assert spacing(tmp_path, PixelSpacing=[0.5, 0.25]) == Spacing(rows=0.5, columns=0.25)
    assert spacing(tmp_path) is None


def test_spacing_that_is_not_corrected_for_magnification_is_that_of_the_detector(tmp_path: Path) -> None:
    assert spacing(tmp_path, ImagerPixelSpacing=[0.2, 0.1]) == Spacing(0.2, 0.1, at_detector=True)
    assert spacing(tmp_path, PixelSpacing=[0.2, 0.1], ImagerPixelSpacing=[0.2, 0.1]) == Spacing(0.2, 0.1, at_detector=True)
    assert spacing(tmp_path, PixelSpacing=[0.18, 0.09], ImagerPixelSpacing=[0.2, 0.1]) == Spacing(0.18, 0.09)


def test_a_frame_has_its_own_spacing(tmp_path: Path) -> None:
    def group(*values: float) -> object:
        return item(PixelMeasuresSequence=[item(PixelSpacing=list(values))])

    shared: dict[str, Any] = {"SharedFunctionalGroupsSequence": [group(1, 2)]}
    own: dict[str, Any] = {"PerFrameFunctionalGroupsSequence": [item(), group(3, 4)]}
    assert spacing(tmp_path, "#frame=1", **shared) == Spacing(1, 2)
    assert spacing(tmp_path, "#frame=1", **shared, **own) == Spacing(3, 4)
    assert spacing(tmp_path, **shared, **own) == Spacing(1, 2)


@pytest.mark.parametrize("values", [[0.5], [0, 1], [0.5, -0.5], [1, 2, 3]])
def test_damaged_spacing_is_named(tmp_path: Path, values: list[float]) -> None:
    with pytest.raises(ImageError, match="its PixelSpacing is .*, expected two positive numbers"):
        spacing(tmp_path, PixelSpacing=values)


def test_other_files_state_none_and_real_ones_do(tmp_path: Path) -> None:
    noise(8, 6).save(tmp_path / "image.png")
    assert read_spacing(tmp_path / "image.png") is None
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
    rows, columns = pydicom.dcmread(path).PixelSpacing
    assert read_spacing(path) == Spacing(float(rows), float(columns))
