"""DICOM against pydicom's own functions, and against the standard's formulas written out here."""

import math
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array
from pydicom.uid import JPEG2000, JPEGBaseline8Bit

from tests.pictures import dicom, item, noise
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image, to_rgb

THEIRS = Path(pydicom.__file__).parent / "data" / "test_files"  # real files, installed with the package

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def shown(*arguments: object, **elements: object) -> np.ndarray:
    """What `open_image` makes of a file of such elements."""
    return np.asarray(open_image(dicom(*arguments, **elements)))  # type: ignore[arg-type]


# pydicom's own files


def shown_by_pydicom(path: Path) -> np.ndarray:
    """Its functions put together, then stretched to 0 to 255: grey not yet rounded."""
    header = pydicom.dcmread(path)
    stored = pixel_array(path, index=0)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(stored, header) >> 8
    if stored.ndim == 3:
        return stored >> (header.BitsStored - 8)
    if header.BitsStored <= 8:
        return stored / (2**header.BitsStored - 1) * 255
    values = apply_modality_lut(stored, header)
    if "WindowCenter" in header or "VOILUTSequence" in header:
        values = apply_voi_lut(values, header)
        low, high = apply_voi_lut(np.array([-1e9, 1e9]), header)
    else:
        low, high = np.percentile(values, [1, 99.7])
    return (values - low) / (high - low) * 255


READ = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_padded.dcm",
    "JPEG2000.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_rle_16bit.dcm",
    "SC_rgb_rle_32bit_2frame.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "examples_overlay.dcm",
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
    "liver_1frame.dcm",
]


@pytest.mark.parametrize("name", READ)
def test_real_files_look_as_pydicom_shows_them(name: str) -> None:
    image = open_image(THEIRS / name)
    expected = shown_by_pydicom(THEIRS / name)
    assert image.mode == ("RGB" if expected.ndim == 3 else "L")
    assert np.abs(np.asarray(image) - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-3
    assert np.asarray(image).std() > 5  # something is to be seen


def test_real_files_of_the_test_data(test_data: Path) -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "liver_1frame.dcm"):
        assert open_image(test_data / "pydicom" / name) == open_image(THEIRS / name)


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("JPEGLSNearLossless_08.dcm", "no decoder of JPEG-LS Lossy.*1.2.840.10008.1.2.4.81"),
        ("MR_small_jpeg_ls_lossless.dcm", "no decoder of JPEG-LS Lossless.*1.2.840.10008.1.2.4.80"),
        ("JPEG-lossy.dcm", "JPEG Extended.*1.2.840.10008.1.2.4.51.*cannot be decoded"),
        ("image_dfl.dcm", "Deflated Explicit VR Little Endian, is not read"),
        ("MR_truncated.dcm", "damaged or truncated"),
        ("SC_rgb_jpeg.dcm", "damaged or truncated"),  # not in the encoding that it states
        ("nested_priv_SQ.dcm", "without an image"),
        ("no_meta.dcm", "without an image"),
    ],
)
def test_files_that_cannot_be_shown_say_why(name: str, words: str) -> None:
    with pytest.raises(ImageError, match=f"{name}: .*{words}"):
        open_image(THEIRS / name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(THEIRS.glob("*.dcm")), ids=lambda path: path.name)
def test_every_file_of_pydicoms_opens_or_is_an_image_error(path: Path) -> None:
    try:
        assert open_image(path).mode in ("L", "RGB")
    except ImageError as error:
        assert path.name in str(error)


# Recognising


def test_a_file_is_dicom_by_its_content_or_its_name(tmp_path: Path) -> None:
    expected = open_image(THEIRS / "CT_small.dcm")
    shutil.copy(THEIRS / "CT_small.dcm", tmp_path / "scan")
    assert open_image(tmp_path / "scan") == expected
    assert open_image((THEIRS / "CT_small.dcm").read_bytes()) == expected
    noise(9, 9, "L").save(tmp_path / "plain.dcm", "PNG")
    with pytest.raises(ImageError, match="plain.dcm"):
        open_image(tmp_path / "plain.dcm")


