"""What falls on which device, and what then travels between them: sizes of the real 7B model, and a small model compiled."""

import math
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.kit import training
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.train_state import abstract_train_state
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.qwen2_5_vl.sizes import SIZES
from vitar_jax.models.registry import abstract_model
from vitar_jax.parallel.mesh import ShardingRules, batch_sharding, bins, make_mesh, shardings
from vitar_jax.plan.hlo import collectives
from vitar_jax.processing.packing import Batch

MIB = 2**20
VISION_MLP = [f"visual/blocks/mlp/{name}/kernel" for name in ("down_proj", "gate_proj", "up_proj")]


@cache
def laid(size: str, *mesh: int) -> list[tuple[str, Any, NamedSharding]]:
    """Path, shape and sharding of every parameter of a published model; nothing is allocated."""
    model = abstract_model(SIZES[size])
    spread = jax.tree.leaves(shardings(model, make_mesh(*mesh), ShardingRules()))
    return [(path, leaf, sharding) for (path, leaf), sharding in zip(leaf_paths(model), spread, strict=True)]


@pytest.mark.parametrize(
    "mesh, whole",
    [
        ((1, 8, 1), []),
        ((2, 2, 2), []),
        ((1, 2, 4), []),
        ((1, 1, 8), [*VISION_MLP, "visual/patch_embed/kernel"]),  # the tower's MLP is 4 x 855 wide
    ],
)
def test_every_device_holds_the_whole_of_small_parameters_only(mesh: tuple[int, int, int], whole: list[str]) -> None:
    """Of 7B, nothing above 1 MiB is replicated but what is listed here."""
    parameters = laid("qwen2_5_vl_7b", *mesh)
    assert sum(leaf.size for _, leaf, _ in parameters) > 8e9
    found = [path for path, leaf, sharding in parameters if 4 * leaf.size > MIB and sharding.is_fully_replicated]
    assert sorted(found) == whole


def test_moments_lie_where_their_parameters_lie() -> None:
    model, mesh = abstract_model(SIZES["qwen2_5_vl_7b"]), make_mesh(1, 2, 4)
    optimizer = make_optimizer(OptimizerConfig(1e-3), steps=1)
    abstract, spread = abstract_train_state(lambda: model, optimizer, mesh, ShardingRules())
    for name in ("mu", "nu"):
        moments = optax.tree_utils.tree_get(abstract.opt_state, name)
        assert jax.tree.map(np.shape, jax.tree.leaves(moments)) == jax.tree.map(np.shape, jax.tree.leaves(model))
        assert jax.tree.leaves(optax.tree_utils.tree_get(spread.opt_state, name)) == jax.tree.leaves(spread.model)


# A small model on eight devices


def small_batch(shards: int) -> Batch:
    """One example a row, so that rows come in the same order whatever the number of bins."""
    return training.make_batch(training.shape(shards, tokens=32))


@cache
def forward(*sizes: int) -> tuple[np.ndarray, str]:
    """Logits of the examples, [examples, tokens, V], and the compiled program that made the hidden states."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    batch = small_batch(bins(mesh))
    on_device = jax.device_put(batch.inputs, batch_sharding(mesh))
    model = jax.device_put(training.model(), shardings(training.model(), mesh, ShardingRules()))

    @jax.jit
    def hidden_states(model: Qwen2_5_VL, batch: dict[str, jax.Array]) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return model(**batch)

    with jax.default_matmul_precision("highest"):
        compiled = hidden_states.lower(model, on_device).compile()
    hidden = np.asarray(compiled(model, on_device))
    logits = hidden @ np.asarray(model.head())
    return logits.reshape(len(training.SIZES), -1, logits.shape[-1]), compiled.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", training.MESHES, ids=str)
def test_logits_do_not_depend_on_the_mesh(mesh: tuple[int, int, int]) -> None:
    logits, expected = forward(*mesh)[0], forward(1, 1, 1)[0]
    assert expected.std() > 0.5
    assert np.abs(logits - expected).max() <= training.TOLERANCE * np.abs(expected).max()


@pytest.mark.slow
def test_data_shards_have_nothing_to_say_to_each_other() -> None:
    """Weights whole on every device: images are encoded, merged and read where they are."""
    assert collectives(forward(8, 1, 1)[1]) == []


@pytest.mark.slow
def test_between_shards_of_weights_nothing_travels_but_weights() -> None:
    """Each is gathered once; of the embedding table only the rows that are looked up: token ids there, parts of rows back."""
    model, mesh = training.model(), make_mesh(1, 8, 1)
    spread = jax.tree.leaves(shardings(model, mesh, ShardingRules()))
    split = {path: leaf for (path, leaf), s in zip(leaf_paths(model), spread, strict=True) if not s.is_fully_replicated}
    gathered = [leaf.nbytes for path, leaf in split.items() if not path.startswith(("model/embed_tokens", "lm_head"))]
    assert len(gathered) > 15
    token_ids = small_batch(8).token_ids
    found = {c.kind: c for c in collectives(forward(1, 8, 1)[1])}
    assert found.keys() == {"all-gather", "all-to-all"}
    assert found["all-gather"].bytes == sum(gathered) + token_ids.nbytes
    assert found["all-to-all"].count == 1


@pytest.mark.slow
def test_no_device_holds_the_embeddings_of_all_bins() -> None:
    """Rows that are looked up in a split table go to their bins straight away."""
    rows, width = len(training.SIZES) // 4, training.model().config.text.hidden_size
    text = forward(2, 2, 2)[1]
    assert f"f32[4,{rows},32,{width // 2}]" not in text and f"f32[4,{rows},32,{width}]" not in text


@pytest.mark.slow
def test_what_does_not_divide_stays_whole() -> None:
    """The small model has both: widths that a tensor axis of 4 splits, and one that it does not."""
    model = training.model()
    spread = jax.tree.leaves(shardings(model, make_mesh(1, 2, 4), ShardingRules()))
    specs = {path: sharding.spec for (path, _), sharding in zip(leaf_paths(model), spread, strict=True)}
    assert specs["model/layers/mlp/up_proj/kernel"] == P(None, "fsdp", "tensor")
    assert specs["visual/blocks/mlp/up_proj/kernel"] == P(None, "fsdp", None)
