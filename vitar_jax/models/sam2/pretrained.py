"""Loads SAM 2 alone, from Hugging Face's files."""

from pathlib import Path
from typing import Any

import jax

from vitar_jax.errors import CheckpointError
from vitar_jax.models.pretrained import load_weights
from vitar_jax.models.sam2.config import Sam2Config
from vitar_jax.models.sam2.model import Sam2
from vitar_jax.models.sam2.names import HF_NAMES
from vitar_jax.runtime.remote import CheckpointFolder


def load_sam2(
    path: str | Path | CheckpointFolder, *, param_dtype: str = "float32", shardings: Any = None, remat: str = "none"
) -> Sam2:
    """Reads the image model of a SAM 2 checkpoint, such as `facebook/sam2-hiera-large`. Leaves out what videos need.

    Args:
      path: Location of `config.json` and safetensors, as in `load_pretrained`.
      param_dtype: Type of the weights in memory.
      shardings: A tree of `NamedSharding`s like the model's. If None, the default device.
      remat: Policy for the backward pass of the trunk's blocks.

    Raises:
      CheckpointError: If files cannot be read, or do not fit a model that this package computes.
    """
    folder = CheckpointFolder.open(path)
    try:
        config = Sam2Config.from_hf(folder.read_json("config.json"))
    except CheckpointError as error:
        raise CheckpointError(f"{folder.label('config.json')}: {error}") from error
    abstract = jax.eval_shape(lambda: Sam2(config, key=jax.random.key(0), remat=remat))
    return load_weights(folder, abstract, HF_NAMES, param_dtype=param_dtype, shardings=shardings)
