"""DICOM files of the test data."""

from pathlib import Path

import pydicom

from vitar_jax.processing.files import open_image

THEIRS = Path(pydicom.__file__).parent / "data" / "test_files"  # real files, installed with the package


def test_real_files_of_the_test_data(test_data: Path) -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "liver_1frame.dcm"):
        assert open_image(test_data / "pydicom" / name) == open_image(THEIRS / name)
