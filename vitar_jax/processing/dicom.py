"""Decodes frames of DICOM files and renders them as their headers specify.

The steps follow the standard (PS3.3 C.11): stored values, modality transform, window, inversion.
"""

import io
import logging
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Integer, Real, UInt8
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from vitar_jax.errors import ImageError

_DECODED_BY_PIL = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000)
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom converts each to RGB

# pydicom logs a traceback for each frame that it cannot decode. The raised error gives the same reason.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def is_dicom(file: BinaryIO) -> bool:
    """Returns whether a file has the DICOM preamble. Leaves the file at its start."""
    head = file.read(132)
    file.seek(0)
    return head[128:] == b"DICM"


class DicomFile:
    """A DICOM file of which only the header has been read.

    Attributes:
      size: (width, height) of each frame (pixels).
      frames: Number of frames.

    Raises:
      ImageError: If the file holds no image, or is deflated. On a damaged header, pydicom may raise any exception.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._syntax = _transfer_syntax(file)
        # pydicom would inflate the whole file here, header and pixels, however large it is.
        if self._syntax == DeflatedExplicitVRLittleEndian:
            raise ImageError(f"its transfer syntax, {DeflatedExplicitVRLittleEndian.name}, is not read here")
        file.seek(0)
        self._header = dcmread(file, force=True, stop_before_pixels=True)
        rows, columns = self._header.get("Rows"), self._header.get("Columns")
        if not isinstance(rows, int) or not isinstance(columns, int):
            raise ImageError("a DICOM file without an image")
        self.size = (columns, rows)
        self.frames = int(self._header.get("NumberOfFrames") or 1)

    def frame(self, index: int) -> Image.Image:
        """Decodes one frame. The mode is 'L', 'RGB' or 'RGBA', or 'F' if the file does not define the brightness of its values.

        Raises:
          ImageError: If the file lacks the frame, no decoder for it is installed, or its photometric interpretation is
            unknown. On damaged pixels, pydicom may raise any exception.
        """
        if not 0 <= index < self.frames:
            raise ImageError(f"it has no frame {index}, only 0 to {self.frames - 1}")
        stored = self._stored(index)
        header, kind = self._header, self._header.get("PhotometricInterpretation")
        if kind == "PALETTE COLOR":
            bits = int(header.RedPaletteColorLookupTableDescriptor[2])
            return Image.fromarray(_high_bytes(apply_color_lut(stored, header), bits))
        if kind in _COLOUR and stored.ndim == 3:
            return Image.fromarray(_high_bytes(stored, int(header.BitsStored)))
        if kind in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == 2:
            return _grey(stored, header, index)
        raise ImageError(f"its photometric interpretation, {kind}, is not read here")

    def _stored(self, index: int) -> np.ndarray:
        syntax = self._syntax or _guessed_syntax(self._header)
        try:
            decodable = get_decoder(syntax).is_available
        except NotImplementedError:
            decodable = False
        if not decodable:
            raise ImageError(
                f"there is no decoder of {syntax.name} ({syntax}); for most such files the packages pylibjpeg and "
                "pylibjpeg-libjpeg, or python-gdcm, are one"
            )
        if syntax in _DECODED_BY_PIL:
            self._check_codestream(index)
        try:
            return pixel_array(self._file, index=index, transfer_syntax_uid=syntax)
        except RuntimeError as error:  # its message lists, line by line, why each decoder failed
            reason = " ".join(str(error).split())
            raise ImageError(f"its pixels, {syntax.name} ({syntax}), cannot be decoded: {reason}") from error

    def _check_codestream(self, index: int) -> None:
        """Raises ImageError if a compressed frame differs in size from the header. pydicom would decode it, however large."""
        self._file.seek(0)
        content = dcmread(self._file, force=True, specific_tags=["PixelData"]).PixelData
        frame = get_frame(content, index, number_of_frames=self.frames)
        if frame[4:8] == b"jP  ":
            _check_boxes(frame)
        try:
            with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as inner:
                width, height = inner.size
        except Image.UnidentifiedImageError:  # 12-bit JPEG; another decoder may support it
            return
        if (width, height) != self.size:
            raise ImageError(f"a frame of {width}x{height} pixels, where the header says {self.size[0]}x{self.size[1]}")


def _check_boxes(frame: bytes) -> None:
    """Raises ImageError if a box of a JPEG 2000 file has no length, the only damage on which pydicom never returns."""
    place = 0
    while place < len(frame) and frame[place + 4 : place + 8] != b"jp2c":
        length = int.from_bytes(frame[place : place + 4], "big")
        if length == 0:
            raise ImageError("damaged: a box of its JPEG 2000 frame has no length")
        place += length


def _transfer_syntax(file: BinaryIO) -> UID | None:
    """Returns the transfer syntax that group 2 of a file states, or None if it is missing."""
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    return meta.get("TransferSyntaxUID")


def _guessed_syntax(header: Dataset) -> UID:
    """Returns the transfer syntax of a file without group 2: uncompressed, in the encoding of the header."""
    implicit, little_endian = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def _high_bytes(values: Integer[np.ndarray, "rows columns channels"], bits: int) -> UInt8[np.ndarray, "rows columns channels"]:
    return (values >> max(bits - 8, 0)).astype(np.uint8)


def _grey(stored: Real[np.ndarray, "rows columns"], header: Dataset, frame: int) -> Image.Image:
    """Renders a greyscale frame by its table or window, as mode 'L'.

    Without a table or window, unsigned stored values of at most 8 bits are brightness if no modality transform changes them.
    All other values become mode 'F'.
    """
    values = _modality(stored, header, frame)
    shown = _own_window(values, header, frame)
    if shown is None and values is stored and stored.dtype.kind == "u" and header.BitsStored <= 8:
        shown = stored / (2.0**header.BitsStored - 1)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if shown is None:
        values = values.astype(np.float32)
        return Image.fromarray(-values if inverted else values)
    shown = np.nan_to_num(1 - shown if inverted else shown)
    return Image.fromarray(np.rint(255 * shown).astype(np.uint8))


def _merged(header: Dataset, frame: int, macro: str, keywords: Sequence[str]) -> Dataset:
    """Returns elements of the header, overridden by the shared functional-group macro and then by the frame's own."""
    merged = Dataset()
    sources = [header]
    for groups, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        items = header.get(groups) or []
        if len(items) > index and items[index].get(macro):
            sources.append(items[index][macro].value[0])
    for source in sources:
        for keyword in keywords:
            if source.get(keyword) not in (None, "", []):
                merged[keyword] = source[keyword]
    return merged


