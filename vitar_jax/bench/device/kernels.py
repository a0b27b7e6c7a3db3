"""Checks the attention back ends of a device in bf16 against XLA in fp32: forward, backward, windows and cached."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.bench.device.parts import Check
from vitar_jax.models.attention import BACK_ENDS
from vitar_jax.models.kernels.backend import BackEnd, Cached
from vitar_jax.models.kernels.xla import XLA

LIMIT = 2e-2  # XLA in bf16 has an error of about 5e-3, and any key too many or too few of about 1

Heads = tuple[int, int, int]  # query heads, key-value heads, width


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Sizes of the checked arrays.

    Attributes:
      rows, tokens: Rows of text, and tokens per row.
      new: Tokens per row that attend to a cache of `tokens` positions.
      patches: Patches of an image with full attention.
      windows, window_patches: Windows of an image, and patches per window.
    """

    text_heads: Heads
    vision_heads: Heads
    rows: int
    tokens: int
    new: int
    patches: int
    windows: int
    window_patches: int


@dataclasses.dataclass(frozen=True)
class _Case:
    """Inputs of one kind of attention.

    Attributes:
      attend: Attention of a back end to q, k and v.
      arrays: q, k and v.
      where: Positions [B, T] whose results count.
      backward: Whether the gradients of q, k and v are checked too.
      kernel: Whether a back end with a mark calls its kernel here.
    """

    name: str
    attend: Callable[..., jax.Array]
    arrays: tuple[jax.Array, ...]
    where: jax.Array
    backward: bool = True
    kernel: bool = True


def check_kernels(shapes: Shapes, platform: str) -> list[Check]:
    """Checks each back end that runs on a platform.

    Returns:
      A check per back end and kind of attention, whose error is the largest of the output and the gradients. The note has that
      of XLA in bf16, and says if the compiled program calls no kernel, which fails the check.
    """
    checks = []
    for back_end in BACK_ENDS.values():
        if back_end.platform in ("", platform):
            for ours, xla in zip(_cases(back_end, shapes), _cases(XLA, shapes, back_end.segments), strict=True):
                checks.append(_check(back_end, ours, xla))
    return checks


def _check(back_end: BackEnd, ours: _Case, xla: _Case) -> Check:
    with jax.default_matmul_precision("highest"):
        right = _program(xla)(*(x.astype(jnp.float32) for x in xla.arrays))
    program = _program(ours).lower(*ours.arrays).compile()
    error, own = (_error(outputs, right) for outputs in (program(*ours.arrays), _program(xla)(*xla.arrays)))
    note = f"XLA in bf16 {own:.1e}"
    if ours.kernel and back_end.mark not in (program.as_text() or ""):
        error, note = float("nan"), "the compiled program calls no kernel"
    return Check(f"{back_end.name}, {ours.name}", error, LIMIT, note)


def _program(case: _Case) -> Any:
    """Returns the jitted function from q, k and v to the output, and to the gradients of a sum of it."""

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        def attended(*arrays: jax.Array) -> jax.Array:
            return jnp.where(case.where[..., None, None], case.attend(*arrays), 0)

        if not case.backward:
            return (attended(*arrays),)
        out, pull = jax.vjp(attended, *arrays)
        angles = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)
        return out, *pull(jnp.cos(angles).astype(out.dtype))

    return jax.jit(run)


def _error(outputs: Any, right: Any) -> float:
    """Returns the largest relative difference of the arrays. NaN if any is."""
    pairs = [(np.asarray(one, np.float32), np.asarray(other)) for one, other in zip(outputs, right, strict=True)]
    return float(np.max([np.linalg.norm(one - other) / np.linalg.norm(other) for one, other in pairs]))


def _cases(back_end: BackEnd, shapes: Shapes, segments: bool | None = None) -> Iterator[_Case]:
    """Yields the cases of a back end, with rows of several segments if it takes them (or as `segments` says)."""
    rng = np.random.default_rng(0)

    def arrays(heads: Heads, rows: int, queries: int) -> tuple[jax.Array, ...]:
        q_heads, kv_heads, width = heads
        sizes = [(rows, queries, count, width) for count in (q_heads, kv_heads, kv_heads)]
        return tuple(jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in sizes)

    rows, tokens = shapes.rows, shapes.tokens
    places = np.broadcast_to(np.arange(tokens), (rows, tokens))
    ends = np.linspace(tokens // 2, tokens, rows, dtype=int)[:, None]  # padding behind all rows but the last
    several = back_end.segments if segments is None else segments
    ids = 1 + 3 * places // tokens if several else np.ones_like(places)
    segment_ids = jnp.asarray(np.where(places < ends, ids, 0), jnp.int32)
    name = "causal, segments" if several else "causal"
    yield _Case(name, back_end.causal(segment_ids), arrays(shapes.text_heads, rows, tokens), segment_ids > 0)

    for name, images, patches in (("full", 1, shapes.patches), ("windows", shapes.windows, shapes.window_patches)):
        valid = jnp.asarray(rng.random((images, patches)) < 0.7)
        yield _Case(name, back_end.full(valid), arrays(shapes.vision_heads, images, patches), valid)

    for name, attend, new in (("cached", back_end.cached, shapes.new), ("decode", back_end.decode, 1)):
        q, k, v = arrays(shapes.text_heads, rows, new)
        _, keys, values = arrays(shapes.text_heads, rows, tokens)
        lengths = np.linspace(tokens // 4, tokens - new, rows, dtype=int)
        counts = np.linspace(max(new // 2, 1), new, rows, dtype=int)
        yield _cached(name, attend, (q, k, v), (keys, values), lengths, counts)


def _cached(name: str, attend: Any, new: Any, old: Any, lengths: np.ndarray, counts: np.ndarray) -> _Case:
    q, k, v = new
    places = lengths[:, None] + np.arange(q.shape[1])  # of the new tokens in the cache
    stored = np.arange(q.shape[1]) < counts[:, None]
    rows = np.broadcast_to(np.arange(len(q))[:, None], places.shape)
    keys, values = (cache.at[rows[stored], places[stored]].set(x[stored]) for cache, x in zip(old, (k, v), strict=True))

    def cached(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        cache = Cached(keys.astype(q.dtype), values.astype(q.dtype), jnp.asarray(lengths), jnp.asarray(counts))
        return attend(q, k, v, cache)

    return _Case(name, cached, new, jnp.asarray(stored), backward=False, kernel=name != "decode")
