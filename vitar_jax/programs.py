"""The jitted programs of a recipe over any mesh, lowered from shapes alone: nothing is allocated, no weights are read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitar_jax.learning.optimizer import make_optimizer
from vitar_jax.learning.train_state import abstract_train_state, make_train_step
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.parallel.mesh import batch_sharding, bins, regrouped, replicated, shardings
from vitar_jax.processing.packing import BatchShape, empty_bin
from vitar_jax.recipe import Recipe, StageConfig
from vitar_jax.rollout import sampler
from vitar_jax.rollout.view import Resharder, RolloutView

NAMES = ("train", "reshard", "prefill", "decode")


class Programs:
    """What training and rollout compile.

    Args:
      mesh: training's; rollout's is made of the same devices.
    """

    def __init__(self, recipe: Recipe, config: ModelConfig, mesh: Mesh):
        self.recipe, self.config, self.mesh = recipe, config, mesh

    def lower(self, name: str, stage: StageConfig) -> Any:
        """Lowers one of `NAMES`; only `train` depends on the stage."""
        lowered: dict[str, Callable[[], Any]] = {
            "train": lambda: self._train(stage),
            "reshard": lambda: self._resharder.program.lower(self._model()),
            "prefill": self._prefill,
            "decode": self._decode,
        }
        return lowered[name]()

    def batch_shape(self, stage: StageConfig) -> BatchShape:
        return self.recipe.batch_shape(stage, bins=bins(self.mesh), shards=bins(self.mesh))

    def _abstract(self) -> Any:
        return jax.eval_shape(lambda: Qwen2_5_VL(self.config, key=jax.random.key(0)))

    def _model(self) -> Any:
        abstract = self._abstract()
        return _laid(abstract, shardings(abstract, self.mesh, self.recipe.rules))

    def _train(self, stage: StageConfig) -> Any:
        optimizer = make_optimizer(stage.optimizer, stage.steps)
        state, spread = abstract_train_state(self._abstract, optimizer, self.mesh, self.recipe.rules)
        shape = self.batch_shape(stage)
        step = make_train_step(
            optimizer,
            jnp.zeros(self.config.text.vocab_size, bool),
            grpo=stage.grpo,
            temperature=stage.temperature,
            max_tokens=shape.policy_tokens,
            chunk=stage.logprob_chunk,
        )
        extras = ("advantages", "old_logprobs") if stage.grpo else ()
        one = empty_bin(shape, self.config.vision.patch_width, extras)
        sharding = batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct((shape.bins, *array.shape), array.dtype, sharding=sharding)
            for name, array in one.items()
        }
        return step.lower(_laid(state, spread), batch)  # type: ignore[attr-defined]

    @property
    def _resharder(self) -> Resharder:
        rollout = self.recipe.rollout
        return Resharder(self._abstract(), self.mesh, self.recipe.rules, dtype=rollout.dtype, tensor=rollout.tensor)

    def _view(self) -> RolloutView:
        resharder = self._resharder
        abstract = jax.eval_shape(resharder.program, self._abstract())
        mesh = regrouped(self.mesh, self.recipe.rollout.tensor)
        return dataclasses.replace(_laid(abstract, resharder.shardings), mesh=mesh)

    def _state(self, view: RolloutView) -> Any:
        slots, capacity = self.recipe.rollout.slots, self.recipe.limits.tokens
        state = jax.eval_shape(lambda: sampler.create_state(view, slots, capacity))
        assert view.mesh is not None
        return _laid(state, sampler.state_shardings(state, view.mesh))

    def _prefill(self) -> Any:
        """The longest extension of every slot's cache."""
        view, rollout = self._view(), self.recipe.rollout
        assert view.mesh is not None
        slots, length, everywhere = rollout.slots, max(rollout.extend_lengths), replicated(view.mesh)

        def whole(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

        size_class = self.recipe.size_classes[-1]
        features = (slots * self.recipe.limits.images + rollout.encode_batch) * size_class.slots // 4
        return sampler.extend.lower(
            view,
            self._state(view),
            whole((features, self.config.text.hidden_size), rollout.dtype),
            whole((slots, length), np.int32),
            whole((slots, length), np.int32),
            whole((slots, 3, length), np.int32),
            whole((slots,), np.int32),
        )

    def _decode(self) -> Any:
        view, rollout = self._view(), self.recipe.rollout
        assert view.mesh is not None
        everywhere = NamedSharding(view.mesh, P())
        sampling = jax.eval_shape(
            lambda: sampler.SamplingState(
                temperature=jnp.zeros(rollout.slots, jnp.float32),
                top_p=jnp.ones(rollout.slots, jnp.float32),
                keys=sampler.slot_keys(*(jnp.zeros(n, jnp.uint32) for n in ((), rollout.slots, rollout.slots))),
                stop_ids=jnp.zeros(1, jnp.int32),
                banned=jnp.zeros(self.config.text.vocab_size, bool),
            )
        )
        budgets = jax.ShapeDtypeStruct((rollout.slots,), np.int32, sharding=everywhere)
        spread = jax.tree.map(lambda _: everywhere, sampling)
        return sampler.decode.lower(view, self._state(view), _laid(sampling, spread), budgets, steps=rollout.chunk)


def _laid(tree: Any, spread: Any) -> Any:
    """Abstract arrays with the shardings of a like tree."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, spread)
