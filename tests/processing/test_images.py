"""Image processing against Hugging Face's, bit for bit."""

import dataclasses
import importlib
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers import image_processing_backends
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from tests.kit.files import write_files
from tests.kit.images import noise
from vitar_jax.errors import ConfigError, ImageError
from vitar_jax.processing.images import ImageProcessor

DEFAULT = ImageProcessor()
SMALL = ImageProcessor(min_pixels=7056, max_pixels=7056)
HALF = (0.5, 0.5, 0.5)
QWEN3 = ImageProcessor(patch_size=16, min_pixels=65536, max_pixels=16777216, image_mean=HALF, image_std=HALF)
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


class _Torchvision:
    """The two functions of torchvision (which is not a test dependency) that Hugging Face's video processor calls.

    For bytes on a CPU they are these calls of torch.
    """

    InterpolationMode = SimpleNamespace(LANCZOS="lanczos")

    @staticmethod
    def resize(video: torch.Tensor, size: tuple[int, int], *, interpolation: str, antialias: bool) -> torch.Tensor:
        if video.shape[-2:] == size:
            return video
        frames = video.flatten(0, 1)
        resized = torch.nn.functional.interpolate(frames, size, mode=interpolation, antialias=antialias)
        return resized.unflatten(0, video.shape[:2])

    @staticmethod
    def normalize(video: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, inplace: bool) -> torch.Tensor:
        return (video - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@cache
def video_processor_class() -> type:
    """Hugging Face's `Qwen2VLVideoProcessor`, on top of `_Torchvision`."""
    v2 = SimpleNamespace(functional=_Torchvision)
    stubs: dict[str, Any] = {
        "torchvision": SimpleNamespace(transforms=SimpleNamespace(v2=v2)),
        "torchvision.transforms": SimpleNamespace(v2=v2),
        "torchvision.transforms.v2": v2,
        "torchvision.transforms.v2.functional": _Torchvision,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        module = importlib.import_module("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    return module.Qwen2VLVideoProcessor


def hugging_face_video(processor: ImageProcessor, frames: Sequence[Image.Image]) -> tuple[np.ndarray, tuple[int, ...]]:
    size = {"shortest_edge": processor.min_pixels, "longest_edge": processor.max_pixels}
    theirs = object.__new__(video_processor_class())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_processing_backends, "tvF", _Torchvision, raising=False)
        patch.setattr(image_processing_backends, "pil_torch_interpolation_mapping", {3: "bicubic"})
        video = np.stack([np.asarray(frame.convert("RGB")) for frame in frames]).transpose(0, 3, 1, 2)
        result = theirs._preprocess(
            [torch.from_numpy(video)],
            do_resize=True,
            size=SizeDict(**size),
            resample=3,
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            image_mean=tuple(processor.image_mean),
            image_std=tuple(processor.image_std),
            patch_size=processor.patch_size,
            temporal_patch_size=processor.temporal_patch_size,
            merge_size=processor.merge_size,
            cap_pixels_per_frame=False,
        )
    return result["pixel_values_videos"].numpy(), tuple(result["video_grid_thw"][0].tolist())


def assert_equal(processor: ImageProcessor, oracle: Qwen2VLImageProcessorPil, image: Image.Image) -> None:
    ours, theirs = processor(image), oracle(image)
    assert ours.patches.dtype == np.float32 and ours.patches.flags.c_contiguous
    assert np.array_equal(ours.patches, theirs["pixel_values"])
    assert list(ours.grid_thw) == theirs["image_grid_thw"][0].tolist()
    assert ours.size == tuple(processor.patch_size * side for side in ours.grid_thw[1:])
    assert ours.size == processor.target_size(image.height, image.width)


# Equality with Hugging Face


@pytest.mark.slow
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
@settings(max_examples=60)
def test_patches_equal_hugging_faces(name: str, width: int, height: int, mode: str, seed: int) -> None:
    if max(width, height) > 200 * min(width, height):
        width = height = max(width, height)
    assert_equal(PROCESSORS[name], ORACLES[name], noise(width, height, mode, seed, extremes=True))


@given(width=st.integers(1, 800), height=st.integers(1, 800))
@settings(max_examples=60)
def test_grey_is_resized_as_one_channel_to_the_same_bits(width: int, height: int) -> None:
    grey = noise(width, height, "L", extremes=True)
    if max(width, height) <= 200 * min(width, height):
        assert np.array_equal(SMALL(grey).patches, SMALL(grey.convert("RGB")).patches)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_pixel_of_colour_is_not_lost(channel: int) -> None:
    pixels = np.asarray(noise(90, 70, "L").convert("RGB")).copy()
    pixels[40, 50, channel] ^= 255
    image = Image.fromarray(pixels)
    assert_equal(SMALL, ORACLES["small"], image)
    patches, _ = hugging_face_video(SMALL, [image])
    assert np.array_equal(SMALL.video([image]).patches, patches)


@given(
    height=st.integers(1, 20_000),
    width=st.integers(1, 20_000),
    min_pixels=st.integers(1, 2_000_000),
    span=st.integers(0, 12_000_000),
    factor=st.sampled_from([28, 32]),
)
@settings(max_examples=500)
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


def test_exif_orientation_turns_the_image() -> None:
    upright = noise(300, 200, "RGB", extremes=True)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    assert DEFAULT(stored).grid_thw != DEFAULT(upright).grid_thw
    stored.getexif()[ExifTags.Base.Orientation] = 6  # to be shown turned a quarter clockwise
    assert DEFAULT(stored).grid_thw == DEFAULT(upright).grid_thw
    assert np.array_equal(DEFAULT(stored).patches, DEFAULT(upright).patches)


@pytest.mark.slow
def test_a_huge_image() -> None:
    """As large as `open_image` lets through."""
    tile = noise(100, 100, "L")
    huge = Image.fromarray(np.tile(np.asarray(tile), (70, 120)))
    assert huge.size == (12_000, 7_000)
    assert_equal(DEFAULT, ORACLES["default"], huge)


# Videos


def test_a_video_of_one_picture_is_nearly_the_picture() -> None:
    """One step in time; Hugging Face resizes and normalises a video in other ways, so not to the bit."""
    picture = noise(84, 112, "RGB")
    video, image = DEFAULT.video([picture]), DEFAULT(picture)
    assert video.grid_thw == image.grid_thw and video.size == image.size
    np.testing.assert_allclose(video.patches, image.patches, atol=1e-6)


@pytest.mark.slow
@given(
    count=st.integers(1, 5),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    mode=st.sampled_from(["L", "RGB"]),
    name=st.sampled_from(sorted(PROCESSORS)),
)
@example(count=3, width=1000, height=30, mode="RGB", name="small")
@example(count=2, width=84, height=84, mode="RGB", name="small")  # its size already
@settings(max_examples=60)
def test_videos_equal_hugging_faces(count: int, width: int, height: int, mode: str, name: str) -> None:
    if max(width, height) > 200 * min(width, height):
        width = height = max(width, height)
    frames = [noise(width, height, mode, seed, extremes=True) for seed in range(count)]
    processor = PROCESSORS[name]
    ours = processor.video(frames)
    patches, grid_thw = hugging_face_video(processor, frames)
    assert ours.grid_thw == grid_thw and grid_thw[0] == math.ceil(count / 2)
    assert ours.patches.dtype == np.float32 and np.array_equal(ours.patches, patches)
    assert ours.size == tuple(processor.patch_size * side for side in ours.grid_thw[1:])


def test_frames_must_be_of_one_size() -> None:
    with pytest.raises(ImageError, match=r"one size; these 2 have \[\(20, 10\), \(20, 11\)\]"):
        DEFAULT.video([noise(20, 10, "L"), noise(20, 11, "L")])
    with pytest.raises(ImageError, match="these 0 have"):
        DEFAULT.video([])
    with pytest.raises(ImageError, match="200 times"):
        DEFAULT.video([noise(201, 1, "L")])


# Threads


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_do_not_depend_on_threads(workers: int) -> None:
    pictures = [noise(40 + 9 * seed, 60, mode, seed) for seed in range(12) for mode in ("L", "RGB")]
    with ThreadPoolExecutor(workers) as pool:
        for ours, picture in zip(pool.map(DEFAULT, pictures), pictures, strict=True):
            assert np.array_equal(ours.patches, DEFAULT(picture).patches)


# Settings


@pytest.mark.parametrize("name", PROCESSORS)
def test_hugging_face_reads_what_we_save_and_we_what_it_saves(name: str, tmp_path: Path) -> None:
    processor = PROCESSORS[name]
    processor.save_pretrained(tmp_path / "ours")
    assert ImageProcessor.from_pretrained(tmp_path / "ours") == processor
    oracle = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "ours")
    assert_equal(processor, oracle, noise(300, 200, "RGB", extremes=True))
    oracle.save_pretrained(tmp_path / "theirs")  # with `size`, and without min_pixels
    assert "min_pixels" not in json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    assert ImageProcessor.from_pretrained(tmp_path / "theirs") == processor


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "JSON"),
        ("[]", "expected a JSON object"),
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


