"""Opens a checkpoint: its settings at once, its weights on request."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from vitar_jax.models.attention import find_back_end
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.registry import abstract_model, load_config
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, regrouped, shardings
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.rollout.checkpoint_settings import InferenceSettings, load_settings
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.weights import Resharder, RolloutWeights
from vitar_jax.runtime.remote import CheckpointFolder


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint without its weights, which `model` reads on request.

    Attributes:
      settings: Processor, limits and protocols.
      banned: bool [V], ids that are never sampled.
    """

    folder: CheckpointFolder
    config: ModelConfig
    settings: InferenceSettings
    banned: np.ndarray

    @classmethod
    def open(
        cls,
        source: str | Path | CheckpointFolder,
        *,
        dtype: str = "float32",
        attention: str = "xla",
        max_pixels: int = 0,
        stop_tokens: Sequence[str] | None = None,
    ) -> "Checkpoint":
        """Reads config, tokenizer and settings.

        Args:
          source: A directory, a URL that fsspec opens, or a hub repository.
          dtype: Type of computation and of weights.
          attention: Back end that computes attention (`models/attention.py`).
          max_pixels: Maximum number of pixels of an image, at most the checkpoint's own. 0 means the checkpoint's.
          stop_tokens: Spellings of the tokens that end a turn, in addition to `<|im_end|>`. If None, the checkpoint's eos.

        Raises:
          CheckpointError: If a file is missing or invalid.
          ConfigError: If `attention`, `max_pixels` or a stop token is invalid.
        """
        find_back_end(attention, dtype=dtype, platform=jax.default_backend(), key="attention")
        folder = CheckpointFolder.open(source)
        config = load_config(folder, dtype=dtype, attention=attention)
        with folder.small_files() as directory:
            settings = load_settings(directory, config)
        settings = settings.with_max_pixels(max_pixels) if max_pixels else settings
        settings = settings if stop_tokens is None else settings.with_stop_tokens(stop_tokens)
        return cls(folder, config, settings, banned_tokens(settings.processor.chat, config.text.vocab_size))

    def model(self, mesh: Mesh) -> VisionLanguageModel:
        """Reads the weights, sharded over a mesh as in training."""
        spread = shardings(abstract_model(self.config), mesh, ShardingRules())
        return load_pretrained(self.folder, dtype=self.config.dtype, attention=self.config.attention, shardings=spread)


def load_rollout_weights(
    source: str | Path | CheckpointFolder, config: ModelConfig, rollout: RolloutConfig, rules: ShardingRules | None = None
) -> RolloutWeights:
    """Reads a checkpoint's weights in rollout's type and layout, all in `rollout.dtype`, so that scores are of the checkpoint.

    Uses this process's devices, but no more than one group of `rollout.tensor` devices per slot. Never makes a copy of another
    type.
    """
    rules, abstract = rules or ShardingRules(), abstract_model(config)
    mesh = make_mesh(devices=jax.local_devices()[: rollout.slots * rollout.tensor])
    resharder = Resharder(abstract, regrouped(mesh, rollout.tensor), rules, dtype=rollout.dtype)
    spread = shardings(abstract, mesh, rules)
    computation = {"attention": config.attention, "generation": config.generation}
    return resharder(load_pretrained(source, dtype=rollout.dtype, shardings=spread, **computation))
