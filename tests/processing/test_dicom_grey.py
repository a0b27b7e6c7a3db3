"""Windows and tables of grey DICOM files, against pydicom's functions and the standard's formulas written out here."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
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
@settings(max_examples=60)
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


def test_padding_is_left_out_of_percentiles() -> None:
    """It is black, and the other values are shown as if it was not there."""
    inside = np.asarray(open_image(Image.fromarray(RAMP)))
    for padding, limits in (
        (60_000, {"PixelPaddingValue": 60_000}),
        (0, {"PixelPaddingValue": 0}),
        (60_000, {"PixelPaddingValue": 59_000, "PixelPaddingRangeLimit": 61_000}),
        (60_000, {"PixelPaddingValue": 61_000, "PixelPaddingRangeLimit": 59_000}),
    ):
        padded = np.concatenate([RAMP + 1, np.full_like(RAMP, padding)])
        ours = shown(padded, **limits)
        assert np.array_equal(ours[:64], inside) and not ours[64:].any()
        inverted = shown(60_001 - padded if padding else padded, PhotometricInterpretation="MONOCHROME1", **limits)
        assert padding or not inverted[64:].any()
    signed = np.concatenate([RAMP.astype(np.int16) - 1024, np.full((64, 64), -2000, np.int16)])
    for content in (
        dicom(signed, PixelPaddingValue=-2000),
        written(signed, "PixelPaddingValue", "US", 2**16 - 2000),  # as an unsigned number
    ):
        ours = np.asarray(open_image(content))
        assert np.array_equal(ours[:64], inside) and not ours[64:].any()
    assert not shown(np.full((4, 4), 7, np.uint16), PixelPaddingValue=7).any()  # nothing but padding


# Elements that are badly written


def written(pixels: np.ndarray, keyword: str, representation: str, value: object, **elements: object) -> bytes:
    """A file in which one element has another type, or bytes that no library would write."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    place = tag.to_bytes(4, "big")
    encoded = value if isinstance(value, bytes) else int(value).to_bytes(2, "little")  # type: ignore[call-overload]
    encoded += b" " * (len(encoded) % 2)
    long = representation in ("OB", "OW", "SQ", "UN")
    length = bytes(2) + len(encoded).to_bytes(4, "little") if long else len(encoded).to_bytes(2, "little")
    element = place[1::-1] + place[:1:-1] + representation.encode() + length + encoded
    content = dicom(pixels, **elements)  # type: ignore[arg-type]
    dataset = dcmread(io.BytesIO(content))
    behind = min(other for other in dataset.keys() if other > tag)
    encoded_tag = behind.group.to_bytes(2, "little") + behind.elem.to_bytes(2, "little")
    start = content.index(encoded_tag + dataset[behind].VR.encode())
    return content[:start] + element + content[start:]