@pytest.mark.parametrize("name", PROCESSORS)
def test_settings_of_transformers_5_are_read_and_kept(name: str, tmp_path: Path) -> None:
    """It nests them in processor_config.json, which goes before an older preprocessor_config.json. They stay equal there."""
    processor, theirs, ours = PROCESSORS[name], tmp_path / "theirs", tmp_path / "ours"
    ImageProcessor().save_pretrained(theirs)  # older settings
    processor.save_pretrained(tmp_path)
    nested = Qwen2VLImageProcessorPil.from_pretrained(tmp_path).to_dict()
    video = {"size": {"longest_edge": 9, "shortest_edge": 4}}
    whole = {"image_processor": nested, "video_processor": video, "processor_class": "Qwen2_5_VLProcessor"}
    write_files(theirs, {"processor_config.json": json.dumps(whole), "video_preprocessor_config.json": "{ }"})
    read = ImageProcessor.from_pretrained(theirs)
    assert read == processor
    changed = dataclasses.replace(read, min_pixels=28 * 28 * 5, max_pixels=28 * 28 * 50)
    changed.save_pretrained(ours)
    assert ImageProcessor.from_pretrained(ours) == changed
    assert_equal(changed, Qwen2VLImageProcessorPil.from_pretrained(ours), noise(300, 200, "RGB", extremes=True))
    kept = json.loads((ours / "processor_config.json").read_text())
    assert kept["video_processor"] == video and kept["processor_class"] == "Qwen2_5_VLProcessor"
    assert (ours / "video_preprocessor_config.json").read_text() == "{ }"
    (ours / "processor_config.json").unlink()  # as older versions, which do not read it
    assert ImageProcessor.from_pretrained(ours) == changed
    assert_equal(changed, Qwen2VLImageProcessorPil.from_pretrained(ours), noise(300, 200, "RGB", extremes=True))


