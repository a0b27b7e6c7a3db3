"""The size of an image's pixels in millimetres, where its file states it."""

from dataclasses import dataclass
from pathlib import Path

from vitar_jax.processing.sources import image_name, is_dicom, open_source, split_frame


@dataclass(frozen=True)
class Spacing:
    """Distances between the centres of adjacent pixels, in mm.

    Attributes:
      rows: Distance between adjacent rows, the height of a pixel.
      columns: Distance between adjacent columns, the width of a pixel.
      at_detector: Whether the distances are those on the detector of a projection. A projection enlarges the patient, who is in
        front of the detector, so lengths in the patient are smaller.
    """

    rows: float
    columns: float
    at_detector: bool = False


def read_spacing(image: str | Path) -> Spacing | None:
    """Returns the spacing that a DICOM file states for its frame; None for any other file, or if it states none.

    Args:
      image: Text that names an image (see `sources`).

    Raises:
      ImageError: If the stated spacing is damaged.
      OSError: If the file cannot be opened.
    """
    name, frame = split_frame(image_name(image))
    with open_source(image) as file:
        if not is_dicom(file) and not name.lower().endswith(".dcm"):
            return None
        from vitar_jax.processing.dicom import DicomFile  # imports pydicom, which takes 0.2 s

        return DicomFile(file).spacing(frame or 0)
