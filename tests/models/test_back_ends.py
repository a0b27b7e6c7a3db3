"""Attention's back ends against XLA's where they can run here, and compiled for their chips where they cannot."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.kit import micro, tiny
from tests.kit.images import noise
from vitar_jax.errors import ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.attention import BACK_ENDS, find_back_end
from vitar_jax.models.kernels import xla
from vitar_jax.models.kernels.backend import BackEnd, Cached
from vitar_jax.models.kernels.cudnn import cudnn_masked
from vitar_jax.models.kernels.splash import splash
from vitar_jax.models.kernels.xla import XLA
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.qwen2_5_vl.sizes import SIZES
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, on_mesh, shardings
from vitar_jax.parallel.topology import find_topology
from vitar_jax.plan.__main__ import check_kernels
from vitar_jax.processing.packing import BatchShape, pack
from vitar_jax.rollout.kv_cache import KVCache

Arrays = tuple[jax.Array, ...]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The TPU kernel, run step by step on a CPU."""
    made = splash_attention_kernel.make_splash_mha
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", partial(made, interpret=True))


@pytest.fixture
def cudnn_by_xla(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked of cuDNN, done by JAX's own form of the same function; lists who was asked for."""
    asked: list[str] = []
    public = jax.nn.dot_product_attention

    def instead(*arrays: jax.Array, implementation: str, **options: Any) -> jax.Array:
        asked.append(implementation)
        return public(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    yield asked
    assert asked and set(asked) == {"cudnn"}


def heads(rows: int, length: int, q_heads: int, kv_heads: int, width: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(rows, length, n, width)), jnp.float32) for n in (q_heads, kv_heads, kv_heads))


def packed(rows: int, length: int) -> jax.Array:
    """Rows of segments 1, 2 and 3 with padding behind them."""
    cuts = np.random.default_rng(1).integers(1, length, (rows, 3))
    numbers = np.stack([np.digitize(np.arange(length), np.sort(cut)) for cut in cuts])
    return jnp.asarray((numbers + 1) % 4, jnp.int32)


def holes(rows: int, length: int) -> jax.Array:
    """Places that are valid, with holes between as in windows that are cut short."""
    return jnp.asarray(np.random.default_rng(2).random((rows, length)) < 0.7)


