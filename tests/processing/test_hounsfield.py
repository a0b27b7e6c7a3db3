"""CT values: those of pydicom, of frames and of images in memory, and the images that have none."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from tests.kit.images import dicom, noise
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.processing.hounsfield import read_hounsfield, windowed

CT_SMALL = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
STORED = np.arange(16, dtype=np.uint16).reshape(2, 2, 4) * 300  # frames, rows, columns
CT: dict[str, Any] = {"Modality": "CT", "RescaleSlope": 2, "RescaleIntercept": -1024}


def test_values_of_a_real_file_are_those_of_pydicom() -> None:
    header = pydicom.dcmread(CT_SMALL)
    values = read_hounsfield(CT_SMALL)
    assert values is not None and values.dtype == np.float32
    assert np.array_equal(values, apply_modality_lut(header.pixel_array, header))
    assert open_image(CT_SMALL).size == values.shape[::-1]
    assert len(np.unique(values)) > 256  # 8 bits could not hold them


def test_a_frame_has_its_own_values_and_padding_is_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(STORED, **CT, PixelPaddingValue=4500))
    second = read_hounsfield(f"{path}#frame=1")
    assert second is not None and np.isnan(second[1, 3])
    expected = 2.0 * STORED[1] - 1024
    assert np.array_equal(second.ravel()[:-1], expected.ravel()[:-1].astype(np.float32))
    with pytest.raises(ImageError, match="no frame 2"):
        read_hounsfield(f"{path}#frame=2")


def test_images_in_memory_hold_hounsfield_units_in_deep_modes() -> None:
    values = np.linspace(-1000, 3000, 12, dtype=np.float32).reshape(3, 4)
    for array in (values, values.astype(np.int32)):
        assert np.array_equal(read_hounsfield(Image.fromarray(array)), array)  # type: ignore[arg-type]


def test_other_images_have_none(tmp_path: Path) -> None:
    assert read_hounsfield(noise(6, 4)) is None
    assert read_hounsfield(Image.fromarray(STORED[0])) is None  # I;16 has no negative values, and no unit
    noise(6, 4).save(tmp_path / "image.png")
    assert read_hounsfield(tmp_path / "image.png") is None
    for key, value in (("Modality", "MR"), ("Modality", None), ("PhotometricInterpretation", "PALETTE COLOR")):
        changed: dict[str, Any] = {key: value}
        (tmp_path / "other.dcm").write_bytes(dicom(STORED[0], **CT | changed))
        assert read_hounsfield(tmp_path / "other.dcm") is None


@pytest.mark.parametrize("centre, width", [(-600, 1500), (40, 80), (400, 1800), (50, 400)])
def test_a_window_is_that_of_dicom(centre: float, width: float) -> None:
    """Beside pydicom: LINEAR_EXACT of PS3.3, C.11.2.1.3.2, to eight bits."""
    values = np.linspace(-2000, 4000, 1001, dtype=np.float32)[None]
    header = pydicom.Dataset()
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = centre, width, "LINEAR_EXACT"
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 8, 0
    made = np.asarray(windowed(values, centre, width))
    assert np.abs(made - apply_windowing(values, header)).max() <= 0.5 + 1e-3
    assert np.asarray(windowed(np.full((1, 2), np.nan, np.float32), centre, width)).tolist() == [[0, 0]]
