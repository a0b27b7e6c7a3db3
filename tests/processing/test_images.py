"""Image processing against Hugging Face's, bit for bit, and against every way a file can be wrong."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vitar_jax.errors import ConfigError, ImageError
from vitar_jax.processing.images import ImageProcessor, open_image, to_rgb

DEFAULT = ImageProcessor()
SMALL = ImageProcessor(min_pixels=7056, max_pixels=7056)
HALF = (0.5, 0.5, 0.5)
QWEN3 = ImageProcessor(patch_size=16, min_pixels=65536, max_pixels=262144, image_mean=HALF, image_std=HALF)
PROCESSORS = {"default": DEFAULT, "small": SMALL, "qwen3": QWEN3}


def hugging_face(processor: ImageProcessor) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=processor.patch_size,
        temporal_patch_size=processor.temporal_patch_size,
        merge_size=processor.merge_size,
        size={"shortest_edge": processor.min_pixels, "longest_edge": processor.max_pixels},
        image_mean=list(processor.image_mean),
        image_std=list(processor.image_std),
    )


ORACLES = {name: hugging_face(processor) for name, processor in PROCESSORS.items()}


def noise(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    """Smooth and rough parts, black and white ones: bicubic overshoots are clipped at both ends."""
    generator = np.random.default_rng(seed)
    channels = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    values[: height // 2] = np.where(values[: height // 2] > 127, 255, 0)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    if mode == "P":
        return Image.fromarray(np.repeat(values, 3, 2)).quantize(17)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


def assert_equal(processor: ImageProcessor, oracle: Qwen2VLImageProcessorPil, image: Image.Image) -> None:
    ours, theirs = processor(image), oracle(image)
    assert ours.patches.dtype == np.float32 and ours.patches.flags.c_contiguous
    assert np.array_equal(ours.patches, theirs["pixel_values"])
    assert list(ours.grid_thw) == theirs["image_grid_thw"][0].tolist()
    assert ours.size == tuple(processor.patch_size * side for side in ours.grid_thw[1:])
    merged = len(ours.patches) // processor.merge_size**2
    assert processor.num_tokens(image.height, image.width) == merged


# Equality with Hugging Face


@pytest.mark.parametrize("name", PROCESSORS)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    mode=st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"]),
    seed=st.integers(0, 3),
)
@example(width=3000, height=28, mode="RGB", seed=0)
@example(width=28, height=3000, mode="L", seed=0)
@example(width=7, height=5, mode="RGB", seed=0)
@example(width=1, height=200, mode="RGB", seed=0)
@example(width=1, height=1, mode="L", seed=0)
@example(width=84, height=84, mode="RGB", seed=0)  # its size already: not resized
@settings(max_examples=60, deadline=None)
def test_patches_equal_hugging_faces(name: str, width: int, height: int, mode: str, seed: int) -> None:
    if max(width, height) > 200 * min(width, height):
        width = height = max(width, height)
    assert_equal(PROCESSORS[name], ORACLES[name], noise(width, height, mode, seed))


@given(width=st.integers(1, 800), height=st.integers(1, 800))
@settings(max_examples=60, deadline=None)
def test_grey_is_resized_as_one_channel_to_the_same_bits(width: int, height: int) -> None:
    grey = noise(width, height, "L")
    if max(width, height) <= 200 * min(width, height):
        assert np.array_equal(SMALL(grey).patches, SMALL(grey.convert("RGB")).patches)


@given(
    height=st.integers(1, 20_000),
    width=st.integers(1, 20_000),
    min_pixels=st.integers(1, 2_000_000),
    span=st.integers(0, 12_000_000),
    factor=st.sampled_from([28, 32]),
)
@settings(max_examples=500, deadline=None)
def test_target_size_is_smart_resize(height: int, width: int, min_pixels: int, span: int, factor: int) -> None:
    processor = ImageProcessor(patch_size=factor // 2, min_pixels=min_pixels, max_pixels=min_pixels + span)
    try:
        expected = smart_resize(height, width, factor, min_pixels, min_pixels + span)
    except ValueError:
        with pytest.raises(ImageError, match=f"{width}x{height}"):
            processor.target_size(height, width)
    else:
        assert processor.target_size(height, width) == expected


def test_halves_round_to_even_as_in_python() -> None:
    assert DEFAULT.target_size(70, 98) == (56, 112)  # 2.5 and 3.5 factors


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_real_radiology_images(test_data: Path, stride: int) -> None:
    processor = ImageProcessor.from_pretrained(test_data / "qwen2_5_vl_7b_instruct")
    oracle = Qwen2VLImageProcessorPil.from_pretrained(test_data / "qwen2_5_vl_7b_instruct")
    files = sorted((test_data / "vqa_rad" / "images").glob("*.jpg"))
    assert len(files) == 315
    for file in files[::stride]:
        image = open_image(file)
        assert_equal(processor, oracle, image)
        assert np.array_equal(SMALL(image).patches, ORACLES["small"](image)["pixel_values"]), file.name


# Settings


def test_reads_qwens_own_settings(test_data: Path) -> None:
    assert ImageProcessor.from_pretrained(test_data / "qwen2_5_vl_7b_instruct") == ImageProcessor(
        min_pixels=3136, max_pixels=12_845_056
    )


@pytest.mark.parametrize("name", PROCESSORS)
def test_hugging_face_reads_what_we_save_and_we_what_it_saves(name: str, tmp_path: Path) -> None:
    processor = PROCESSORS[name]
    processor.save_pretrained(tmp_path / "ours")
    assert ImageProcessor.from_pretrained(tmp_path / "ours") == processor
    oracle = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "ours")
    assert_equal(processor, oracle, noise(300, 200, "RGB"))
    oracle.save_pretrained(tmp_path / "theirs")  # with `size`, and without min_pixels
    assert "min_pixels" not in json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    assert ImageProcessor.from_pretrained(tmp_path / "theirs") == processor


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "JSON"),
        ("[]", "not an object"),
        ('{"do_normalize": false}', "do_normalize"),
        ('{"resample": 2}', "resample"),
        ('{"rescale_factor": 1}', "rescale_factor"),
        ('{"size": {"height": 224, "width": 224}}', "shortest_edge"),
        ('{"min_pixels": 10, "max_pixels": 5}', "max_pixels"),
        ('{"image_std": [0.5, 0.5]}', "image_std"),
        ('{"patch_size": 0}', "patch_size"),
        ('{"patch_size": "14"}', "patch_size"),
        ('{"max_pixels": 1.5}', "max_pixels"),
        ('{"image_mean": 0.5}', ""),
        ('{"image_mean": ["red", 0, 0]}', "red"),
    ],
)
def test_unusable_settings_are_config_errors_naming_the_file(tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(config)
    with pytest.raises(ConfigError, match=f"preprocessor_config.json.*{words}"):
        ImageProcessor.from_pretrained(tmp_path)


def test_missing_settings_are_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preprocessor_config.json: there is no such file"):
        ImageProcessor.from_pretrained(tmp_path)


# Modes


def test_transparent_is_white() -> None:
    assert to_rgb(Image.new("RGBA", (4, 4), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("LA", (4, 4), (0, 128))).getpixel((0, 0)) == (127, 127, 127)
    keyed = Image.new("L", (2, 2), 7)
    keyed.info["transparency"] = 7  # PNG's transparent colour
    assert to_rgb(keyed).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_plain_modes_convert_as_pil_does(mode: str) -> None:
    image = noise(20, 10, mode)
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_turns_the_image(file_format: str) -> None:
    upright = noise(30, 20, "RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    stored = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stored, file_format, exif=exif, lossless=True)
    opened = open_image(stored.getvalue())
    assert opened.tobytes() == upright.tobytes()
    assert to_rgb(Image.open(stored)).tobytes() == upright.tobytes()
    assert np.array_equal(SMALL(Image.open(stored)).patches, SMALL(upright).patches)
    assert open_image(to_rgb(opened)).size == (30, 20)  # turned once, not twice


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_passed_over() -> None:
    image = noise(8, 8, "RGB")
    image.info["exif"] = b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1\1\x12"
    assert to_rgb(image).size == (8, 8)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey_is_windowed_by_percentiles(mode: str) -> None:
    values = np.arange(1000, dtype=np.float64).reshape(20, 50) * 40
    values[0, 0], values[-1, -1] = 0, 65000  # one hot pixel does not darken the rest
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(values.astype(dtype))
    assert image.mode == mode
    low, high = np.percentile(values, [1, 99.7])
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    pixels = np.asarray(to_rgb(image))
    assert np.abs(pixels[..., 0] - expected).max() <= 0.51
    assert pixels.min() == 0 and pixels.max() == 255
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_deep_grey_of_one_value_or_with_holes() -> None:
    assert np.asarray(to_rgb(Image.fromarray(np.full((4, 4), 3000, np.uint16)))).max() == 0
    spots = np.zeros((100, 100), np.float32)
    spots[0, 0], spots[0, 1], spots[0, 2] = 5, np.nan, np.inf
    pixels = np.asarray(to_rgb(Image.fromarray(spots)))[..., 0]
    assert pixels[0].tolist()[:4] == [255, 0, 255, 0]
    assert np.asarray(to_rgb(Image.fromarray(np.full((4, 4), np.nan, np.float32)))).max() == 0


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
    with pytest.raises(ImageError, match="gone.png: there is no such file"):
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


@given(st.data())
@settings(max_examples=200, deadline=None)
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
        SMALL(image)


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
