"""The family Sa2VA on Qwen3-VL: the language model, a bridge, and SAM 2."""

from vitar_jax.models.family import Family
from vitar_jax.models.names import JoinedNames, TensorNames
from vitar_jax.models.qwen3_vl import QWEN3_VL
from vitar_jax.models.sa2va.config import Sa2VAConfig
from vitar_jax.models.sa2va.flops import products
from vitar_jax.models.sa2va.model import Sa2VA
from vitar_jax.models.sa2va.sizes import SIZES
from vitar_jax.models.sam2.config import Sam2Config
from vitar_jax.models.sam2.names import ORIGINAL_NAMES

_BRIDGE, _SAM2 = "text_hidden_fcs.", "grounding_encoder.sam2_model."

SA2VA = Family(
    config=Sa2VAConfig,
    text=QWEN3_VL.text,
    vision=QWEN3_VL.vision,
    model=Sa2VA,
    parts=(
        ("bridge/", "bridge"),
        ("sam2/mask_decoder/", "mask_decoder"),
        ("sam2/", "mask_encoder"),
        *QWEN3_VL.parts,
    ),
    names=JoinedNames(
        stacks=(),
        renamed={},
        in_memory=(),
        patch_embed=QWEN3_VL.names.patch_embed,
        members=(
            ("bridge/", _BRIDGE, TensorNames((), {"fc1.": "0.", "fc2.": "2."}, (), "")),
            ("sam2/", _SAM2, ORIGINAL_NAMES),
            ("", "model.", QWEN3_VL.names),
        ),
        required={_BRIDGE: "bridge from [SEG] states to masks", f"{_SAM2}sam_mask_decoder.": "mask decoder"},
    ),
    sizes=SIZES,
    products=products,
    masks=Sam2Config,
)
