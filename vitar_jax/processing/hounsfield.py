"""CT values of images, which 8 bits cannot hold: a window for lungs and one for bone have no value in common."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vitar_jax.processing.sources import image_name, is_dicom, open_source, split_frame

HounsfieldUnits = Float32[np.ndarray, "rows columns"]


def read_hounsfield(image: str | Path | Image.Image) -> HounsfieldUnits | None:
    """Returns the values of a CT image, in Hounsfield units; NaN for padding. None for an image that is not CT.

    Args:
      image: Text that names an image (see `sources`), of which a grey DICOM file of modality CT has values; or a PIL image, of
        which the modes "I" and "F" hold Hounsfield units.

    Raises:
      ImageError: If the file lacks the frame, or an element of its modality transform is damaged.
      OSError: If the file cannot be opened.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image, np.float32) if image.mode in ("I", "F") else None
    name, frame = split_frame(image_name(image))
    with open_source(image) as file:
        if not is_dicom(file) and not name.lower().endswith(".dcm"):
            return None
        from vitar_jax.processing.dicom import DicomFile  # imports pydicom, which takes 0.2 s

        return DicomFile(file).hounsfield(frame or 0)


def windowed(values: HounsfieldUnits, centre: float, width: float) -> Image.Image:
    """Returns values from centre - width / 2 to centre + width / 2 as grey values from 0 to 255. NaN becomes black."""
    shares = np.clip((np.nan_to_num(values, nan=-np.inf) - centre) / width + 0.5, 0, 1)
    return Image.fromarray(np.rint(255 * shares).astype(np.uint8))