def _modality(stored: Real[np.ndarray, "rows columns"], header: Dataset, frame: int) -> Real[np.ndarray, "rows columns"]:
    """Returns stored values in the modality's unit, for example Hounsfield.

    Returns `stored` itself if the header has no transform, or slope 1 and intercept 0.
    """
    elements = _merged(
        header, frame, "PixelValueTransformationSequence", ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
    )
    if "ModalityLUTSequence" in elements:
        elements.ModalityLUTSequence = [_in_words(elements.ModalityLUTSequence[0], header)]
        return apply_modality_lut(np.rint(stored).astype(np.int64), elements)
    slope, intercept = _number(elements, "RescaleSlope", 1.0), _number(elements, "RescaleIntercept", 0.0)
    if (slope, intercept) == (1.0, 0.0):
        return stored
    elements.RescaleSlope, elements.RescaleIntercept = slope, intercept
    return apply_modality_lut(stored, elements)


def _own_window(
    values: Real[np.ndarray, "rows columns"], header: Dataset, frame: int
) -> Float[np.ndarray, "rows columns"] | None:
    """Returns brightness from 0 to 1 by the file's first table or window, or None if it has neither.

    Ignores a window whose width the standard does not allow, as viewers do.
    """
    keywords = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
    elements = _merged(header, frame, "FrameVOILUTSequence", keywords)
    if "VOILUTSequence" in elements:
        table = elements.VOILUTSequence[0]
        bits, words = int(table.LUTDescriptor[2]), _in_words(table, header)
        elements.VOILUTSequence = [words]
        last = int(words.LUTDescriptor[1]) + (int(words.LUTDescriptor[0]) or 2**16) - 1
        shown = apply_voi_lut(np.minimum(np.rint(values).astype(np.int64), last), elements)
        return np.clip(shown / (2.0**bits - 1), 0, 1)
    centre, width = _number(elements, "WindowCenter"), _number(elements, "WindowWidth")
    function = elements.get("VOILUTFunction", "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(f"its window function, {function}, is not one of the standard's")
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    elements.WindowCenter, elements.WindowWidth = centre, width
    # The output range of one unsigned stored bit is 0 to 1.
    elements.PhotometricInterpretation, elements.BitsStored, elements.PixelRepresentation = "MONOCHROME2", 1, 0
    with np.errstate(over="ignore"):  # exp overflows far from the centre of a sigmoid
        return apply_voi_lut(values, elements)


def _in_words(table: Dataset, header: Dataset) -> Dataset:
    # pydicom misreads 8-bit tables that are packed, or have more than 256 entries.
    entries, first, _ = (int(number) for number in table.LUTDescriptor)
    data = table.LUTData
    if isinstance(data, bytes):  # 8-bit entries may be stored in 16 bits
        order = "<" if header.original_encoding[1] else ">"
        data = np.frombuffer(data, "u1" if len(data) < 2 * (entries or 2**16) else f"{order}u2")
    words = Dataset()
    words.LUTDescriptor = [entries, first, 16]
    words.add_new("LUTData", "US", np.atleast_1d(np.asarray(data, np.int64)).tolist())
    return words


def _number(elements: Dataset, keyword: str, default: float | None = None) -> float | None:
    """Returns the first value of a decimal element, or `default` if the element is missing."""
    value = elements.get(keyword)
    if value is None:
        return default
    return float(value if isinstance(value, int | float | str) else value[0])
