"""Opening image files: every mode and turn, one frame of several, and every way a file can be wrong."""

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.kit.images import noise
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image

# Modes


def test_transparent_is_white() -> None:
    assert open_image(Image.new("RGBA", (4, 4), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("LA", (4, 4), (0, 128))).getpixel((0, 0)) == (127, 127, 127)
    keyed = Image.new("L", (2, 2), 7)
    keyed.info["transparency"] = 7  # PNG's transparent colour
    assert open_image(keyed).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_plain_modes_convert_as_pil_does(mode: str) -> None:
    image = noise(20, 10, mode)
    opened = open_image(image)
    assert opened.mode == ("L" if mode in ("1", "L") else "RGB")
    assert opened.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_turns_the_image(file_format: str) -> None:
    upright = noise(30, 20, "RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    stored = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stored, file_format, exif=exif, lossless=True)
    opened = open_image(stored.getvalue())
    assert opened.tobytes() == upright.tobytes()
    assert open_image(Image.open(stored)).tobytes() == upright.tobytes()
    assert open_image(opened).size == (30, 20)  # turned once, not twice


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_passed_over() -> None:
    image = noise(8, 8, "RGB")
    image.info["exif"] = b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1\1\x12"
    assert open_image(image).size == (8, 8)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey_is_windowed_by_percentiles(mode: str) -> None:
    values = np.arange(1000, dtype=np.float64).reshape(20, 50) * 40
    values[0, 0], values[-1, -1] = 0, 65000  # one hot pixel does not darken the rest
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(values.astype(dtype))
    assert image.mode == mode
    low, high = np.percentile(values, [1, 99.7])
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    pixels = np.asarray(open_image(image))
    assert np.abs(pixels - expected).max() <= 0.51
    assert pixels.min() == 0 and pixels.max() == 255


def test_deep_grey_of_one_value_or_with_holes() -> None:
    assert np.asarray(open_image(Image.fromarray(np.full((4, 4), 3000, np.uint16)))).max() == 0
    spots = np.zeros((100, 100), np.float32)
    spots[0, 0], spots[0, 1], spots[0, 2] = 5, np.nan, np.inf
    pixels = np.asarray(open_image(Image.fromarray(spots)))
    assert pixels[0].tolist()[:4] == [255, 0, 255, 0]
    assert np.asarray(open_image(Image.fromarray(np.full((4, 4), np.nan, np.float32)))).max() == 0


# TIFFs that PIL decodes without their tags


def tiff(values: np.ndarray, *, white_is_zero: bool = False, planar: bool = False, order: str = "<", turn: int = 1) -> bytes:
    """A TIFF of one strip, or of one per colour, of [H, W] or [H, W, 3]."""
    height, width, colours = values.shape[0], values.shape[1], values.shape[2] if values.ndim == 3 else 1
    stored = values.transpose(2, 0, 1) if planar else values[None]
    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in stored]
    bits, kind = 8 * values.itemsize, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    starts = [8 + sum(map(len, strips[:n])) for n in range(len(strips))]
    photometric = 2 if colours == 3 else 0 if white_is_zero else 1
    tags = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", [bits] * colours),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", starts),
        274: ("H", [turn]),
        277: ("H", [colours]),
        278: ("H", [height]),
        279: ("I", list(map(len, strips))),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * colours),
    }
    place = 8 + sum(map(len, strips))
    extra, entries = b"", b""
    for tag, (letter, numbers) in tags.items():
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack(f"{order}I", place + len(extra))
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[letter], len(numbers)) + packed.ljust(4, b"\0")
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place + len(extra))
    return header + b"".join(strips) + extra + directory


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_zero_is_white_at_any_depth(dtype: type, order: str) -> None:
    values = (np.arange(64 * 64).reshape(64, 64) * (255 / 4096 if dtype == np.uint8 else 7)).astype(dtype)
    black, white = (
        np.asarray(open_image(tiff(values, white_is_zero=zero, order=order))).astype(int) for zero in (False, True)
    )
    assert black[0, 0] == 0 and black[-1, -1] >= 254
    assert np.abs(255 - black - white).max() <= 3  # the percentiles are not symmetric


def test_a_turned_tiff_in_which_zero_is_white() -> None:
    values = np.arange(64 * 32, dtype=np.uint16).reshape(64, 32)
    turned = np.asarray(open_image(tiff(values, white_is_zero=True, turn=6))).astype(int)
    expected = 255 - np.rot90(np.asarray(open_image(Image.fromarray(values))), -1).astype(int)
    assert np.abs(turned - expected).max() <= 3


def test_colours_in_planes_are_read_or_refused() -> None:
    colours = np.asarray(noise(20, 10, "RGB"))
    assert np.array_equal(open_image(tiff(colours, planar=True)), colours)
    deep = colours.astype(np.uint16) * 257
    assert np.array_equal(open_image(tiff(deep)), colours)
    with pytest.raises(ImageError, match="in memory: a TIFF with 16-bit colours in separate planes"):
        open_image(tiff(deep, planar=True))


