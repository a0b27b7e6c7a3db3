"""Names of SAM 2's tensors: those of Hugging Face's `Sam2Model`, and those of the original code, which Sa2VA keeps."""

import re

from vitar_jax.models.names import TensorNames

_BLOCKS = "vision_encoder/backbone/runs/{}/"
_SELECTORS = "mask_decoder/output_hypernetworks_mlps/"
_CONVOLUTIONS = {
    "vision_encoder/backbone/patch_embed/": 7,
    "vision_encoder/neck/convs/": 1,
    "mask_decoder/conv_s": 1,
}


class _HFNames(TensorNames):
    def stored_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        # One table in these files, four vectors in the original's.
        return shape[::2] if path == "prompt_encoder/point_embed/weight" else super().stored_shape(path, shape)


HF_NAMES = _HFNames(
    stacks=(
        (_BLOCKS, "vision_encoder.backbone.blocks.{}."),
        (_SELECTORS, "mask_decoder.output_hypernetworks_mlps.{}."),
    ),
    renamed={},
    in_memory=(),
    patch_embed="",
    convolutions=_CONVOLUTIONS,
    left_out=(
        # What a video needs. Named by prefixes, because the files of SAM 2 and 2.1 differ in it.
        r"(memory_\w+|mask_downsample|object_pointer_proj|temporal_positional_encoding_projection_layer)(\..+)?",
        r"no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter",
        # Places points. The same values as shared_image_embedding in published files.
        r"prompt_encoder\.shared_embedding\.positional_embedding",
    ),
)


class _OriginalNames(TensorNames):
    def published(self, path: str, layers: int) -> tuple[str, ...]:
        return tuple(map(_original, super().published(path, layers)))


ORIGINAL_NAMES = _OriginalNames(
    stacks=(*HF_NAMES.stacks, ("prompt_encoder/point_embed/", "prompt_encoder.point_embed.{}.")),
    renamed={},
    in_memory=(),
    patch_embed="",
    convolutions=_CONVOLUTIONS,
    left_out=(
        # What a video needs: 157 tensors.
        r"memory_attention\.layers\.[0-3]\.(self_attn|cross_attn_image)\.(q|k|v|out)_proj\.(weight|bias)",
        r"memory_attention\.layers\.[0-3]\.(linear[12]|norm[123])\.(weight|bias)",
        r"memory_attention\.norm\.(weight|bias)",
        r"memory_encoder\.mask_downsampler\.encoder\.([0134679]|10|12)\.(weight|bias)",
        r"memory_encoder\.(pix_feat_proj|out_proj)\.(weight|bias)",
        r"memory_encoder\.fuser\.layers\.[01]\.(dwconv|norm|pwconv[12])\.(weight|bias)",
        r"memory_encoder\.fuser\.layers\.[01]\.(g_weight|gamma)",  # Sa2VA's name, because transformers renames gammas
        r"obj_ptr_proj\.layers\.[0-2]\.(weight|bias)",
        r"mask_downsample\.(weight|bias)",
        r"maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr",
    ),
)

# Rewrites a name of Hugging Face's as the original, in this order.
_REWRITES = (
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"^prompt_encoder\.mask_embed\.conv1", "sam_prompt_encoder.mask_downscaling.0"),
    (r"^prompt_encoder\.mask_embed\.layer_norm1", "sam_prompt_encoder.mask_downscaling.1"),
    (r"^prompt_encoder\.mask_embed\.conv2", "sam_prompt_encoder.mask_downscaling.3"),
    (r"^prompt_encoder\.mask_embed\.layer_norm2", "sam_prompt_encoder.mask_downscaling.4"),
    (r"^prompt_encoder\.mask_embed\.conv3", "sam_prompt_encoder.mask_downscaling.6"),
    (r"^prompt_encoder\.point_embed\.", "sam_prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (
        r"^shared_image_embedding\.positional_embedding",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^mask_decoder\.upscale_conv1", "sam_mask_decoder.output_upscaling.0"),
    (r"^mask_decoder\.upscale_layer_norm", "sam_mask_decoder.output_upscaling.1"),
    (r"^mask_decoder\.upscale_conv2", "sam_mask_decoder.output_upscaling.3"),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"\.layer_norm", ".norm"),
    (r"\.o_proj\.", ".out_proj."),
    (r"(head|mlps\.\d)\.layers\.0\.", r"\1.layers.1."),  # of heads with three layers
    (r"(head|mlps\.\d)\.proj_out\.", r"\1.layers.2."),
    (r"(head|mlps\.\d|mlp)\.proj_in\.", r"\1.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
)


def _original(name: str) -> str:
    for pattern, replacement in _REWRITES:
        name = re.sub(pattern, replacement, name)
    return name
