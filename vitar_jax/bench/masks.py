"""Benchmark of masks: SAM 2's encoder and mask decoder against Hugging Face's module, and the cost of keeping states."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Sam2Config as HFConfig
from transformers import Sam2Model

from vitar_jax.bench.cases import CASES
from vitar_jax.bench.pairs import Pair, Row, Work, check_agreement, run_pair
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.registry import random_model
from vitar_jax.models.sam2.config import HIERA_LARGE, Sam2Config, TrunkConfig
from vitar_jax.models.sam2.model import ImageMaps, Sam2
from vitar_jax.models.sam2.pretrained import load_sam2
from vitar_jax.rollout import sampler
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.weights import rollout_weights

_TOLERANCE = 1e-3
_STATES_RATIO = 1.03  # target: a state is one row written per step
_TARGETS = {"encode": 1.0, "decode": 1.0, "decode, gradient": 0.9}


@dataclasses.dataclass(frozen=True)
class MaskCase:
    """A configuration of SAM 2, and the number of masks that are decoded at once from an image."""

    name: str
    config: Sam2Config
    masks: int = 8


# Trunk of facebook/sam2-hiera-tiny.
_HIERA_TINY = TrunkConfig(
    embed_dim_per_stage=(96, 192, 384, 768),
    num_attention_heads_per_stage=(1, 2, 4, 8),
    blocks_per_stage=(1, 2, 7, 2),
    window_size_per_stage=(8, 4, 14, 7),
    global_attention_blocks=(5, 7, 9),
)
MASK_CASES: Mapping[str, MaskCase] = {
    case.name: case
    for case in (
        MaskCase("hiera_tiny_256", Sam2Config(_HIERA_TINY, image_size=256)),
        MaskCase("hiera_tiny", Sam2Config(_HIERA_TINY)),
        MaskCase("hiera_large", HIERA_LARGE),
    )
}
BY_DEFAULT = ("hiera_tiny_256",)


class Theirs:
    """Hugging Face's module, whose `forward` takes no vectors as prompts, so its parts are called."""

    def __init__(self, config: Sam2Config, seed: int = 0):
        torch.manual_seed(seed)
        self.model: Any = Sam2Model(HFConfig(**config.to_hf())).eval()
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if weight.ndim > 1 and "embed" not in name:
                    weight.normal_(std=weight[0].numel() ** -0.5)
                elif not name.endswith("weight"):
                    weight.normal_(std=0.1)
        # One matrix in our model, and in published files.
        shared = self.model.shared_image_embedding.positional_embedding
        self.model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)

    def encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Returns the maps [1, D, rows, columns] of an image of normalised pixels, from fine to coarse."""
        return list(self.model.get_image_embeddings(pixels))

    def decode(self, maps: Sequence[torch.Tensor], prompts: torch.Tensor) -> torch.Tensor:
        """Returns the logits [masks, height, width] of the best masks of prompts [1, masks, D]."""
        empty = torch.zeros(1, prompts.shape[1], 1, 2)
        padding, dense = self.model.prompt_encoder(empty, -torch.ones(empty.shape[:-1], dtype=torch.int32), None, None)
        logits, ious, *_ = self.model.mask_decoder(
            image_embeddings=maps[2],
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=torch.cat([padding, prompts[:, :, None]], dim=2),
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=list(maps[:2]),
        )
        return logits[0][torch.arange(prompts.shape[1]), ious[0].argmax(dim=-1)]


class MaskWork:
    """The work of a case on both sides, from the same weights, pixels and prompts."""

    def __init__(self, case: MaskCase, seed: int = 0):
        rng, side = np.random.default_rng(seed), case.config.image_size
        coarse = rng.integers(0, 256, (1, 1, side // 8, side // 8, 3))
        pixels = coarse.repeat(8, 2).repeat(8, 3).astype(np.uint8)
        prompts = rng.normal(size=(1, case.masks, case.config.decoder.hidden_size)).astype(np.float32)
        self.theirs = Theirs(case.config, seed)
        with tempfile.TemporaryDirectory() as directory:
            self.theirs.model.save_pretrained(directory)
            self.model = load_sam2(directory)

        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
        self._normal = ((torch.from_numpy(pixels[0]) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        self._pixels, self._prompts = jnp.asarray(pixels), jnp.asarray(prompts)
        self._their_prompts = torch.from_numpy(prompts).requires_grad_()

        def encode(model: Sam2, pixels: jax.Array) -> ImageMaps:
            return jax.tree.map(lambda leaf: leaf[0], model.encode(pixels))

        def decode(model: Sam2, maps: ImageMaps, prompts: jax.Array) -> jax.Array:
            return model.decode(maps, prompts).best()[0]

        def loss(trained: Any, model: Sam2, maps: ImageMaps) -> jax.Array:
            model = jax.tree.map(lambda leaf: leaf, model)  # a module of this trace, which may be changed
            model.mask_decoder, prompts = trained
            return (decode(model, maps, prompts) ** 2).mean()

        def gradient(model: Sam2, maps: ImageMaps, prompts: jax.Array) -> Any:
            return jax.grad(loss)((model.mask_decoder, prompts), model, maps)

        self._encode, self._decode, self._gradient = (jax.jit(f) for f in (encode, decode, gradient))
        self._maps = self._encode(self.model, self._pixels)
        with torch.inference_mode():
            encoded = self.theirs.encode(self._normal)
        self._their_maps = [level.clone() for level in encoded]

    def ours(self) -> dict[str, Callable[[], Any]]:
        """Returns each work on our side. A gradient is that for the mask decoder's weights and the prompts."""
        maps, prompts = self._maps, self._prompts
        return {
            "encode": lambda: jax.block_until_ready(self._encode(self.model, self._pixels)).embedding,
            "decode": lambda: jax.block_until_ready(self._decode(self.model, maps, prompts)),
            "decode, gradient": lambda: jax.block_until_ready(self._gradient(self.model, maps, prompts))[1],
        }

    def peers(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Returns each work on the peer's side, with the same outputs."""

        @torch.inference_mode()
        def encode() -> torch.Tensor:
            return self.theirs.encode(self._normal)[2].permute(0, 2, 3, 1)

        @torch.inference_mode()
        def decode() -> torch.Tensor:
            return self.theirs.decode(self._their_maps, self._their_prompts)

        def gradient() -> torch.Tensor:
            self.theirs.model.zero_grad(set_to_none=True)
            self._their_prompts.grad = None
            (self.theirs.decode(self._their_maps, self._their_prompts) ** 2).mean().backward()
            assert self._their_prompts.grad is not None
            return self._their_prompts.grad

        self.theirs.model.requires_grad_(False)
        self.theirs.model.mask_decoder.requires_grad_(True)
        return {"encode": encode, "decode": decode, "decode, gradient": gradient}


def measure(cases: Sequence[MaskCase], *, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Checks that the outputs of both sides agree, then times both sides alternately.

    Raises:
      Disagreement: If outputs have a relative difference above 1e-3.
    """
    rows = []
    for case in cases:
        work = MaskWork(case)
        ours, peers = work.ours(), work.peers()
        say(f"{case.name}: an image of {case.config.image_size} px, {case.masks} masks; fp32")
        for name, target in _TARGETS.items():
            error = check_agreement(f"{case.name} {name}", ours[name](), peers[name]().detach(), _TOLERANCE)
            say(f"{case.name}: {name} agrees to {error:.1e}")
            pair = Pair(name, case.name, ours[name], peers[name], target, items=case.masks if name != "encode" else 1)
            rows.append(run_pair(pair, rounds))
    return rows


def states_ratio(
    rounds: int, config: ModelConfig = CASES["qwen3_10m"].config, *, slots: int = 32, steps: int = 64
) -> list[float]:
    """Returns the times of decoding a chunk while the states of a token are kept, relative to those without, for each round.

    Args:
      steps: Number of decode steps of a chunk, in which one of eight tokens is marked.
    """
    weights = rollout_weights(random_model(config), dtype=config.dtype)
    start, capacity, marked = 128, 128 + steps, 8
    sampling = SamplingState(**sampling_arrays(slots), banned=jnp.arange(config.text.vocab_size) // 8 != 1)
    budgets, quorum = np.full(slots, steps + 1, np.int32), np.int32(slots)

    def player(**marks: int) -> Work:
        state = sampler.create_state(weights, slots, capacity, **marks)

        def play() -> None:
            nonlocal state
            lengths = jnp.full_like(state.cache.lengths, start)
            cache = dataclasses.replace(state.cache, lengths=lengths)
            state = dataclasses.replace(state, cache=cache, done=jnp.zeros_like(state.done))
            state, *_ = sampler.decode(weights, state, sampling, budgets, quorum, steps=steps)
            jax.block_until_ready(state)

        return play

    keeping = player(marked=marked, marks=RolloutConfig(1, (1,)).turn_masks)
    return run_pair(Pair("decode", "states", ours=player(), peer=keeping), rounds).ratios


def states_text(ratios: Sequence[float]) -> str:
    """Formats the ratios of `states_ratio`."""
    ratio = float(np.median(ratios))
    return (
        f"decode takes {ratio:.3f} times as long while states are kept ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"target at most {_STATES_RATIO} {'met' if ratio <= _STATES_RATIO else 'MISSED'}"
    )