@pytest.mark.parametrize("name", ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm", "MR_small_implicit.dcm"])
def test_a_file_without_preamble_and_meta_information_is_read(name: str, tmp_path: Path) -> None:
    content = (THEIRS / name).read_bytes()
    if content[128:132] == b"DICM":
        group_length = int.from_bytes(content[140:144], "little")
        content = content[144 + group_length :]
    (tmp_path / "bare.DCM").write_bytes(content)
    header = pydicom.dcmread(tmp_path / "bare.DCM", force=True)
    if "Rows" not in header:
        with pytest.raises(ImageError, match="bare.DCM: a DICOM file without an image"):
            open_image(tmp_path / "bare.DCM")
    else:
        assert open_image(tmp_path / "bare.DCM") == open_image(THEIRS / name)


# Windows


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
    expected = np.asarray(to_rgb(Image.fromarray(RAMP)))[..., 0]
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


def lut(descriptor: list[int], representation: str, data: object) -> Dataset:
    dataset = item(LUTDescriptor=descriptor)
    dataset.add_new("LUTData", representation, data)
    return dataset


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


# Colours


def test_colours_of_every_kind() -> None:
    colours = np.asarray(noise(20, 10, "RGB"))
    assert np.array_equal(shown(colours), colours)
    by_plane = np.ascontiguousarray(colours.transpose(2, 0, 1)).tobytes()
    assert np.array_equal(shown(by_plane, (10, 20, 3), PlanarConfiguration=1), colours)
    deep = colours.astype(np.uint16) * 257
    assert np.array_equal(shown(deep), colours)

    luma = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    expected = np.asarray(Image.fromarray(luma, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(shown(luma, PhotometricInterpretation="YBR_FULL") - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_are_looked_up(bits: int) -> None:
    stored = np.asarray(noise(20, 10, "L"))
    colours = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint8)
    tables = colours if bits == 8 else colours.astype("<u2") * 256
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    assert np.array_equal(shown(stored, **elements), colours.T[stored])


def test_an_unknown_colour_space_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="photometric interpretation, (HSV|None)"):
        shown(RAMP, PhotometricInterpretation="HSV")


def test_jpeg_inside_is_decoded_as_pil_does(tmp_path: Path) -> None:
    noise(40, 30, "L").save(tmp_path / "inner.jpg", quality=90)
    content = encapsulate([(tmp_path / "inner.jpg").read_bytes()])
    expected = np.asarray(Image.open(tmp_path / "inner.jpg"))
    assert np.array_equal(shown(content, (30, 40), syntax=JPEGBaseline8Bit), expected)


# Frames


def test_a_frame_is_taken_by_its_index(tmp_path: Path) -> None:
    frames = np.stack([np.asarray(noise(20, 10, "L", seed)) for seed in range(3)])
    (tmp_path / "cine.dcm").write_bytes(dicom(frames))
    for index, frame in enumerate(frames):
        assert np.array_equal(open_image(tmp_path / "cine.dcm", frame=index), frame)
    for index in (3, -1):
        with pytest.raises(ImageError, match=f"cine.dcm: it has no frame {index}, only 0 to 2"):
            open_image(tmp_path / "cine.dcm", frame=index)


def test_frames_of_an_enhanced_file_have_their_own_window() -> None:
    frames = np.stack([RAMP, RAMP])
    windows = [(1000, 500), (2000, 4000)]
    shared = item(PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-10)])
    per_frame = [item(FrameVOILUTSequence=[item(WindowCenter=c, WindowWidth=w)]) for c, w in windows]
    content = dicom(frames, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=per_frame)
    for index, (centre, width) in enumerate(windows):
        expected = shown(RAMP, RescaleSlope=2, RescaleIntercept=-10, WindowCenter=centre, WindowWidth=width)
        assert np.array_equal(open_image(content, frame=index), expected)