def with_gradients(function: Callable[..., jax.Array], arrays: Arrays, where: jax.Array) -> Arrays:
    """What a function returns where `where` is true, and the gradients of some sum of that."""

    @jax.jit
    def run(*arrays: jax.Array) -> Any:
        def scalar(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = jnp.where(where[..., None, None], function(*arrays), 0.0)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return jnp.sum(out * weights), out

        gradients, out = jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return out, *gradients

    return run(*arrays)


def assert_same(ours: Arrays, theirs: Arrays) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=2e-5 * float(np.abs(other).max()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "causal"])
@pytest.mark.parametrize("rows", [25, 7], ids="blocks of {}".format)
def test_blocks_of_queries_are_the_whole(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients, with and without padding of the last block, also where query heads share keys."""
    arrays, valid = heads(2, 50, 4, 4 if kind == "full" else 2, 16), holes(2, 50)
    segments = packed(2, 50)
    make = partial(XLA.full, valid) if kind == "full" else partial(XLA.causal, segments)
    where = valid if kind == "full" else segments > 0
    whole = with_gradients(make(), arrays, where)
    monkeypatch.setattr(xla, "BLOCK_LOGITS", rows * 50)
    assert_same(with_gradients(make(), arrays, where), whole)


def test_one_block_has_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, valid = heads(1, 64, 2, 2, 16), holes(1, 64)
    monkeypatch.setattr(xla, "BLOCK_LOGITS", 64 * 64)
    text = jax.jit(XLA.full(valid)).lower(*arrays).as_text()
    monkeypatch.setattr(xla, "BLOCK_LOGITS", 2**60)
    assert text == jax.jit(XLA.full(valid)).lower(*arrays).as_text()


@pytest.mark.slow
def test_gradients_of_bf16_blocks_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, valid = heads(1, 256, 2, 2, 16), holes(1, 256)
    low = tuple(x.astype(jnp.bfloat16) for x in arrays)
    exact = with_gradients(XLA.full(valid), tuple(x.astype(jnp.float32) for x in low), valid)
    errors = []
    for size in (2**60, 4 * 256):
        monkeypatch.setattr(xla, "BLOCK_LOGITS", size)
        found = with_gradients(lambda *x: XLA.full(valid)(*x).astype(jnp.float32), low, valid)
        errors.append([float(np.linalg.norm(np.float32(f) - e) / np.linalg.norm(e)) for f, e in zip(found, exact, strict=True)])
    assert np.all(np.array(errors[1]) <= 2 * np.array(errors[0])), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backward"), [("cached", False), *itertools.product(["full", "causal"], [False, True])]
)
def test_logits_of_long_rows_never_exist_at_once(kind: str, backward: bool) -> None:
    length, q_heads = 4096, 2
    arrays = [jax.ShapeDtypeStruct((1, length, q_heads, 16), jnp.float32)] * 3
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def attended(ids: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if kind == "cached":
            return XLA.cached(q, k, v, Cached(k, v, ids[:, 0], ids[:, 0] + length))
        return XLA.full(ids > 0)(q, k, v) if kind == "full" else XLA.causal(ids)(q, k, v)

    def pulled(ids: jax.Array, *arrays: jax.Array) -> Any:
        out, pull = jax.vjp(partial(attended, ids), *arrays)
        return pull(out)

    program = jax.jit(pulled if backward else attended).lower(ids, *arrays).compile()
    all_logits = q_heads * length * length * 4
    assert program.memory_analysis().temp_size_in_bytes < all_logits / 2


@pytest.mark.slow
@pytest.mark.parametrize(("q_heads", "kv_heads", "width", "length"), [(4, 2, 128, 200), (7, 1, 80, 140)])
def test_splash_is_causal_within_segments(interpreted: None, q_heads: int, kv_heads: int, width: int, length: int) -> None:
    arrays, segments = heads(2, length, q_heads, kv_heads, width), packed(2, length)
    ours, theirs = (with_gradients(BACK_ENDS[name].causal(segments), arrays, segments > 0) for name in ("splash", "xla"))
    assert_same(ours, theirs)
    blind = with_gradients(BACK_ENDS["splash"].causal(jnp.minimum(segments, 1)), arrays, segments > 0)
    assert np.abs(blind[0] - theirs[0]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 72, 80, 128])
def test_splash_sees_every_valid_patch(interpreted: None, width: int) -> None:
    arrays, valid = heads(2, 192, 2, 2, width), holes(2, 192)
    assert_same(*(with_gradients(BACK_ENDS[name].full(valid), arrays, valid) for name in ("splash", "xla")))


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2, 4], ids="tensor {}".format)
def test_splash_spreads_over_a_mesh(interpreted: None, tensor: int) -> None:
    """On eight devices; two key-value heads are not divided by four."""
    mesh = make_mesh(data=2, fsdp=-1, tensor=tensor)
    arrays, segments = heads(4, 130, 4, 2, 16), packed(4, 130)
    expected = with_gradients(BACK_ENDS["xla"].causal(segments), arrays, segments > 0)
    rows = NamedSharding(mesh, P(("data", "fsdp")) if 8 // tensor <= 4 else P("data"))

    def spread(*arrays: jax.Array) -> jax.Array:
        with on_mesh(mesh):
            return BACK_ENDS["splash"].causal(segments)(*arrays)

    assert_same(with_gradients(spread, jax.device_put(arrays, rows), segments > 0), expected)


@pytest.mark.slow
def test_a_model_has_the_same_gradients(interpreted: None) -> None:
    """Vision and text, packed rows, spread over four devices as rows and heads."""
    using, mesh = tiny.processor(12), make_mesh(1, 2, 2, devices=jax.devices()[:4])
    examples = [tiny.example(str(i), [noise(112, 84, seed=i), "What is it? " * (4 + i)], using) for i in range(6)]
    batch = pack(examples, BatchShape(2, 1, 400, 4, using.size_classes[0], 400), using)
    assert batch.segment_ids.max() > 1

    def gradients(back_end: str) -> Any:
        model = tiny.with_config(tiny.pretrained()[1], attention=back_end)

        @jax.jit
        @jax.grad
        def gradient(model: Any) -> jax.Array:
            with on_mesh(mesh):
                states = model(**batch.inputs)
            return jnp.mean(jnp.where((batch.segment_ids > 0)[..., None], states, 0.0) ** 2)

        return gradient(jax.device_put(model, shardings(model, mesh, ShardingRules())))

    ours, theirs = (dict(leaf_paths(gradients(name))) for name in ("splash", "xla"))
    for path, expected in theirs.items():
        norm = np.linalg.norm(expected)
        assert np.linalg.norm(ours[path] - expected) <= 2e-5 * max(norm, 1e-3), path


@pytest.mark.slow
@pytest.mark.parametrize("back_end", ["splash", "cudnn"])
def test_new_tokens_see_the_cache_and_those_before_them(back_end: str, request: pytest.FixtureRequest) -> None:
    """Slots with different amounts in the cache and different numbers of new tokens, one of them with neither."""
    request.getfixturevalue("interpreted" if back_end == "splash" else "cudnn_by_xla")
    lengths, counts, capacity, length = jnp.array([0, 37, 90, 0]), jnp.array([20, 20, 7, 0]), 120, 20
    rng = np.random.default_rng(3)
    cache = KVCache.create(layers=1, slots=4, capacity=capacity, kv_heads=2, head_dim=16, dtype="float32")
    old_k, old_v = (jnp.asarray(rng.normal(size=cache.keys[0].shape), jnp.float32) for _ in range(2))
    cache = dataclasses.replace(cache, keys=(old_k,), values=(old_v,), lengths=lengths)
    q, k, v = heads(4, length, 4, 2, 16)
    cache = cache.write(0, cache.places(counts, length), k, v)
    read = partial(cache.attend, 0, reach=capacity)
    ours, theirs = (jax.jit(partial(read, back_end=BACK_ENDS[name]))(q, k, v, counts) for name in (back_end, "xla"))
    new = np.arange(length) < counts[:, None]
    np.testing.assert_allclose(ours[new], theirs[new], atol=1e-5)


@pytest.mark.slow
def test_cudnn_is_asked_for_rows_of_one_segment(cudnn_by_xla: list[str]) -> None:
    arrays = heads(3, 50, 4, 2, 16)
    segments = jnp.asarray(np.arange(50) < np.array([[50], [31], [1]])).astype(jnp.int32)
    assert_same(*(with_gradients(BACK_ENDS[name].causal(segments), arrays, segments > 0) for name in ("cudnn", "xla")))


@pytest.mark.slow
def test_cudnn_gives_no_number_for_a_row_of_several_segments(cudnn_by_xla: list[str]) -> None:
    arrays = heads(3, 50, 2, 2, 16)
    segments = jnp.ones((3, 50), jnp.int32).at[1, 30:].set(2).at[2, :5].set(0)  # one row, packed rows, padding in front
    out = BACK_ENDS["cudnn"].causal(segments)(*arrays)
    assert np.isnan(out).all(axis=(1, 2, 3)).tolist() == [False, True, True]


def test_cudnn_is_asked_for_valid_patches(cudnn_by_xla: list[str]) -> None:
    arrays, valid = heads(3, 64, 2, 2, 16), holes(3, 64).at[2].set(False)  # the last image is padding alone
    assert_same(*(with_gradients(BACK_ENDS[name].full(valid), arrays, valid) for name in ("cudnn", "xla")))


def test_cudnn_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered for a GPU that is not here: its flash attention, forward and backward, at the widths of all families."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)

    def called(function: Callable[..., jax.Array], lengths: tuple[int, int], q_heads: int, kv_heads: int, width: int) -> set:
        shapes = [(2, lengths[0], q_heads, width)] + 2 * [(2, lengths[1], kv_heads, width)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
        text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        return set(re.findall(r"__cudnn\$\w+", text))

    def gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
        return jax.grad(lambda *arrays: function(*arrays).astype(jnp.float32).sum(), argnums=(0, 1, 2))

    both = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    segments = jnp.ones((2, 256), jnp.int32)
    assert called(gradient(BACK_ENDS["cudnn"].causal(segments)), (256, 256), 28, 4, 128) == both
    for width in (64, 72, 80):
        assert called(gradient(BACK_ENDS["cudnn"].full(segments > 0)), (256, 256), 16, 16, width) == both
    mask = jnp.ones((2, 128, 512), bool)
    masked = called(lambda q, k, v: cudnn_masked(q, k, v, mask), (128, 512), 28, 4, 128)
    assert masked == {"__cudnn$fmhaScaleBiasSoftmax"}


@pytest.mark.parametrize("width", [64, 72, 80])
def test_splash_lowers_for_tpus(width: int) -> None:
    """Forward and backward, at the widths of all towers."""
    arrays = [jax.ShapeDtypeStruct((2, 256, 16, width), jnp.bfloat16)] * 3
    attend = BACK_ENDS["splash"].full(jnp.ones((2, 256), bool))
    gradients = jax.jit(jax.grad(lambda *arrays: attend(*arrays).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
    text = gradients.trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "q_heads", "kv_heads", "width", "causal_offset"),
    [
        ((1024, 1024), 28, 4, 128, 0),
        ((1024, 1024), 16, 16, 80, None),
        ((200, 1224), 28, 4, 128, 1024),
        ((1024, 1024), 16, 16, 72, None),
    ],
    ids=["training", "vision", "prefill", "vision of Qwen3-VL"],
)
def test_splash_compiles_for_tpus(
    lengths: tuple[int, int], q_heads: int, kv_heads: int, width: int, causal_offset: int | None
) -> None:
    """Forward and backward on four chips, each with its own rows and heads: nothing goes from chip to chip."""
    mesh = make_mesh(1, 2, 2, devices=find_topology("v5e:2x2").devices)
    tokens, rows = (NamedSharding(mesh, spec) for spec in (P("fsdp", None, "tensor"), P("fsdp")))
    shapes = [(4, lengths[0], q_heads, width)] + 2 * [(4, lengths[1], kv_heads, width)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=tokens) for shape in shapes]
    segments = [jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=rows) for length in lengths]

    @jax.jit
    def gradients(q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array) -> Any:
        def scalar(*arrays: jax.Array) -> jax.Array:
            return splash(*arrays, *segments, causal_offset=causal_offset).astype(jnp.float32).sum()

        with on_mesh(mesh):
            return jax.grad(scalar, argnums=(0, 1, 2))(q, k, v)

    text = gradients.lower(*arrays, *segments).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3  # forward, and two backward
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", text)


def test_nothing_falls_back() -> None:
    arrays, segments = heads(1, 128, 2, 2, 128), jnp.ones((1, 128), jnp.int32)
    with pytest.raises(ValueError, match="interpret"):
        jax.jit(BACK_ENDS["splash"].causal(segments))(*arrays)
    with pytest.raises(RuntimeError, match="cuDNN"):
        jax.jit(BACK_ENDS["cudnn"].causal(segments))(*(x.astype(jnp.bfloat16) for x in arrays))


@pytest.mark.parametrize(
    ("name", "dtype", "platform", "words"),
    [
        ("flash", "bfloat16", None, "got 'flash', expected one of xla, splash, cudnn"),
        ("cudnn", "float32", None, "not in float32"),
        ("splash", "float32", "cpu", "splash runs on a tpu; the devices here are cpus"),
        ("cudnn", "bfloat16", "tpu", "cudnn runs on a gpu; the devices here are tpus"),
    ],
)
def test_a_back_end_that_cannot_run_is_an_error(name: str, dtype: str, platform: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=f"config.model.attention: .*{words}"):
        find_back_end(name, dtype=dtype, platform=platform)


def test_a_models_config_checks_its_back_end() -> None:
    config = dataclasses.replace(SIZES["qwen2_5_vl_3b"], attention="cudnn", dtype="bfloat16")
    with pytest.raises(ConfigError, match="config.model.attention: .*not in float32"):
        dataclasses.replace(config, dtype="float32")


@pytest.mark.slow
def test_another_back_end_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model computes with it, a recipe obeys its limits, and a plan looks for its mark."""

    def even(q: jax.Array, k: jax.Array, v: jax.Array, *_: Any) -> jax.Array:
        return jnp.broadcast_to(v.mean(axis=1, keepdims=True), v.shape).repeat(q.shape[2] // v.shape[2], axis=2)

    record = BackEnd(
        "even",
        lambda _: even,
        lambda _: even,
        even,
        even,
        platform="cpu",
        dtypes=("float32",),
        segments=False,
        mark="even_call",
    )
    monkeypatch.setitem(BACK_ENDS, "even", record)
    model = tiny.pretrained()[1]
    inputs = (jnp.ones((1, 4, 64)), jnp.zeros((1, 3, 4), jnp.int32), jnp.ones((1, 4), jnp.int32))
    ours, theirs = (tiny.with_config(model, attention=name).model(*inputs) for name in ("even", "xla"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # equal tokens at equal positions attend evenly
    with pytest.raises(ConfigError, match="even computes in float32, not in bfloat16"):
        find_back_end("even", dtype="bfloat16")
    config = micro.get_config()
    config.model.attention = "even"
    config.stages.sft.objective.pack = True
    with pytest.raises(ConfigError, match="config.stages.sft.objective.pack: even's attention takes one example a row"):
        Recipe.from_config(config)
    with pytest.raises(ConfigError, match="is even, but the compiled program prefill calls no kernel"):
        check_kernels("fusion(%x)", "even", "prefill")
    check_kernels("even_call(%x)", "even", "prefill")
