"""Tiny random SAM 2 models of Hugging Face, the same weights in ours, and masks of both from vectors of a language model."""

import tempfile
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Sam2Config as HFConfig
from transformers import Sam2Model

from vitar_jax.models.sam2.model import ImageMaps, Masks, Sam2
from vitar_jax.models.sam2.pretrained import load_sam2

IMAGES, MASKS, WIDTH = 2, 3, 32
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SIDE = 64
# The window of each stage, whose maps have sides of 16, 8, 4 and 2.
SHAPES = {"windows divide": (8, 4, 2, 2), "windows do not divide": (8, 6, 6, 3)}


def hf_config(windows: tuple[int, ...] = (8, 4, 2, 2)) -> HFConfig:
    """Returns a config whose third stage repeats a windowed and a global block."""
    side = SIDE
    widths = [8, 16, 24, 32]
    return HFConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [side, side],
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [1, 2, 2, 4],
                "blocks_per_stage": [1, 1, 5, 2],
                "window_size_per_stage": list(windows),
                "global_attention_blocks": [4, 6],
                "window_positional_embedding_background_size": [7, 5],
                "mlp_ratio": 2.0,
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
            "fpn_hidden_size": WIDTH,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": side, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 48,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 24,
        },
    )


def hf_model(config: HFConfig, seed: int = 0) -> Sam2Model:
    """Returns Hugging Face's module in fp32 with large random weights, so that every mechanism shows in the masks."""
    with torch.random.fork_rng():  # positions are random, and no parameter
        torch.manual_seed(seed)
        model = Sam2Model(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name and "token" not in name:
                scale = parameter[0].numel() ** -0.5
            else:
                scale = 0.3
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model


@cache
def pretrained(shape: str) -> tuple[Sam2Model, Sam2]:
    """Returns Hugging Face's module, and our model with the same weights."""
    theirs = hf_model(hf_config(SHAPES[shape]))
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, load_sam2(directory)


@cache
def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels [1, images, side, side, 3], uint8, and prompts [images, masks, width]."""
    rng, side = np.random.default_rng(0), SIDE
    coarse = rng.integers(0, 256, (1, IMAGES, side // 8, side // 8, 3))
    pixels = np.clip(coarse.repeat(8, 2).repeat(8, 3) + rng.integers(-20, 20, (1, IMAGES, side, side, 3)), 0, 255)
    return pixels.astype(np.uint8), rng.normal(size=(IMAGES, MASKS, WIDTH)).astype(np.float32)


class Theirs(NamedTuple):
    """Hugging Face's maps, [N, rows, columns, D], and masks."""

    fine: torch.Tensor
    middle: torch.Tensor
    embedding: torch.Tensor
    logits: torch.Tensor
    ious: torch.Tensor
    object_logits: torch.Tensor


def decode_theirs(model: Sam2Model, levels: list[torch.Tensor], prompts: torch.Tensor) -> Theirs:
    """Returns masks from the maps [N, D, rows, columns] of the neck."""
    decoder = model.mask_decoder
    return masks_of_theirs(model, [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2]], prompts)


def run_theirs(model: Sam2Model, pixels: np.ndarray, prompts: torch.Tensor) -> Theirs:
    """Runs the parts of Hugging Face's module, whose `forward` takes no vectors as prompts."""
    normal = (torch.tensor(pixels[0]) / 255 - MEAN) / STD
    maps = list(model.get_image_features(normal.permute(0, 3, 1, 2), return_dict=True).fpn_hidden_states)
    maps[2] = maps[2] + model.no_memory_embedding
    sizes = model.backbone_feature_sizes
    maps = [each.permute(1, 2, 0).reshape(len(prompts), -1, *size) for each, size in zip(maps, sizes, strict=True)]
    return masks_of_theirs(model, maps, prompts)


def masks_of_theirs(model: Sam2Model, maps: list[torch.Tensor], prompts: torch.Tensor) -> Theirs:
    count = len(prompts)
    empty = torch.zeros(count, prompts.shape[1], 1, 2)
    padding, dense = model.prompt_encoder(empty, -torch.ones(empty.shape[:-1], dtype=torch.int32), None, None)
    logits, ious, _, object_logits = model.mask_decoder(
        image_embeddings=maps[2],
        image_positional_embeddings=model.get_image_wide_positional_embeddings().repeat(count, 1, 1, 1),
        sparse_prompt_embeddings=torch.cat([padding, prompts[:, :, None]], dim=2),
        dense_prompt_embeddings=dense,
        multimask_output=True,
        high_resolution_features=maps[:2],
    )
    return Theirs(*(each.permute(0, 2, 3, 1) for each in maps), logits, ious, object_logits[..., 0])


@jax.jit
def encode(model: Sam2, pixels: np.ndarray) -> ImageMaps:
    """Returns our maps of the images of one bin."""
    return jax.tree.map(lambda leaf: leaf[0], model.encode(jnp.asarray(pixels)))


@jax.jit
def decode(model: Sam2, maps: ImageMaps, prompts: np.ndarray) -> Masks:
    return model.decode(maps, jnp.asarray(prompts))


@cache
def theirs(shape: str) -> Theirs:
    with torch.no_grad():
        pixels, prompts = inputs()
        return run_theirs(pretrained(shape)[0], pixels, torch.tensor(prompts))


def relative_error(ours: object, expected: torch.Tensor) -> float:
    difference = np.asarray(jnp.asarray(ours), np.float64) - expected.detach().double().numpy()
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.detach().double().numpy()))
