"""Benchmark of the model against Hugging Face's: vision tower, prefill, gradient and train step, same weights and inputs."""

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from vitar_jax.bench import rates
from vitar_jax.bench.cases import Case, Inputs, make_inputs
from vitar_jax.bench.pairs import Pair, Row, check_agreement, fastest, run_pair
from vitar_jax.bench.torch_peer import Peer, Setting, matrix_product, save_random_weights, settings
from vitar_jax.learning.objective import score_tokens
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.sft import SFT, sft_loss
from vitar_jax.learning.train_state import first_state
from vitar_jax.learning.train_step import make_train_step
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.packing import Batch

_OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
_TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}  # bf16 has a relative rounding error of 4e-3 in each of dozens of layers


class Ours:
    """Our model on the inputs of one case."""

    def __init__(self, model: VisionLanguageModel, inputs: Inputs):
        self.model = model
        self.batch = jax.tree.map(jnp.asarray, inputs.batch)
        self.feature_slots = inputs.feature_slots
        self.optimizer = make_optimizer(_OPTIMIZER, steps=1)
        banned = jnp.zeros(model.config.text.vocab_size, bool)
        scored: dict[str, Any] = {"temperature": 1.0, "max_tokens": int(inputs.loss_mask.sum()), "chunk": 1024}

        def encode(model: VisionLanguageModel, batch: Batch) -> jax.Array:
            return model.encode(batch.pixels[0], batch.patch_positions[0])

        def last_logits(model: VisionLanguageModel, batch: Batch) -> jax.Array:
            hidden = model(**batch.inputs)[0]
            return hidden[:, -1] @ model.head().astype(hidden.dtype)

        def loss(model: VisionLanguageModel, batch: Batch) -> jax.Array:
            scores = score_tokens(model, model(**batch.inputs), batch, banned, **scored)
            return sft_loss(scores.logprobs, batch.loss_mask)

        def gradient(model: VisionLanguageModel, batch: Batch) -> tuple[Any, ...]:
            value, gradients = jax.value_and_grad(loss)(model, batch)
            return value, optax.global_norm(gradients), gradients

        self.encode, self.last_logits, self.gradient = (jax.jit(f) for f in (encode, last_logits, gradient))
        self.step: Callable[..., Any] = make_train_step(SFT(), self.optimizer, banned, max_tokens=scored["max_tokens"])
        self.work: dict[str, Callable[[], tuple[jax.Array, ...]]] = {
            "vision": lambda: self._done(self.encode(self.model, self.batch)),
            "prefill": lambda: self._done(self.last_logits(self.model, self.batch)),
            "gradient": lambda: self._done(*self.gradient(self.model, self.batch))[:2],
            "train step": self._train_step,
        }

    def prepare(self, work: str) -> Callable[[], tuple[jax.Array, ...]]:
        """Returns a function that does the work, starting from the initial weights."""
        if work == "train step":
            weights: Any = jax.tree.map(jnp.array, self.model)  # a copy, because a step donates its state
            self.state = first_state(weights, self.optimizer)
        return self.work[work]

    def _train_step(self) -> tuple[jax.Array, ...]:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return metrics["loss"], metrics["grad_norm"]

    def _done(self, *outcome: Any) -> tuple[Any, ...]:
        return jax.block_until_ready(outcome)


def measure(
    cases: Sequence[Case], *, rounds: int, try_compile: bool, matrix_size: int, say: Callable[[str], None]
) -> tuple[list[Row], float]:
    """Checks that the outputs of both sides agree, then times both sides alternately, for each work of each case.

    Args:
      rounds: Number of timings per side.
      try_compile: Whether to try torch.compile among the peer's settings.
      matrix_size: Side of the square matrices whose product is timed.
      say: Prints a line of progress.

    Returns:
      The rows, and the FLOP/s of the faster side's matrix product.

    Raises:
      Disagreement: If outputs have a relative difference above 1e-3, or 5e-2 in bf16.
    """
    rows = [run_pair(_matrix_pair(matrix_size, cases[0].dtype), rounds)]
    rate = rows[0].pair.flops / min(*rows[0].ours_seconds, *rows[0].peer_seconds)
    for case in cases:
        inputs = make_inputs(case)
        with tempfile.TemporaryDirectory() as directory:
            save_random_weights(case.config, Path(directory))
            ours = Ours(load_pretrained(directory, dtype=case.dtype, remat=case.remat), inputs)
            peer = Peer(Path(directory), case, inputs, _OPTIMIZER)
        say(
            f"{case.name}: {peer.parameters() / 1e6:.1f}M parameters, {case.dtype}; {case.rows} rows of "
            f"{case.image_tokens} image tokens and {case.text_tokens} text tokens; images of {case.image_side} px; "
            f"remat {case.remat}"
        )
        for work, target in case.targets.items():
            rows.append(run_pair(_agreeing_pair(case, work, target, ours, peer, try_compile, say), rounds))
    return rows, rate


def _matrix_pair(size: int, dtype: str) -> Pair:
    return Pair(
        name="matrix product",
        size=str(size),
        ours=rates.matrix_product(size, dtype),
        peer=matrix_product(size, dtype),
        flops=2 * size**3,
    )


def _agreeing_pair(
    case: Case, work: str, target: float | None, ours: Ours, peer: Peer, try_compile: bool, say: Callable[[str], None]
) -> Pair:
    """Returns a pair for one work, with the peer's fastest setting, after comparing outputs."""

    def peers(setting: Setting) -> Callable[[], tuple[torch.Tensor, ...]]:
        peer.use(setting.attention, compiled=setting.compiled)
        return peer.work[work]

    best, note = fastest(settings(try_compile=try_compile), peers)
    run_ours, run_peer = ours.prepare(work), peers(best)
    errors = []
    for _ in range(2):  # the second time with the weights after a train step
        for mine, theirs in zip(run_ours(), run_peer(), strict=True):
            mine = np.asarray(mine.astype(jnp.float32))
            if work == "vision":  # our features are in window order
                mine = mine.reshape(case.rows, case.image_tokens, -1)[:, ours.feature_slots].reshape(theirs.shape)
            errors.append(check_agreement(f"{case.name} {work}", mine, theirs.float().cpu(), _TOLERANCES[case.dtype]))
    say(f"{case.name} {work}: outputs agree to {max(errors):.1e}; torch: {note}")
    return Pair(
        name=work, size=case.name, ours=run_ours, peer=run_peer, target=target, flops=case.flops(work), peer_settings=str(best)
    )


def describe(threads: int) -> dict[str, Any]:
    """Returns the versions, devices and settings that the measurements depend on."""
    return {
        "vitar_jax": f"jax {jax.__version__} on {jax.devices()[0].device_kind}",
        "peer": f"torch {torch.__version__}, transformers on "
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"),
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }
