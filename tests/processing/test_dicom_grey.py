"""Windows and tables of grey DICOM files, against pydicom's functions and the standard's formulas written out here."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from tests.kit.images import dicom, item, lut, noise, shown
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def standard_window(x: float, centre: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with outputs from 0 to 255."""
    if function == "SIGMOID":
        exponent = -4 * (x - centre) / width
        return 255 / (1 + math.exp(exponent)) if exponent < 700 else 0.0
    if function == "LINEAR":
        if x <= centre - 0.5 - (width - 1) / 2:
            return 0
        if x > centre - 0.5 + (width - 1) / 2:
            return 255
        return ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    if x <= centre - width / 2:
        return 0
    if x > centre + width / 2:
        return 255
    return ((x - centre) / width + 0.5) * 255


@given(
    centre=st.integers(-3000, 5000).map(lambda number: number / 2),
    width=st.integers(2, 9000).map(lambda number: number / 2),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    slope=st.sampled_from([1, 2, 0.5, 0.1, -1]),
    intercept=st.sampled_from([0, -1024, 0.5]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int16]),
    kind=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
@example(100, 1, "LINEAR", 1, 0, np.uint16, "MONOCHROME2")  # a width of 1 is a step
@example(100, 0.5, "LINEAR_EXACT", 1, 0, np.uint16, "MONOCHROME2")
@settings(max_examples=60, deadline=None)
def test_windows_are_the_standards(
    centre: float, width: float, function: str, slope: float, intercept: float, dtype: type, kind: str
) -> None:
    stored = (
        np.linspace(0 if dtype != np.int16 else -2000, 255 if dtype == np.uint8 else 4000, 400).astype(dtype).reshape(20, 20)
    )
    elements = {
        "WindowCenter": centre,
        "WindowWidth": width,
        "VOILUTFunction": function,
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "PhotometricInterpretation": kind,
    }
    ours = shown(stored, **elements).astype(float)
    if kind == "MONOCHROME1":
        ours = 255 - ours
    values = stored * float(slope) + intercept
    expected = [standard_window(float(x), centre, width, function) for x in values.flat]
    assert np.abs(ours.ravel() - expected).max() <= 0.5 + 1e-9

    header = item(**elements, BitsStored=8 * stored.itemsize, PixelRepresentation=int(dtype == np.int16))
    with np.errstate(over="ignore"):  # of exp
        low, high = apply_windowing(np.array([-1e12, 1e12]), header)
        theirs = (apply_windowing(values, header) - low) / (high - low) * 255
    assert np.abs(ours - theirs).max() <= 0.5 + 1e-6


def test_the_first_of_several_windows_counts() -> None:
    several = shown(RAMP, WindowCenter=[1000, 2000], WindowWidth=[500, 4000])
    assert np.array_equal(several, shown(RAMP, WindowCenter=1000, WindowWidth=500))
    assert not np.array_equal(several, shown(RAMP, WindowCenter=2000, WindowWidth=4000))


def test_without_a_window_deep_grey_is_windowed_by_percentiles() -> None:
    expected = np.asarray(open_image(Image.fromarray(RAMP)))
    assert np.array_equal(shown(RAMP), expected)
    assert np.array_equal(shown(RAMP, RescaleSlope=2, RescaleIntercept=-1000), expected)
    assert np.array_equal(shown(RAMP, WindowCenter=1000, WindowWidth=0), expected)  # no window at all
    assert np.array_equal(shown(RAMP, WindowCenter=[], WindowWidth=[]), expected)
    inverted = shown(4095 - RAMP, PhotometricInterpretation="MONOCHROME1").astype(int)
    assert np.abs(inverted - expected).max() <= 1


def test_without_a_window_eight_bits_are_shown_as_they_are() -> None:
    stored = np.asarray(noise(30, 20, "L"))
    assert np.array_equal(shown(stored), stored)
    assert np.array_equal(shown(stored, RescaleSlope=1, RescaleIntercept=0), stored)
    assert np.array_equal(shown(stored, PhotometricInterpretation="MONOCHROME1"), 255 - stored)


def test_an_unknown_window_function_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "odd.dcm").write_bytes(dicom(RAMP, WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"))
    with pytest.raises(ImageError, match="odd.dcm: its window function, CUBIC"):
        open_image(tmp_path / "odd.dcm")


# Tables


def table(entries: int, first: int, bits: int, seed: int = 0) -> Dataset:
    values = np.sort(np.random.default_rng(seed).integers(0, 2**bits, entries))
    return lut([entries, first, bits], "US", values.tolist())


@given(entries=st.integers(2, 5000), first=st.integers(0, 3000), bits=st.sampled_from([10, 12, 16]), modality=st.booleans())
@settings(max_examples=40, deadline=None)
def test_voi_tables_are_applied_as_pydicom_does(entries: int, first: int, bits: int, modality: bool) -> None:
    elements: dict[str, object] = {"VOILUTSequence": [table(entries, first, bits)]}
    if modality:
        elements["ModalityLUTSequence"] = [table(4096, 0, 16, seed=1)]
    elements |= {"WindowCenter": 5, "WindowWidth": 5}  # a table goes before a window
    header = item(**elements)
    expected = apply_voi_lut(apply_modality_lut(RAMP, header), header) / (2**bits - 1) * 255
    assert np.abs(shown(RAMP, **elements) - expected).max() <= 0.5 + 1e-9


def test_a_modality_table_comes_before_the_window() -> None:
    elements = {"ModalityLUTSequence": [table(3000, 500, 16)], "WindowCenter": 30_000, "WindowWidth": 40_000}
    values = apply_modality_lut(RAMP, item(**elements))
    expected = [standard_window(float(x), 30_000, 40_000, "LINEAR") for x in values.flat]
    assert np.abs(shown(RAMP, **elements).ravel() - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("word", ["<u1", "<u2"])
def test_tables_of_bytes_are_read_in_either_width(word: str) -> None:
    """More than 256 entries of 8 bits, which pydicom's own function wraps."""
    entries = (np.arange(4096) // 16).astype(word)
    packed = lut([4096, 0, 8], "OW", entries.tobytes())
    assert np.array_equal(shown(RAMP, VOILUTSequence=[packed]), RAMP // 16)


def test_a_table_that_is_too_short_is_damaged() -> None:
    short = lut([4096, 0, 16], "US", [1, 2, 3])
    with pytest.raises(ImageError, match="in memory: damaged"):
        shown(RAMP, VOILUTSequence=[short])
