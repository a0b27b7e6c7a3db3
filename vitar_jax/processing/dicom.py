"""Decodes frames of DICOM files and renders them as their headers specify."""

import io
import logging
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32, Integer, UInt8
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
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
    RLELossless,
)

from vitar_jax.errors import ImageError
from vitar_jax.processing.dicom_grey import grey_image, merged, modality_values, numbers, without_padding
from vitar_jax.processing.spacing import Spacing

_DECODED_BY_PIL = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom converts each to RGB

# pydicom logs a traceback for each frame that it cannot decode. The raised error gives the same reason.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


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
        stored = self._stored(index)
        header, kind = self._header, self._header.get("PhotometricInterpretation")
        if kind == "PALETTE COLOR":
            return Image.fromarray(_high_bytes(apply_color_lut(stored, header), _palette_bits(header)))
        if kind in _COLOUR and stored.ndim == 3:
            return Image.fromarray(_high_bytes(stored, int(header.BitsStored)))
        if kind in _GREY and stored.ndim == 2:
            return grey_image(stored, header, index)
        raise ImageError(f"its photometric interpretation, {kind}, is not read here")

    def hounsfield(self, index: int) -> Float32[np.ndarray, "rows columns"] | None:
        """Returns the values of a grey CT frame, with NaN for padding. None for any other modality, or colours.

        Raises:
          ImageError: As `frame`.
        """
        header = self._header
        if header.get("Modality") != "CT" or header.get("PhotometricInterpretation") not in _GREY:
            return None
        stored = self._stored(index)
        return without_padding(modality_values(stored, header, index), stored, header)

    def spacing(self, index: int) -> Spacing | None:
        """Returns the size of a frame's pixels; None if the header has none.

        Takes PixelSpacing, which the frame's functional groups override, or else ImagerPixelSpacing. A PixelSpacing equal to
        ImagerPixelSpacing has not been corrected for magnification (PS3.3 10.7.1.3).

        Raises:
          ImageError: If the element does not hold two positive numbers.
        """
        measures = merged(self._header, index, "PixelMeasuresSequence", ("PixelSpacing",))
        inside, imager = numbers(measures, "PixelSpacing"), numbers(self._header, "ImagerPixelSpacing")
        found = inside or imager
        if not found:
            return None
        if len(found) != 2 or min(found) <= 0:
            keyword = "PixelSpacing" if inside else "ImagerPixelSpacing"
            raise ImageError(f"damaged: its {keyword} is {found}, expected two positive numbers")
        return Spacing(*found, at_detector=found == imager)

    def _stored(self, index: int) -> np.ndarray:
        if not 0 <= index < self.frames:
            raise ImageError(f"it has no frame {index}, only 0 to {self.frames - 1}")
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
            if below := self._bits_below(syntax):  # pydicom ignores HighBit
                bits = below + self._header.BitsStored
                return pixel_array(self._file, index=index, transfer_syntax_uid=syntax, bits_stored=bits) >> below
            return pixel_array(self._file, index=index, transfer_syntax_uid=syntax)
        except RuntimeError as error:  # its message lists, line by line, why each decoder failed
            reason = " ".join(str(error).split())
            raise ImageError(f"its pixels, {syntax.name} ({syntax}), cannot be decoded: {reason}") from error

    def _bits_below(self, syntax: UID) -> int:
        """Returns the number of unused bits below the stored ones: HighBit counts from them. Codecs store no unused bits."""
        bits, allocated = self._header.get("BitsStored"), self._header.get("BitsAllocated")
        if not isinstance(bits, int) or (syntax.is_compressed and syntax != RLELossless):
            return 0
        high = int(self._header.get("HighBit") or bits - 1)
        if not 0 < bits <= allocated or high >= allocated:
            raise ImageError(f"damaged: BitsAllocated is {allocated}, BitsStored {bits} and HighBit {high}")
        return max(high + 1 - bits, 0)

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


def _palette_bits(header: Dataset) -> int:
    """Returns the bits of a colour. Some writers state the 16 bits of a word for 8-bit colours, which would all be black."""
    bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    data = [header.get(f"{colour}PaletteColorLookupTableData") or b"" for colour in ("Red", "Green", "Blue")]
    words = np.frombuffer(b"".join(data), "<u2" if header.original_encoding[1] else ">u2")
    return 8 if bits > 8 and words.size and words.max() < 2**8 else bits


def _high_bytes(values: Integer[np.ndarray, "rows columns channels"], bits: int) -> UInt8[np.ndarray, "rows columns channels"]:
    return (values >> max(bits - 8, 0)).astype(np.uint8)
