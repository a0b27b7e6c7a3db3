"""A tiny Sa2VA folder as published: Qwen3-VL and SAM 2 with the names of the original code, video parts included."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Sam2Config

from tests.kit import tiny_qwen3, tiny_sam2

SAM2 = "grounding_encoder.sam2_model."
Shape = tuple[int, ...]


def config(**changes: Any) -> dict[str, Any]:
    """Returns `config.json`. SAM 2's sizes are beside it, because published files have those of the largest alone."""
    language = json.loads(tiny_qwen3.hf_config(tie=True).to_json_string(use_diff=False))
    language["text_config"]["tie_word_embeddings"] = False  # as the published converter writes it
    return language | {
        "model_type": "sa2va_chat",
        "architectures": ["Sa2VAChatModelQwen"],
        "auto_map": {"AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfigQwen"},
        "template": "qwen_chat",
        "sam2_config": json.loads(tiny_sam2.hf_config().to_json_string(use_diff=False)),
        **changes,
    }


def _linear(name: str, d_in: int, d_out: int, *kernel: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (d_out, d_in, *kernel)
    yield f"{name}.bias", (d_out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _mlp(name: str, *widths: int) -> Iterator[tuple[str, Shape]]:
    for i, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False)):
        yield from _linear(f"{name}.layers.{i}", d_in, d_out)


def _attention(name: str, width: int, inner: int, of_keys: int = 0) -> Iterator[tuple[str, Shape]]:
    yield from _linear(f"{name}.q_proj", width, inner)
    yield from _linear(f"{name}.k_proj", of_keys or width, inner)
    yield from _linear(f"{name}.v_proj", of_keys or width, inner)
    yield from _linear(f"{name}.out_proj", inner, width)