WINDOW = {"WindowCenter": 1000, "WindowWidth": 800}
TEXTS: dict[str, list[tuple[str, bytes | int]]] = {
    "of another type": [("LO", b"800"), ("UN", b"800 "), ("OB", b"800 "), ("IS", b"800"), ("LT", b"800\\3"), ("US", 800)],
    "of odd form": [("DS", text) for text in (b"800\0", b" 800", b"8e2", b"800\\", b"\\800", b"800\\1\\2")],
    "missing": [("DS", b""), ("DS", b"  "), ("LO", b""), ("UN", b""), ("SQ", b"")],
    "damaged": [("DS", text) for text in (b"800,5", b"800,400", b"wide", b"nan", b"inf", b"\xff\x80")] + [("UN", b"\1\2")],
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_badly_written_window_is_shown_or_refused_by_name(kind: str) -> None:
    for representation, value in TEXTS[kind]:
        for keyword, other in (("WindowCenter", "WindowWidth"), ("WindowWidth", "WindowCenter")):
            content = written(RAMP, keyword, representation, value, **{other: 800})
            if kind == "damaged":
                with pytest.raises(ImageError, match=f"in memory: damaged: .*its {keyword} "):
                    open_image(content)
            else:
                expected = shown(RAMP) if kind == "missing" else shown(RAMP, **{keyword: 800, other: 800})
                assert np.array_equal(open_image(content), expected), (representation, value)


def test_a_badly_written_rescale_is_applied_or_refused_by_name() -> None:
    for representation, value in TEXTS["of another type"] + TEXTS["of odd form"]:
        window = {"WindowCenter": 800_000, "WindowWidth": 640_000}
        content = written(RAMP, "RescaleSlope", representation, value, **window)
        assert np.array_equal(open_image(content), shown(RAMP, RescaleSlope=800, RescaleIntercept=0, **window))
    for representation, value in TEXTS["missing"]:
        assert np.array_equal(open_image(written(RAMP, "RescaleSlope", representation, value, **WINDOW)), shown(RAMP, **WINDOW))
    for representation, value in [*TEXTS["damaged"], ("DS", b"0")]:
        with pytest.raises(ImageError, match="in memory: damaged: .*its RescaleSlope "):
            open_image(written(RAMP, "RescaleSlope", representation, value, **WINDOW))


# Tables


def table(entries: int, first: int, bits: int, seed: int = 0) -> Dataset:
    values = np.sort(np.random.default_rng(seed).integers(0, 2**bits, entries))
    return lut([entries, first, bits], "US", values.tolist())


@given(entries=st.integers(2, 5000), first=st.integers(0, 3000), bits=st.sampled_from([10, 12, 16]), modality=st.booleans())
@settings(max_examples=40)
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


def voi(descriptor: object, data: object, *, described_by: str = "US", stored_as: str = "US") -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", described_by, descriptor)
    table.add_new("LUTData", stored_as, data)
    return table


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_an_item_without_a_table_falls_back_to_the_next_one_or_to_numbers(sequence: str) -> None:
    numbers = WINDOW | {"RescaleSlope": 1, "RescaleIntercept": 100}
    empty = [item(LUTExplanation="Normal"), voi(None, None, stored_as="OW"), voi([4096, 0, 12], None), voi(None, [1, 2])]
    for items in (empty[:1], empty):
        assert np.array_equal(shown(RAMP, **numbers, **{sequence: items}), shown(RAMP, **numbers))
    whole = table(4096, 0, 12)
    assert np.array_equal(shown(RAMP, **numbers, **{sequence: [*empty, whole]}), shown(RAMP, **numbers, **{sequence: [whole]}))


CURVE = (np.arange(4096) // 2 + 2047).astype("<u2")
DESCRIPTOR = np.array([4096, 0, 12], "<u2").tobytes()


@pytest.mark.parametrize(
    "badly_written",
    [
        voi([4096, 0, 12], CURVE.tobytes(), stored_as="OW"),
        voi([4096, 0, 12], CURVE.tobytes(), stored_as="UN"),
        voi([4096, 0, 12], CURVE.tobytes(), stored_as="OB"),
        voi([4096, 0, 12], CURVE.tolist(), stored_as="SS"),
        voi([4096, 0, 12], CURVE.tolist(), stored_as="DS"),
        voi(DESCRIPTOR, CURVE.tolist(), described_by="OW"),
        voi(DESCRIPTOR, CURVE.tolist(), described_by="UN"),
        voi("4096\\0\\12", CURVE.tolist(), described_by="LO"),
        voi([4096, 0, 12, 7], CURVE.tolist()),  # more values than stated
        voi([4096, 0, 12], [*CURVE.tolist(), 0, 0]),
        voi([4096, 0, 16], CURVE.tolist()),  # the bits of a word: the picture would be black
        voi([4096, 0, 8], CURVE.tolist()),  # and here white
        voi([4096, 0, 0], CURVE.tolist()),
    ],
)
def test_a_badly_written_table_is_read(badly_written: Dataset) -> None:
    expected = shown(RAMP, VOILUTSequence=[lut([4096, 0, 12], "US", CURVE.tolist())])
    assert np.array_equal(shown(RAMP, VOILUTSequence=[badly_written]), expected)


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (lut([4096, 0, 16], "US", [1, 2, 3]), "LUTData of its VOILUTSequence has 3 entries, its LUTDescriptor states 4096"),
        (lut([4096, 0, 16], "OW", CURVE.tobytes()[:5000]), "LUTData of its VOILUTSequence has 2500 entries"),
        (voi([4096, 0], CURVE.tolist()), r"LUTDescriptor of its VOILUTSequence is \[4096, 0\], expected 3 numbers"),
        (voi("4096,0,12", CURVE.tolist(), described_by="LO"), "its LUTDescriptor is '4096,0,12', expected a number"),
        (lut([4096, 0, 12], "US", [0] * 4096), "all entries of its VOILUTSequence are 0"),
        (lut([4096, 0, 12], "US", [4095] * 4096), "all entries of its VOILUTSequence are 4095"),
    ],
)
def test_a_damaged_table_is_refused_by_name(damaged: Dataset, words: str) -> None:
    with pytest.raises(ImageError, match=f"in memory: damaged: {words}"):
        shown(RAMP, VOILUTSequence=[damaged], **WINDOW)


def test_the_first_value_of_a_table_may_have_the_other_sign() -> None:
    signed, high = RAMP.astype(np.int16) - 1024, RAMP + np.uint16(40_000)
    expected = shown(RAMP, VOILUTSequence=[lut([4096, 0, 12], "US", CURVE.tolist())])
    for stored, first, representation in (
        (signed, -1024, "SS"),
        (signed, 2**16 - 1024, "US"),
        (high, 40_000, "US"),
        (high, 40_000 - 2**16, "SS"),
    ):
        one = voi([4096, first, 12], CURVE.tolist(), described_by=representation)
        assert np.array_equal(shown(stored, VOILUTSequence=[one]), expected)
