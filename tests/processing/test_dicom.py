"""DICOM files as a whole, against pydicom's own functions."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import JPEG2000, JPEGBaseline8Bit

from tests.kit.images import dicom, item, lut, noise, shown
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image

THEIRS = Path(pydicom.__file__).parent / "data" / "test_files"  # real files, installed with the package
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


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


def test_stored_bits_may_lie_above_the_lowest() -> None:
    """HighBit says where. Other bits may hold anything, such as an overlay."""
    window = {"BitsStored": 12, "WindowCenter": 1000, "WindowWidth": 800}
    expected = shown(RAMP, HighBit=11, **window)
    assert np.array_equal(shown(RAMP << 4, HighBit=15, **window), expected)
    assert np.array_equal(shown(RAMP << 2 | 0xC003, HighBit=13, **window), expected)
    assert np.array_equal(shown(RAMP | 0xF000, HighBit=11, **window), expected)
    signed = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    window |= {"WindowCenter": -1048}
    assert np.array_equal(shown(signed << 4, HighBit=15, **window), shown(signed, HighBit=11, **window))
    small = RAMP[:1, :64].astype(np.uint8)
    assert np.array_equal(shown(small << 2, BitsStored=6, HighBit=7), shown(small, BitsStored=6, HighBit=5))


@pytest.mark.parametrize("bits", [{"HighBit": 16}, {"BitsStored": 17}, {"BitsStored": 0}])
def test_bits_that_contradict_each_other_are_damage(bits: dict[str, int]) -> None:
    with pytest.raises(ImageError, match="in memory: .*[bB]its ?[sS]tored"):
        shown(RAMP, **{"BitsStored": 12, "HighBit": 11, **bits})


def test_a_palette_of_bytes_that_is_said_to_be_of_words() -> None:
    """Its colours would all be black."""
    stored = np.asarray(noise(20, 10, "L"))
    colours = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint8)
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), colours.astype("<u2"), strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    assert np.array_equal(shown(stored, **elements), colours.T[stored])


# Frames


def test_a_frame_is_taken_by_its_index(tmp_path: Path) -> None:
    frames = np.stack([np.asarray(noise(20, 10, "L", seed)) for seed in range(3)])
    (tmp_path / "cine.dcm").write_bytes(dicom(frames))
    for index, frame in enumerate(frames):
        assert np.array_equal(open_image(tmp_path / "cine.dcm", frame=index), frame)
    for index in (3, -1):
        with pytest.raises(ImageError, match=f"cine.dcm: it has no frame {index}, only 0 to 2"):
            open_image(tmp_path / "cine.dcm", frame=index)


def test_which_of_several_frames_is_shown_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cine.dcm").write_bytes(dicom(np.stack([np.asarray(noise(20, 10, "L", seed)) for seed in range(3)])))
    with caplog.at_level(logging.WARNING):
        for source in ("cine.dcm", "cine.dcm", "cine.dcm#frame=1"):
            open_image(tmp_path / source)
    (record,) = caplog.records
    assert f"{tmp_path / 'cine.dcm'}: has 3 frames, shows frame 0" in record.getMessage()


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
    dicom(
        RAMP[:12, :8], WindowCenter=40, WindowWidth=400, RescaleSlope=2, VOILUTSequence=[lut([20, 0, 12], "US", [*range(20)])]
    ),
    dicom(np.asarray(noise(9, 7, "RGB"))),
    (THEIRS / "MR_small_RLE.dcm").read_bytes(),
    (THEIRS / "liver_expb_1frame.dcm").read_bytes(),
    (THEIRS / "SC_rgb_small_odd_jpeg.dcm").read_bytes(),
    (THEIRS / "MR_small_jp2klossless.dcm").read_bytes(),
]


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300)
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
