"""Weights in rollout's layout: one array per layer, in rollout's type, on the devices of this process.

Training shards weights over all devices of a run. Each process plays its own episodes, so rollout gathers the weights over
`data` and `fsdp` and shards them over `tensor` alone. Decoding from training's shards would gather every layer at every token.

Decode reads all projections of the decoder, rows of the embeddings and the head at every token. In int8 these are half of bf16.
The vision tower runs once per image and the parts that make masks once per turn, so they keep the type of computation.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from vitar_jax.models.config import ModelConfig
from vitar_jax.models.decoder import DecoderLayer
from vitar_jax.models.int8 import Int8Matrix, to_int8
from vitar_jax.models.layers import RMSNorm, unstack
from vitar_jax.models.lora import merge_lora
from vitar_jax.models.vision_language import MaskMaker, VisionLanguageModel, VisionTower
from vitar_jax.parallel.mesh import ShardingRules, axes_sharding, shardings


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["visual", "embed_tokens", "layers", "norm", "head", "masks"],
    meta_fields=["config", "mesh"],
)
@dataclasses.dataclass(frozen=True)
class RolloutWeights:
    """A model's weights in rollout's layout.

    Attributes:
      mesh: This process's devices. Slots are sharded over its `data` and `fsdp` axes. None means one device.
      masks: The parts that make masks, in the model's own layout: an encoder runs once per image, so its layers stay scanned.
        None in a family that makes none.
    """

    visual: VisionTower
    embed_tokens: Float[Array, "V D"] | Int8Matrix
    layers: tuple[DecoderLayer, ...]
    norm: RMSNorm
    head: Float[Array, "D V"] | Int8Matrix
    config: ModelConfig
    mesh: Mesh | None = None
    masks: MaskMaker | None = None

    def embed(self, token_ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Returns the embeddings of tokens in the type of computation."""
        table = self.embed_tokens
        return table.rows(token_ids, self.config.dtype) if isinstance(table, Int8Matrix) else table[token_ids]

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Returns the logits of hidden states after the last norm, in fp32."""
        if isinstance(self.head, Int8Matrix):
            return self.head.product(hidden)
        return jnp.dot(hidden, self.head, preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnames=("dtype", "weights"))
def rollout_weights(model: VisionLanguageModel, dtype: str = "float32", weights: str = "") -> RolloutWeights:
    """Returns the rollout weights of a model on one device. `RolloutConfig` describes `dtype` and `weights`."""
    return _rollout_weights(model, dtype, weights)


def _rollout_weights(model: VisionLanguageModel, dtype: str, weights: str) -> RolloutWeights:
    merged = merge_lora(model)
    cast = jax.tree.map(lambda x: x.astype(dtype), merged)
    made = RolloutWeights(
        visual=cast.visual,
        embed_tokens=cast.model.embed_tokens[...],
        layers=unstack(cast.model.layers),
        norm=cast.model.norm,
        head=cast.head(),
        config=dataclasses.replace(model.config, dtype=dtype),
        masks=cast.mask_maker,
    )
    if not weights:
        return made
    # From the model's own type, so that values are rounded once. A row of the table is an output channel of a tied head.
    table = Int8Matrix.of(merged.model.embed_tokens[...], axis=-1)
    head = table.T if merged.lm_head is None else Int8Matrix.of(merged.head())
    return dataclasses.replace(made, embed_tokens=table, layers=unstack(to_int8(merged.model.layers, dtype)), head=head)


class Resharder:
    """The conversion of a model sharded over a training mesh to rollout weights, as one jitted program.

    Attributes:
      program: The program from model to weights over the whole mesh, before each process takes its own shards.
      shardings: Shardings of the program's output.
    """

    def __init__(self, model: Any, mesh: Mesh, rules: ShardingRules, *, dtype: str, weights: str = ""):
        """Prepares the program. `model` may be abstract. `mesh` is rollout's mesh over the devices of all processes."""
        rules = dataclasses.replace(rules, embed=None)
        self._make, self._dtype, self._mesh = partial(_rollout_weights, dtype=dtype, weights=weights), dtype, mesh
        abstract = jax.eval_shape(self._make, model)

        def spread(matrix: Any, *axes: str) -> Any:
            return jax.tree.map(lambda leaf: axes_sharding(leaf.shape, axes, mesh, rules), matrix)

        self.shardings = dataclasses.replace(
            shardings(abstract, mesh, rules),
            embed_tokens=spread(abstract.embed_tokens, "vocab", "embed"),
            head=spread(abstract.head, "embed", "vocab"),
        )
        self.program = jax.jit(self._make, out_shardings=self.shardings)
        self._programs: dict[tuple[bool, ...], Any] = {}

    def __call__(self, model: VisionLanguageModel) -> RolloutWeights:
        """Returns the weights. They share those arrays of `model.mask_maker` that already have rollout's type and sharding.

        A frozen encoder has such arrays. If a train step later consumes `model`, the weights must not be used after it.
        """
        targets, structure = jax.tree.flatten(self.shardings)
        own = jax.tree.leaves(model.mask_maker)
        own = [None] * (len(targets) - len(own)) + own  # the last leaves of rollout weights
        shared = tuple(
            leaf is not None and leaf.dtype == self._dtype and leaf.sharding.is_equivalent_to(target, leaf.ndim)
            for leaf, target in zip(own, targets, strict=True)
        )
        made = iter(self._program_without(shared)(model))
        leaves = [leaf if leaf is not None and keep else next(made) for leaf, keep in zip(own, shared, strict=True)]
        local = [self._local(leaf, target) for leaf, target in zip(leaves, targets, strict=True)]
        return dataclasses.replace(jax.tree.unflatten(structure, local), mesh=self._mesh.local_mesh)

    def _program_without(self, shared: tuple[bool, ...]) -> Callable[[VisionLanguageModel], list[jax.Array]]:
        """Returns a program that makes the leaves of rollout weights that are not `shared`."""
        if not any(shared):
            return lambda model: jax.tree.leaves(self.program(model))

        def left(tree: Any) -> list[Any]:
            return [leaf for leaf, keep in zip(jax.tree.leaves(tree), shared, strict=True) if not keep]

        if shared not in self._programs:
            self._programs[shared] = jax.jit(lambda model: left(self._make(model)), out_shardings=left(self.shardings))
        return self._programs[shared]

    def _local(self, leaf: jax.Array, target: NamedSharding) -> jax.Array:
        """Returns this process's shards of a leaf with a target's sharding, as a local array, without a copy."""
        sharding = NamedSharding(self._mesh.local_mesh, target.spec)
        on = {shard.device: shard.data for shard in leaf.addressable_shards}
        parts = [on[device] for device in sharding.addressable_devices_indices_map(leaf.shape)]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