def test_the_published_settings_of_qwen3_vl_are_read(tmp_path: Path) -> None:
    published = {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    write_files(tmp_path, {"preprocessor_config.json": json.dumps(published)})
    read = ImageProcessor.from_pretrained(tmp_path)
    assert read == QWEN3
    oracle = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    for width, height in ((100, 60), (256, 256), (1000, 700)):  # enlarged, as they are, and rounded
        assert_equal(read, oracle, noise(width, height, "RGB", extremes=True))


def test_a_processor_config_without_image_settings_is_passed_over(tmp_path: Path) -> None:
    write_files(tmp_path, {"processor_config.json": '{"processor_class": "Qwen2_5_VLProcessor"}'})
    with pytest.raises(ConfigError, match="preprocessor_config.json: file does not exist"):
        ImageProcessor.from_pretrained(tmp_path)
    DEFAULT.save_pretrained(tmp_path)
    read = ImageProcessor.from_pretrained(tmp_path)
    read.save_pretrained(tmp_path / "ours")
    assert read == DEFAULT
    assert (tmp_path / "ours" / "processor_config.json").read_text() == '{"processor_class": "Qwen2_5_VLProcessor"}'


@pytest.mark.parametrize("text, words", [("{", "JSON"), ('{"image_processor": []}', "image_processor"), ("[]", "JSON object")])
def test_an_unreadable_processor_config_is_named(text: str, words: str, tmp_path: Path) -> None:
    DEFAULT.save_pretrained(tmp_path)
    write_files(tmp_path, {"processor_config.json": text})
    with pytest.raises(ConfigError, match=f"processor_config.json: .*{words}"):
        ImageProcessor.from_pretrained(tmp_path)


def test_missing_settings_are_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preprocessor_config.json: file does not exist"):
        ImageProcessor.from_pretrained(tmp_path)
