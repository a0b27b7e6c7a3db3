"""Renders greyscale DICOM frames by the window or table of their headers.

The steps follow the standard (PS3.3 C.11): stored values, modality transform, window, inversion. Many headers are badly
written. A missing or empty element falls back to the next step. A damaged element raises an error that names it, because a
guess would show a black or grey picture.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, Real
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from vitar_jax.errors import ImageError


def grey_image(stored: Real[np.ndarray, "rows columns"], header: Dataset, frame: int) -> Image.Image:
    """Renders a greyscale frame by its table or window, as mode 'L'.

    Without a table or window, unsigned stored values of at most 8 bits are brightness if no modality transform changes them.
    All other values become mode 'F', in which padding is NaN.

    Raises:
      ImageError: If an element of the window, of a table or of the modality transform is damaged.
    """
    values = modality_values(stored, header, frame)
    shown = _own_window(values, header, frame)
    if shown is None and values is stored and stored.dtype.kind == "u" and header.BitsStored <= 8:
        shown = np.minimum(stored / (2.0**header.BitsStored - 1), 1)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if shown is None:
        values = without_padding(values, stored, header)
        return Image.fromarray(-values if inverted else values)
    shown = np.nan_to_num(1 - shown if inverted else shown)
    return Image.fromarray(np.rint(255 * shown).astype(np.uint8))


def element(header: Dataset, keyword: str) -> Any:
    """Returns the value of an element, or None if it is missing or empty.

    Raises:
      ImageError: If pydicom cannot convert its value.
    """
    try:
        value = header.get(keyword)
    except Exception as error:  # pydicom raises many types on a damaged value
        raise ImageError(f"damaged: its {keyword} cannot be read ({str(error)[:100]})") from error
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def numbers(header: Dataset, keyword: str) -> list[float]:
    """Returns the values of a numeric element, which may have been written as text. An empty list means that it is missing.

    Raises:
      ImageError: If a value is not a finite number.
    """
    value = element(header, keyword)
    if isinstance(value, bytes):  # of unknown type
        value = value.decode("latin-1")
    if isinstance(value, str):
        value = [part for part in value.strip(" \0").split("\\") if part.strip()]
    found = [] if value is None else list(value) if isinstance(value, Sequence) else [value]
    try:
        read = [float(one) for one in found if not (isinstance(one, str) and not one.strip())]
        if all(map(math.isfinite, read)):
            return read
    except (TypeError, ValueError):
        pass
    raise ImageError(f"damaged: its {keyword} is {', '.join(map(str, found))[:50]!r}, expected a number")


class _Table(NamedTuple):
    """A look-up table: values from `first` on are mapped to `entries`, whose greatest possible value is `white`."""

    first: int
    entries: Integer[np.ndarray, " entries"]
    white: int

    def look_up(self, values: Real[np.ndarray, "rows columns"]) -> Integer[np.ndarray, "rows columns"]:
        first = self.first
        if first < 0 <= values.min() and values.max() >= 2**15:  # a US that was written as SS
            first += 2**16
        if values.min() < 0 and first >= 2**15:  # an SS that was written as US
            first -= 2**16
        return self.entries[np.clip(np.rint(values) - first, 0, len(self.entries) - 1).astype(np.int64)]


def _table(elements: Dataset, keyword: str, header: Dataset) -> _Table | None:
    """Returns the first table of a sequence, or None if no item holds one.

    Raises:
      ImageError: If the table is damaged.
    """
    for item in element(elements, keyword) or []:
        descriptor, data = _words(item, "LUTDescriptor", header), element(item, "LUTData")
        if descriptor is None or data is None:
            continue
        if len(descriptor) < 3:
            raise ImageError(f"damaged: LUTDescriptor of its {keyword} is {descriptor.tolist()}, expected 3 numbers")
        count, first, bits = (int(number) for number in descriptor[:3])
        count = count % 2**16 or 2**16
        # Entries of 8 bits may be packed, or stored in 16 bits each.
        packed = isinstance(data, bytes) and count <= len(data) < (2 * count if bits <= 8 else count + 2)
        entries = np.frombuffer(data, "u1").astype(np.int64) if packed else _words(item, "LUTData", header)
        if entries is None or len(entries) < count:
            found = 0 if entries is None else len(entries)
            raise ImageError(f"damaged: LUTData of its {keyword} has {found} entries, its LUTDescriptor states {count}")
        entries = entries[:count] % 2**16
        if count > 1 and entries.min() == entries.max():
            raise ImageError(f"damaged: all entries of its {keyword} are {entries[0]}")
        most = int(entries.max())
        # Some writers state the bits of a word in place of those of an entry, by which the picture would be black.
        stated = 0 < bits <= 16 and 2 ** (bits - 4) <= most < 2**bits
        return _Table(first, entries, 2 ** (bits if stated else most.bit_length()) - 1)
    return None


def _words(item: Dataset, keyword: str, header: Dataset) -> Integer[np.ndarray, " words"] | None:
    """Returns the 16-bit numbers of an element, also if its type is unknown, or None if it is missing."""
    data = element(item, keyword)
    if isinstance(data, bytes):
        order = "<" if header.original_encoding[1] else ">"
        return np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype(np.int64)
    found = numbers(item, keyword)
    return np.array(found, np.int64) if found else None


def merged(header: Dataset, frame: int, macro: str, keywords: Sequence[str]) -> Dataset:
    """Returns elements of the header, overridden by the shared functional-group macro and then by the frame's own."""
    merged = Dataset()
    sources = [header]
    for groups, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        items = header.get(groups) or []
        if len(items) > index and items[index].get(macro):
            sources.append(items[index][macro].value[0])
    for source in sources:
        for keyword in keywords:
            if element(source, keyword) is not None:
                merged[keyword] = source[keyword]
    return merged