# Frames


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WEBP", "PNG"])
def test_a_frame_is_taken_by_its_index(tmp_path: Path, file_format: str) -> None:
    pages = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    file = tmp_path / f"pages.{file_format.lower()}"
    options = {"lossless": True} if file_format == "WEBP" else {}
    pages[0].save(file, file_format, save_all=True, append_images=pages[1:], **options)
    for index, page in enumerate(pages):
        assert open_image(file, frame=index).tobytes() == page.tobytes()
        assert open_image(file.read_bytes(), frame=index).tobytes() == page.tobytes()
    assert open_image(file).tobytes() == pages[0].tobytes()
    for index in (3, -1):
        with pytest.raises(ImageError, match=f"pages.*no frame {index}"):
            open_image(file, frame=index)
    assert open_image(f"{file}#frame=2").tobytes() == pages[2].tobytes()
    assert open_image(Path(f"{file}#frame=1")).tobytes() == pages[1].tobytes()
    assert open_image(f"{file}#frame=2", frame=1).tobytes() == pages[1].tobytes()
    with pytest.raises(ImageError, match="pages.*#frame=3: .*no frame 3"):
        open_image(f"{file}#frame=3")


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WEBP", "PNG", "MPO"])
def test_which_of_several_frames_is_shown_is_said_once(
    tmp_path: Path, file_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [noise(20, 10, "RGB", seed) for seed in range(3)]
    pages[0].save(tmp_path / "pages", file_format, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "page", file_format)
    for source in ("page", "pages#frame=0", "pages"):
        with caplog.at_level(logging.WARNING):
            assert open_image(tmp_path / source).size == (20, 10) and open_image(tmp_path / source).size == (20, 10)
    said = [record.getMessage() for record in caplog.records]
    # The other frames of a photograph are previews.
    several = [] if file_format == "MPO" else [f"{tmp_path}/pages: has 3 frames, shows frame 0; choose another one by "]
    assert [line[: len(several[0])] for line in said] == several


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damage_behind_the_shown_frame_is_passed_over(tmp_path: Path) -> None:
    pages = [noise(20, 10, "L", seed) for seed in range(3)]
    content = io.BytesIO()
    pages[0].save(content, "TIFF", save_all=True, append_images=pages[1:])
    assert open_image(content.getvalue()[:600]).tobytes() == pages[0].tobytes()


def test_a_file_of_one_picture_has_no_second_frame(tmp_path: Path) -> None:
    noise(20, 10, "RGB").save(tmp_path / "one.jpg")
    with pytest.raises(ImageError, match="one.jpg: has no frame 1"):
        open_image(tmp_path / "one.jpg", frame=1)


def test_the_size_of_every_page_is_checked(tmp_path: Path) -> None:
    pages = [noise(20, 10, "L"), noise(200, 100, "L")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert open_image(tmp_path / "pages.tif", max_pixels=1000).size == (20, 10)
    with pytest.raises(ImageError, match="pages.tif: 200x100 pixels are more than the 1000"):
        open_image(tmp_path / "pages.tif", frame=1, max_pixels=1000)


# Files that are wrong


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever its data holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an image"),
        (b"no image at all", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # PIL would start Ghostscript
        (png(9500, 9500), "pixels"),  # only PIL's warning
        (png(60_000, 60_000), "pixels"),  # PIL's error too
        (png(201, 1), "200 times"),
        (png(0, 5), ""),
        (png(30, 30), "damaged"),
        (png(30, 30, zlib.compress(bytes(31 * 30))[:9]), "damaged"),
        (png(30, 30, b"no deflate stream"), "damaged"),
    ],
    ids=["empty", "text", "eps", "big", "bomb", "strip", "zero", "no data", "truncated", "garbage"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_files_are_image_errors_naming_the_file(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "scan 7.png"
    file.write_bytes(content)
    for source in (file, str(file)):
        with pytest.raises(ImageError, match=f"scan 7.png.*{words}"):
            open_image(source)


def test_missing_files_and_folders_are_image_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="gone.png: file does not exist"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=tmp_path.name):
        open_image(tmp_path)
    with pytest.raises(ImageError):
        open_image("bad\0name.png")


def test_pixels_are_counted_before_decoding(tmp_path: Path) -> None:
    file = tmp_path / "claims.png"
    file.write_bytes(png(100, 100))  # no pixel data: decoding it would be another error
    with pytest.raises(ImageError, match="claims.png.*100x100.*more than the 9999"):
        open_image(file, max_pixels=9999)
    with pytest.raises(ImageError, match="in memory.*100x100"):
        open_image(noise(100, 100, "L"), max_pixels=9999)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_open_or_are_an_image_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Real files with bytes overwritten and cut off: whatever PIL's decoders make of them."""
    stored = io.BytesIO()
    file_format = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"]))
    noise(24, 16, "RGB").save(stored, file_format)
    content = bytearray(stored.getvalue())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "fuzzed"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = open_image(file, max_pixels=100_000)
    except ImageError as error:
        assert "fuzzed" in str(error)
    else:
        assert image.mode in ("L", "RGB")
        image.tobytes()


def test_opened_images_are_decoded_and_let_go_of_their_file(tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    noise(30, 20, "L").save(file)
    image = open_image(file)
    file.unlink()
    assert image.mode == "L" and image.tobytes() == noise(30, 20, "L").tobytes()


def test_the_content_of_a_file_will_do(tmp_path: Path) -> None:
    noise(30, 20, "RGB").save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert open_image(content).tobytes() == open_image(tmp_path / "a.png").tobytes()
    with pytest.raises(ImageError, match="an image in memory: damaged"):
        open_image(content[:200])
