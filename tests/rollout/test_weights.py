"""From training's layout of the weights to rollout's, on a mesh of simulated devices."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from tests.kit import rollout as engines
from tests.kit import tiny
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import ConfigError
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.registry import config_from_hf
from vitar_jax.parallel.mesh import ShardingRules, bins, make_mesh, regrouped, shardings
from vitar_jax.plan.hlo import each_collective
from vitar_jax.rollout import sampler
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.weights import Resharder, RolloutWeights, rollout_weights


def resharder(tensor: int, model: Qwen2_5_VL | None = None, weights: str = "") -> tuple[Resharder, Any]:
    """And the model as training lays it out, over `fsdp` and `tensor`."""
    mesh, rules = make_mesh(1, 4, 2), ShardingRules()
    model = model or tiny.pretrained()[1]
    laid = jax.device_put(model, shardings(model, mesh, rules))
    return Resharder(model, regrouped(mesh, tensor), rules, dtype="float32", weights=weights), laid


@pytest.mark.slow
@pytest.mark.parametrize("tensor, weights", [(1, ""), (2, ""), (2, "int8")])
def test_the_view_holds_the_weights_split_over_tensor_alone(tensor: int, weights: str) -> None:
    reshard, model = resharder(tensor, weights=weights)
    view, whole = reshard(model), rollout_weights(tiny.pretrained()[1], weights=weights)
    assert view.mesh is not None and dict(view.mesh.shape) == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}
    split = 0
    for (name, ours), (_, expected) in zip(leaf_paths(view), leaf_paths(whole), strict=True):
        assert np.array_equal(ours, expected), name
        assert isinstance(ours.sharding, NamedSharding) and set(ours.sharding.spec) <= {None, "tensor"}, name
        split += ours.addressable_shards[0].data.shape != ours.shape
    assert (split > 20) == (tensor == 2)


def test_devices_of_a_process_must_make_whole_shards() -> None:
    with pytest.raises(ConfigError, match="rollout.tensor: 3 does not divide the 8 devices"):
        resharder(3)


def weights_gathered(view: RolloutWeights) -> list[int]:
    """Bytes of each collective of decoding that is as large as a projection split over `tensor` alone."""
    slots = 4
    state = sampler.create_state(view, slots=slots, capacity=64)
    assert view.mesh is not None and state.cache.keys[0].addressable_shards[0].data.shape[0] == slots // bins(view.mesh)
    sampling = SamplingState(**sampling_arrays(slots), banned=np.zeros(tiny.VOCAB, bool))
    budgets, quorum = np.full(slots, 4, np.int32), np.int32(slots)
    decode = sampler.decode.lower(view, state, sampling, budgets, quorum, steps=4).compile()
    whole = min(leaf.nbytes for path, leaf in leaf_paths(view.layers) if path.endswith("/kernel"))
    sizes = [found.bytes // found.count for found in each_collective(decode.as_text())]
    assert sizes
    return [size for size in sizes if size >= whole // view.mesh.shape["tensor"]]


def wide() -> Qwen2_5_VL:
    """A model whose smallest projection is larger than what all slots hold, logits too."""
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    config = tiny.hf_config(hidden_size=256, **heads, vision={"out_hidden_size": 256})
    return Qwen2_5_VL(config_from_hf(config.to_dict()), key=jax.random.key(0))


@pytest.mark.slow
def test_decoding_gathers_no_weights() -> None:
    reshard, model = resharder(2, wide())
    assert weights_gathered(reshard(model)) == []


@pytest.mark.slow
def test_decoding_from_the_layout_of_training_would() -> None:
    """What the view is for; and the test above can fail."""
    reshard, model = resharder(2, wide())
    view = reshard(model)
    mesh = make_mesh(1, 4, 2)
    spread = shardings(jax.eval_shape(lambda: view.layers), mesh, ShardingRules())
    sharded = dataclasses.replace(view, mesh=mesh, layers=jax.device_put(view.layers, spread))
    others = {"visual": view.visual, "norm": view.norm, "embed_tokens": view.embed_tokens, "head": view.head}
    whole = NamedSharding(mesh, jax.sharding.PartitionSpec())
    sharded = dataclasses.replace(sharded, **jax.device_put(others, whole))
    assert len(weights_gathered(sharded)) >= 2 * len(view.layers)


@pytest.mark.slow
def test_a_mesh_plays_what_one_device_plays() -> None:
    """Groups of four on shards of two slots, refilled."""
    reshard, model = resharder(2)
    played = []
    for view in (engines.view(), reshard(model)):
        episodes = engines.forked(5, 4)
        rollout = Engine(dataclasses.replace(engines.SIZES, slots=8), engines.PROCESSOR, engines.LIMITS, engines.banned())
        engines.run(rollout, view, episodes, Sampling(seed=3), group_size=4)
        played.append(episodes)
    for one, other in zip(*played, strict=True):
        assert one.token_ids == other.token_ids
        ours, theirs = ([p for p in e.logprobs if p is not None] for e in (one, other))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