def test_segments_of_one_bit_are_black_and_white() -> None:
    """Frames of 20 pixels, that do not begin at a byte."""
    frames = np.random.default_rng(0).integers(0, 2, (3, 5, 4), dtype=np.uint8)
    packed = np.packbits(frames.ravel(), bitorder="little").tobytes()
    content = dicom(packed, (3, 5, 4), BitsAllocated=1, BitsStored=1, HighBit=0)
    for index, frame in enumerate(frames):
        assert np.array_equal(open_image(content, frame=index), 255 * frame)


# Files that are wrong


def test_pixels_are_counted_before_decoding(tmp_path: Path) -> None:
    file = tmp_path / "claims.dcm"
    file.write_bytes(dicom(b"", (100, 100)))  # no pixels: decoding them would be another error
    with pytest.raises(ImageError, match="claims.dcm: 100x100 pixels are more than the 9999"):
        open_image(file, max_pixels=9999)
    with pytest.raises(ImageError, match="claims.dcm: damaged or truncated"):
        open_image(file)
    file.write_bytes(dicom(b"", (60_000, 60_000)))
    with pytest.raises(ImageError, match="claims.dcm: 60000x60000 pixels are more"):
        open_image(file)
    file.write_bytes(dicom(b"", (201, 1)))
    with pytest.raises(ImageError, match="claims.dcm: 1x201 pixels, the longer side"):
        open_image(file)
    file.write_bytes(dicom(b"", (0, 5)))
    with pytest.raises(ImageError, match="claims.dcm: an empty image"):
        open_image(file)


def test_a_compressed_frame_is_as_large_as_the_header_says(tmp_path: Path) -> None:
    """Or a file of a few kilobytes would decode to gigabytes."""
    noise(40, 30, "L").save(tmp_path / "inner.jpg")
    content = encapsulate([(tmp_path / "inner.jpg").read_bytes()])
    with pytest.raises(ImageError, match="in memory: a frame of 40x30 pixels, where the header says 20x10"):
        shown(content, (10, 20), syntax=JPEGBaseline8Bit)


def test_a_box_without_a_length_is_damage(tmp_path: Path) -> None:
    """pydicom steps over it for ever."""
    noise(40, 30, "L").save(tmp_path / "inner.jp2")
    whole = (tmp_path / "inner.jp2").read_bytes()
    place = whole.index(b"jp2c") - 4
    assert shown(encapsulate([whole]), (30, 40), syntax=JPEG2000).shape == (30, 40)
    with pytest.raises(ImageError, match="in memory: damaged: a box"):
        shown(encapsulate([whole[:place] + b"\0\0\0\0free" + whole[place:]]), (30, 40), syntax=JPEG2000)


FUZZED = [
    dicom(RAMP[:12, :8], WindowCenter=40, WindowWidth=400, RescaleSlope=2, VOILUTSequence=[table(20, 0, 12)]),
    dicom(np.asarray(noise(9, 7, "RGB"))),
    (THEIRS / "MR_small_RLE.dcm").read_bytes(),
    (THEIRS / "liver_expb_1frame.dcm").read_bytes(),
    (THEIRS / "SC_rgb_small_odd_jpeg.dcm").read_bytes(),
    (THEIRS / "MR_small_jp2klossless.dcm").read_bytes(),
]


@given(st.data())
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_open_or_are_an_image_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Real files with bytes overwritten and cut off: whatever pydicom and its decoders make of them."""
    content = bytearray(data.draw(st.sampled_from(FUZZED)))
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(132, len(content) - 1) | st.integers(132, 1400))
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), 132]) | st.integers(0, len(content)))
    file = tmp_path_factory.getbasetemp() / "fuzzed.dcm"
    file.write_bytes(content[:cut])
    frame = data.draw(st.sampled_from([0, 0, 0, 1, -1]))
    try:
        image = open_image(file, frame=frame, max_pixels=100_000)
    except ImageError as error:
        assert "fuzzed.dcm" in str(error)
    else:
        assert image.mode in ("L", "RGB") and len(image.tobytes())
