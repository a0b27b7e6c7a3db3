"""The jitted programs of a recipe on any mesh. They are lowered from abstract arrays, without allocation or weights."""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.learning.optimizer import make_optimizer
from vitar_jax.learning.train_state import abstract_train_state, reference_weights
from vitar_jax.learning.train_step import make_train_step
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.registry import abstract_model
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.parallel.mesh import batch_sharding, bins, regrouped, replicated, shardings
from vitar_jax.processing.packing import Batch, BatchShape, batch_layout
from vitar_jax.rollout import masks, sampler, speculation
from vitar_jax.rollout.drafts import SlotTexts, WrittenTexts
from vitar_jax.rollout.prefill import feature_rows
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.weights import Resharder, RolloutWeights

NAMES = ("train", "reshard", "prefill", "decode")
MASK_NAMES = ("maps", "masks")  # of a recipe that plays a protocol with masks


@dataclasses.dataclass(frozen=True)
class Call:
    """A jitted program with the shapes, types and shardings of its arguments."""

    program: Any
    arguments: tuple[Any, ...]
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def lower(self) -> Any:
        return self.program.lower(*self.arguments, **self.static)


class Programs:
    """The programs of training and rollout, which `vitar_jax.plan` compiles too.

    Args:
      mesh: Training's mesh. Rollout's mesh has the same devices.

    Raises:
      ConfigError: If a stage learns masks and the model makes none.
    """

    def __init__(self, recipe: Recipe, config: ModelConfig, mesh: Mesh):
        for name, stage in recipe.stages.items():
            if stage.objective.masks is not None and config.mask_side is None:
                raise ConfigError(f"config.stages.{name}.objective.masks: a {config.model_type} makes no masks; remove the key")
        self.recipe, self.config, self.mesh = recipe, config, mesh
        self.model = abstract_model(config)
        self.model_shardings = shardings(self.model, mesh, recipe.rules)

    @cached_property
    def rollout_mesh(self) -> Mesh:
        return regrouped(self.mesh, self.recipe.rollout.tensor)

    @cached_property
    def resharder(self) -> Resharder:
        """The program that converts weights from training's sharding to rollout's."""
        rollout = self.recipe.rollout
        return Resharder(self.model, self.rollout_mesh, self.recipe.rules, dtype=rollout.dtype, weights=rollout.weights)

    def train(self, stage: StageConfig, banned: jax.Array) -> Call:
        """Returns the call of a stage's train step."""
        state = self.train_state(stage)
        step = make_train_step(
            stage.objective,
            self.optimizer(stage),
            banned,
            mesh=self.mesh,
            shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
            trainable=build.trainable(self.recipe, stage),
            max_tokens=self.batch_shape(stage).policy_tokens,
            chunk=stage.logprob_chunk,
            micro_batches=build.micro_batch_count(self.recipe, stage, bins(self.mesh)),
        )
        arguments = (state, self._batch(stage))
        if stage.objective.needs_reference:
            arguments += (_laid(jax.eval_shape(reference_weights, self.model), self.model_shardings),)
        return Call(step, arguments)

    def optimizer(self, stage: StageConfig) -> optax.GradientTransformation:
        return make_optimizer(stage.optimizer, stage.optimizer_steps)

    def train_state(self, stage: StageConfig) -> Any:
        """Returns a stage's abstract state with its sharding."""
        abstract, spread = abstract_train_state(
            lambda: self.model,
            self.optimizer(stage),
            self.mesh,
            self.recipe.rules,
            build.trainable(self.recipe, stage),
        )
        return _laid(abstract, spread)

    @cached_property
    def reference(self) -> Callable[[VisionLanguageModel], VisionLanguageModel]:
        """The program that copies the reference weights of a KL term."""
        return jax.jit(reference_weights, out_shardings=self.model_shardings)

    def _batch(self, stage: StageConfig) -> Batch:
        shape, sharding = self.batch_shape(stage), batch_sharding(self.mesh)
        layout = batch_layout(shape, self.config.vision.patch_width, stage.objective.extras)
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), layout)

    def batch_shape(self, stage: StageConfig) -> BatchShape:
        """Returns the shape of a full batch, over all processes."""
        return self.local_batch_shape(stage, bins(self.mesh))

    def local_batch_shape(self, stage: StageConfig, local: int) -> BatchShape:
        """Returns the shape of a batch's part on `local` of the data shards."""
        side = self.config.mask_side
        return build.batch_shape(self.recipe, stage, bins=local, shards=bins(self.mesh), mask_side=side)

    def call(self, name: str, stage: StageConfig) -> Call:
        """Returns the call of one of `names`; `train` and `reshard` depend on the stage."""
        calls: dict[str, Callable[[], Call]] = {
            "train": lambda: self.train(stage, jnp.zeros(self.config.text.vocab_size, bool)),
            "reshard": lambda: Call(self.resharder.program, (self.train_state(stage).model,)),
            "prefill": self._prefill,
            "decode": self._decode,
            "maps": self._maps,
            "masks": self._masks,
        }
        return calls[name]()

    @property
    def plays_masks(self) -> bool:
        """Whether turns of the recipe's protocols have masks."""
        protocols = self.recipe.used_protocols.values()
        return self.config.mask_side is not None and any(protocol.makes_masks for protocol in protocols)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the programs that `call` has."""
        return (*NAMES, *MASK_NAMES) if self.plays_masks else NAMES

    @cached_property
    def rollout_weights(self) -> RolloutWeights:
        """Rollout's abstract weights with their shardings."""
        abstract = jax.eval_shape(self.resharder.program, self.model)
        return dataclasses.replace(_laid(abstract, self.resharder.shardings), mesh=self.rollout_mesh)

    def _state(self, weights: RolloutWeights) -> Any:
        slots, capacity = self.recipe.rollout.slots, self.recipe.limits.tokens
        marks: dict[str, int] = {}
        if self.plays_masks:
            marks = {"marked": 0, "marks": self.recipe.rollout.turn_masks}  # the program does not depend on the marked token
        state = jax.eval_shape(lambda: sampler.create_state(weights, slots, capacity, **marks))
        return _laid(state, sampler.state_shardings(state, self.rollout_mesh))

    @property
    def slot_shards(self) -> int:
        """Number of data shards that slots are spread over. Each encodes one image for masks at a time."""
        return sampler.slot_shards(self.recipe.rollout.slots, self.rollout_mesh)

    @property
    def prefill_rows(self) -> int:
        """Number of prompts or observations that one call prefills."""
        return self.recipe.rollout.rows(self.slot_shards)

    @property
    def mask_rows(self) -> int:
        """Number of turns whose masks one call makes."""
        return self.recipe.rollout.turns(self.slot_shards)

    def _prefill(self) -> Call:
        """Returns the call of the largest prefill."""
        weights, rollout = self.rollout_weights, self.recipe.rollout
        rows, length, everywhere = self.prefill_rows, max(rollout.prefill_lengths), replicated(self.rollout_mesh)

        def whole(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

        merged = self.config.vision.spatial_merge_size**2
        largest = max(size_class.slots for size_class in build.size_classes(self.recipe)) // merged
        features = feature_rows(rollout, self.recipe.limits, rows, largest)
        arguments = (
            weights,
            self._state(weights),
            whole((features, self.config.feature_width), rollout.dtype),
            whole((rows, 1), np.int32),
            whole((rows,), np.int32),
            whole((rows, length), np.int32),
            whole((rows, length), np.int32),
            whole((rows, 3, length), np.int32),
            whole((rows,), np.int32),
        )
        return Call(sampler.prefill, arguments)

    def _decode(self) -> Call:
        weights, rollout = self.rollout_weights, self.recipe.rollout
        everywhere = replicated(self.rollout_mesh)
        arrays = sampling_arrays(rollout.slots)
        sampling = SamplingState(**arrays, banned=jnp.zeros(self.config.text.vocab_size, bool))
        spread = jax.tree.map(lambda _: everywhere, sampling)
        budgets, quorum = (jax.ShapeDtypeStruct(shape, np.int32, sharding=everywhere) for shape in ((rollout.slots,), ()))
        arguments = (weights, self._state(weights), _laid(sampling, spread), budgets, quorum)
        if not rollout.draft_tokens:
            return Call(sampler.decode, arguments, {"steps": rollout.chunk})
        texts = SlotTexts(WrittenTexts(), rollout.slots, self.recipe.limits.tokens).texts()
        texts = _laid(texts, jax.tree.map(lambda _: everywhere, texts))
        sizes = {"steps": rollout.chunk, "drafted": rollout.draft_tokens}
        return Call(speculation.decode_drafted, (*arguments, texts), sizes)

    def _maps(self) -> Call:
        side, everywhere = self.config.mask_side, replicated(self.rollout_mesh)
        assert side is not None
        pixels = jax.ShapeDtypeStruct((self.slot_shards, side, side, 3), np.uint8, sharding=everywhere)
        return Call(masks.encode_maps, (self.rollout_weights, pixels))

    def _masks(self) -> Call:
        weights, rows, everywhere = self.rollout_weights, self.mask_rows, replicated(self.rollout_mesh)
        one, *_ = jax.eval_shape(masks.encode_maps, *self._maps().arguments)
        maps = (jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), one),) * rows
        numbers = jax.ShapeDtypeStruct((rows,), np.int32, sharding=everywhere)
        return Call(masks.make_masks, (weights, self._state(weights).marks.states, maps, numbers, numbers))


def _laid(tree: Any, spread: Any) -> Any:
    """Returns abstract arrays with the shardings of a tree of the same structure."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, spread)


def compile_ahead(function: Any, *arguments: Any) -> Callable[..., Any]:
    """Starts compiling a jitted function in a thread, and returns a function whose first call waits for it.

    Args:
      arguments: Abstract arguments, with the shardings of the real ones. A call with other arguments compiles again.
    """
    thread = ThreadPoolExecutor(1)
    compiling = thread.submit(lambda: function.lower(*arguments).compile())
    thread.shutdown(wait=False)

    def call(*arguments: Any) -> Any:
        compiling.result()
        return function(*arguments)

    return call
