"""Images, image files and DICOM files that many tests use."""

import io
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from vitar_jax.processing.files import open_image


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0, *, extremes: bool = False) -> Image.Image:
    """Returns an image of noise, in which no two regions look alike.

    With `extremes`, all values of its upper half are 0 or 255. Bicubic resampling overshoots there and is clipped at both ends.
    """
    generator = np.random.default_rng(seed)
    channels = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if extremes:
        values[: height // 2] = np.where(values[: height // 2] > 127, 255, 0)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    if mode == "P":
        return Image.fromarray(np.repeat(values, 3, 2)).quantize(17)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


def picture(number: int, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    """Returns the content of an image file, with a different picture for each number."""
    content = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256 % 256, number // 65536)).save(content, kind)
    return content.getvalue()


def item(**elements: Any) -> Dataset:
    """Returns a DICOM data set with the given elements, by keyword."""
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def dicom(pixels: np.ndarray | bytes, shape: tuple[int, ...] = (), *, syntax: str = "", **elements: Any) -> bytes:
    """Returns a DICOM file of grey frames [H, W] or [N, H, W], or of one colour frame [H, W, 3].

    Args:
      pixels: Stored values, or their bytes; for bytes, `shape` is the shape that the header claims.
      syntax: UID of the transfer syntax.
      elements: Further elements by keyword. They override the elements that follow from `pixels`.
    """
    content = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    shape = shape or np.shape(pixels)
    colour = len(shape) == 3 and shape[2] == 3
    bits = 8 * pixels.itemsize if isinstance(pixels, np.ndarray) else 8
    dataset = item(
        **{
            "SOPClassUID": SecondaryCaptureImageStorage,
            "SOPInstanceUID": "1.2.3",
            "Rows": shape[0] if colour else shape[-2],
            "Columns": shape[1] if colour else shape[-1],
            "SamplesPerPixel": 3 if colour else 1,
            "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
            "BitsAllocated": bits,
            "BitsStored": bits,
            "HighBit": bits - 1,
            "PixelRepresentation": int(isinstance(pixels, np.ndarray) and pixels.dtype.kind == "i"),
            **({"PlanarConfiguration": 0} if colour else {}),
            **({"NumberOfFrames": shape[0]} if len(shape) == 3 and not colour else {}),
            **elements,
        }
    )
    dataset.PixelData = content + bytes(len(content) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def lut(descriptor: list[int], representation: str, data: object) -> Dataset:
    dataset = item(LUTDescriptor=descriptor)
    dataset.add_new("LUTData", representation, data)
    return dataset


def shown(*arguments: object, **elements: object) -> np.ndarray:
    """Returns the pixels that `open_image` reads from a file of `dicom`."""
    return np.asarray(open_image(dicom(*arguments, **elements)))  # type: ignore[arg-type]