def image_parts(config: Sam2Config) -> Iterator[tuple[str, Shape]]:
    """The tensors of SAM 2's image path, as the modules of the original code have them."""
    backbone, decoder = config.vision_config.backbone_config, config.mask_decoder_config
    widths, d = backbone.embed_dim_per_stage, decoder.hidden_size
    trunk = "image_encoder.trunk."
    yield f"{trunk}pos_embed", (1, widths[0], *backbone.window_positional_embedding_background_size)
    yield f"{trunk}pos_embed_window", (1, widths[0], *[backbone.window_size_per_stage[0]] * 2)
    yield from _linear(f"{trunk}patch_embed.proj", 3, widths[0], 7, 7)
    block, width = 0, widths[0]
    for stage, blocks in enumerate(backbone.blocks_per_stage):
        for _ in range(blocks):
            name, before, width = f"{trunk}blocks.{block}", width, widths[stage]
            yield from _norm(f"{name}.norm1", before)
            yield from _linear(f"{name}.attn.qkv", before, 3 * width)
            yield from _linear(f"{name}.attn.proj", width, width)
            yield from _norm(f"{name}.norm2", width)
            yield from _mlp(f"{name}.mlp", width, int(backbone.mlp_ratio * width), width)
            if before != width:
                yield from _linear(f"{name}.proj", before, width)
            block += 1
    for i, width in enumerate(widths[::-1]):
        yield from _linear(f"image_encoder.neck.convs.{i}.conv", width, d, 1, 1)

    prompt, channels = "sam_prompt_encoder.", config.prompt_encoder_config.mask_input_channels
    yield f"{prompt}pe_layer.positional_encoding_gaussian_matrix", (2, d // 2)
    for name in (*[f"point_embeddings.{i}" for i in range(4)], "not_a_point_embed", "no_mask_embed"):
        yield f"{prompt}{name}.weight", (1, d)
    yield from _linear(f"{prompt}mask_downscaling.0", 1, channels // 4, 2, 2)
    yield from _norm(f"{prompt}mask_downscaling.1", channels // 4)
    yield from _linear(f"{prompt}mask_downscaling.3", channels // 4, channels, 2, 2)
    yield from _norm(f"{prompt}mask_downscaling.4", channels)
    yield from _linear(f"{prompt}mask_downscaling.6", channels, d, 1, 1)

    mask = "sam_mask_decoder."
    for name, rows in (("obj_score_token", 1), ("iou_token", 1), ("mask_tokens", 4)):
        yield f"{mask}{name}.weight", (rows, d)
    for i in range(2):
        layer = f"{mask}transformer.layers.{i}"
        yield from _attention(f"{layer}.self_attn", d, d)
        yield from _attention(f"{layer}.cross_attn_token_to_image", d, d // 2)
        yield from _attention(f"{layer}.cross_attn_image_to_token", d, d // 2)
        yield from _mlp(f"{layer}.mlp", d, decoder.mlp_dim, d)
        for j in range(1, 5):
            yield from _norm(f"{layer}.norm{j}", d)
    yield from _attention(f"{mask}transformer.final_attn_token_to_image", d, d // 2)
    yield from _norm(f"{mask}transformer.norm_final_attn", d)
    for name, d_in, d_out in (("output_upscaling.0", d, d // 4), ("output_upscaling.3", d // 4, d // 8)):
        yield f"{mask}{name}.weight", (d_in, d_out, 2, 2)
        yield f"{mask}{name}.bias", (d_out,)
    yield from _norm(f"{mask}output_upscaling.1", d // 4)
    yield from _linear(f"{mask}conv_s0", d, d // 8, 1, 1)
    yield from _linear(f"{mask}conv_s1", d, d // 4, 1, 1)
    for i in range(4):
        yield from _mlp(f"{mask}output_hypernetworks_mlps.{i}", d, d, d, d // 8)
    hidden = decoder.iou_head_hidden_dim
    yield from _mlp(f"{mask}iou_prediction_head", d, hidden, hidden, 4)
    yield from _mlp(f"{mask}pred_obj_score_head", d, d, d, 1)
    yield "no_mem_embed", (1, 1, d)


def video_parts(d: int = 256, memory: int = 64, mlp: int = 2048) -> Iterator[tuple[str, Shape]]:
    """The tensors that only videos need."""
    for i in range(4):
        layer = f"memory_attention.layers.{i}"
        yield from _attention(f"{layer}.self_attn", d, d)
        yield from _attention(f"{layer}.cross_attn_image", d, d, memory)
        yield from _linear(f"{layer}.linear1", d, mlp)
        yield from _linear(f"{layer}.linear2", mlp, d)
        for j in range(1, 4):
            yield from _norm(f"{layer}.norm{j}", d)
    yield from _norm("memory_attention.norm", d)
    channels = [1, 4, 16, 64, 256]
    for i, (d_in, d_out) in enumerate(zip(channels, channels[1:], strict=False)):
        yield from _linear(f"memory_encoder.mask_downsampler.encoder.{3 * i}", d_in, d_out, 3, 3)
        yield from _norm(f"memory_encoder.mask_downsampler.encoder.{3 * i + 1}", d_out)
    yield from _linear("memory_encoder.mask_downsampler.encoder.12", 256, d, 1, 1)
    yield from _linear("memory_encoder.pix_feat_proj", d, d, 1, 1)
    for i in range(2):
        layer = f"memory_encoder.fuser.layers.{i}"
        yield from _linear(f"{layer}.dwconv", 1, d, 7, 7)
        yield from _norm(f"{layer}.norm", d)
        yield from _linear(f"{layer}.pwconv1", d, 4 * d)
        yield from _linear(f"{layer}.pwconv2", 4 * d, d)
        yield f"{layer}.g_weight", (d,)
    yield from _linear("memory_encoder.out_proj", d, memory, 1, 1)
    yield from _mlp("obj_ptr_proj", d, d, d, d)
    yield from _linear("mask_downsample", 1, 1, 4, 4)
    yield "maskmem_tpos_enc", (7, 1, 1, memory)
    yield "no_mem_pos_enc", (1, 1, d)
    yield "no_obj_ptr", (1, d)


@cache
def tensors() -> dict[str, torch.Tensor]:
    """The tensors of a folder, with random values."""
    generator = torch.Generator().manual_seed(0)
    language = tiny_qwen3.pretrained(tie=False)[0]
    width = language.config.text_config.hidden_size
    shapes = {
        **{f"{SAM2}{name}": shape for name, shape in image_parts(tiny_sam2.hf_config())},
        **{f"{SAM2}{name}": shape for name, shape in video_parts(d=8, memory=4, mlp=8)},
        **dict(_linear("text_hidden_fcs.0", width, width)),
        **dict(_linear("text_hidden_fcs.2", width, tiny_sam2.WIDTH)),
    }
    random = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {f"model.{name}": tensor.contiguous() for name, tensor in language.state_dict().items()} | random


def write(directory: Path, tensors: dict[str, torch.Tensor], files: int = 1, **changes: Any) -> Path:
    """Writes a folder, with its tensors in one file or several."""
    directory.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    parts = [list(part) for part in np.array_split(names, files)]
    file_names = [f"model-{i:05d}-of-{files:05d}.safetensors" for i in range(1, files + 1)]
    file_names = file_names if files > 1 else ["model.safetensors"]
    for file, part in zip(file_names, parts, strict=True):
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
    if files > 1:
        weight_map = {name: file for file, part in zip(file_names, parts, strict=True) for name in part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(config(**changes)))
    return directory