def modality_values(
    stored: Real[np.ndarray, "rows columns"], header: Dataset, frame: int
) -> Real[np.ndarray, "rows columns"]:
    """Returns stored values in the modality's unit, for example Hounsfield.

    Returns `stored` itself if the header has no transform, or slope 1 and intercept 0.
    """
    elements = merged(
        header, frame, "PixelValueTransformationSequence", ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
    )
    if table := _table(elements, "ModalityLUTSequence", header):
        return table.look_up(stored)
    slope, intercept = _number(elements, "RescaleSlope", 1.0), _number(elements, "RescaleIntercept", 0.0)
    if slope == 0:
        raise ImageError("damaged: its RescaleSlope is 0, which makes all values equal")
    if (slope, intercept) == (1.0, 0.0):
        return stored
    transform = Dataset()
    transform.RescaleSlope, transform.RescaleIntercept = slope, intercept
    return apply_modality_lut(stored, transform)


def _own_window(
    values: Real[np.ndarray, "rows columns"], header: Dataset, frame: int
) -> Float[np.ndarray, "rows columns"] | None:
    """Returns brightness from 0 to 1 by the file's first table or window, or None if it has neither.

    Ignores a window whose width the standard does not allow, as viewers do.
    """
    keywords = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
    elements = merged(header, frame, "FrameVOILUTSequence", keywords)
    if table := _table(elements, "VOILUTSequence", header):
        return table.look_up(values) / table.white
    centre, width = _number(elements, "WindowCenter"), _number(elements, "WindowWidth")
    function = elements.get("VOILUTFunction", "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(f"its window function, {function}, is not one of the standard's")
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    window = Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, width, function
    # The output range of one unsigned stored bit is 0 to 1.
    window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 1, 0
    with np.errstate(over="ignore"):  # exp overflows far from the centre of a sigmoid
        return apply_windowing(values, window)


def without_padding(
    values: Real[np.ndarray, "rows columns"], stored: Real[np.ndarray, "rows columns"], header: Dataset
) -> Float32[np.ndarray, "rows columns"]:
    """Returns values in fp32, with NaN for padding."""
    return np.where(_padding(stored, header), np.nan, values).astype(np.float32)


def _padding(stored: Real[np.ndarray, "rows columns"], header: Dataset) -> Bool[np.ndarray, "rows columns"]:
    """Returns a mask of the padding around a picture that is not rectangular: from PixelPaddingValue to its RangeLimit."""
    first = _number(header, "PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    ends = [first, _number(header, "PixelPaddingRangeLimit", first)]
    if stored.dtype.kind in "iu":  # the two may have been written with the other sign
        ends = np.array(ends).astype(np.int64).astype(stored.dtype).tolist()
    return (stored >= min(ends)) & (stored <= max(ends))


def _number(elements: Dataset, keyword: str, default: Any = None) -> Any:
    """Returns the first value of a numeric element, or `default` if the element is missing."""
    return next(iter(numbers(elements, keyword)), default)
