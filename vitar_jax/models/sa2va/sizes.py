"""Sizes of published models, for random weights and for planning."""

import dataclasses
from collections.abc import Mapping

from vitar_jax.models.qwen3_vl.sizes import SIZES as QWEN3_VL_SIZES
from vitar_jax.models.sa2va.config import Sa2VAConfig

_ROWS = 151_674  # of the tokenizer, which Sa2VA cuts the embeddings to


def _model(size: str) -> Sa2VAConfig:
    language = QWEN3_VL_SIZES[size]
    text = dataclasses.replace(language.text, vocab_size=_ROWS, tie_word_embeddings=False)
    return Sa2VAConfig(**{**vars(language), "text": text})


# ByteDance/Sa2VA-Qwen3-VL-{2B,4B}. HarborYuan/R-Sa2VA-Qwen3VL-4B-{SFT,RL} have the sizes of the second.
SIZES: Mapping[str, Sa2VAConfig] = {f"sa2va_{size}": _model(size) for size in ("qwen3_vl_2b", "qwen3_vl_4b")}
