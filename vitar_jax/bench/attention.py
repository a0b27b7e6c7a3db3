"""Benchmark of the vision tower's full attention in blocks of queries against one block, which holds all logits at once.

Memory is that of compiled programs at the widths of published models, which are never run. Speed is measured at sizes that one
block holds, where both sides are the same program, and at the first sizes that take several.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vitar_jax.bench.pairs import Pair, Row, aligned, run_pair
from vitar_jax.models.attention import BACK_ENDS
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.kernels.xla import XLA, attend_in_blocks
from vitar_jax.models.registry import abstract_model
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.positions import SizeClass, smallest_class
from vitar_jax.runtime.cli import duration

SIDE = 1024  # pixels
TARGET = 1.5  # GiB
_PATCHES = (256, 1024, 2048)
_WHOLE = dataclasses.replace(
    XLA, name="one block", full=lambda valid: lambda q, k, v: attend_in_blocks(q, k, v, valid[..., None, :], 2**62)
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Temporaries of one full-attention layer of the tower, between patch embedding and merger, for one square image.

    Attributes:
      size: Name of the published model.
      patches: Number of patches, including the padding of the size class.
      blocks, whole: GiB of temporaries in blocks of queries, and with all logits at once.
    """

    size: str
    dtype: str
    work: str
    patches: int
    blocks: float
    whole: float

    @property
    def met(self) -> bool:
        return self.blocks <= TARGET


def memory(
    sizes: dict[str, ModelConfig], say: Callable[[str], None], dtypes: Sequence[str] = ("float32", "bfloat16")
) -> list[Memory]:
    """Compiles the layer of each size and type, forward and with gradients."""
    found = []
    for (name, config), dtype, work in itertools.product(sizes.items(), dtypes, ("forward", "gradient")):
        gib = [_temporaries(config, dtype, work, back_end) / 2**30 for back_end in ("xla", _WHOLE.name)]
        found.append(Memory(name, dtype, work, size_class(config).slots, *gib))
        say(f"{name} {dtype} {work}: {gib[0]:.2f} GiB in blocks, {gib[1]:.2f} GiB in one block")
    return found


def size_class(config: ModelConfig) -> SizeClass:
    """Returns the size class of a square image with `SIDE` pixels a side."""
    vision, layout = config.vision, config.layout
    processor = ImageProcessor(vision.patch_size, merge_size=vision.spatial_merge_size, max_pixels=2 * SIDE**2)
    height, width = (side // vision.patch_size for side in processor.target_size(SIDE, SIDE))
    classes = [SizeClass(*one) for one in layout.size_classes]
    geometry = {"window_size": layout.window_size, "patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    return classes[smallest_class((1, height, width), classes, **geometry)]


def _temporaries(config: ModelConfig, dtype: str, work: str, back_end: str) -> int:
    """Returns the bytes of temporaries of a compiled tower of one full-attention layer."""
    BACK_ENDS.setdefault(_WHOLE.name, _WHOLE)
    vision: Any = config.vision
    one = dataclasses.replace(vision, depth=1, fullatt_block_indexes=(0,))
    model = abstract_model(dataclasses.replace(config, vision=one, dtype=dtype, attention=back_end))
    tower = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model.visual)
    shape = size_class(config)
    pixels = jax.ShapeDtypeStruct((1, shape.slots, vision.patch_width), jnp.float32)
    positions = jax.ShapeDtypeStruct((1, shape.windows, shape.window_patches, 2), jnp.int32)

    def forward(tower: Any, pixels: jax.Array, positions: jax.Array) -> jax.Array:
        return tower(pixels, positions, jnp.dtype(dtype))

    def gradient(tower: Any, pixels: jax.Array, positions: jax.Array, cotangent: jax.Array) -> Any:
        return jax.vjp(lambda tower: forward(tower, pixels, positions), tower)[1](cotangent)

    arguments: list[Any] = [tower, pixels, positions]
    if work == "gradient":
        arguments.append(jax.eval_shape(forward, *arguments))
    analysis: Any = jax.jit(gradient if work == "gradient" else forward).lower(*arguments).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def speed(rounds: int, heads: int = 16, width: int = 80, patches: Iterable[int] = _PATCHES) -> list[Row]:
    """Times attention in blocks and in one block alternately, forward and with gradients, for one image in fp32."""
    rows = []
    for count in patches:
        q, k, v = (jax.random.normal(jax.random.key(i), (1, count, heads, width)) for i in range(3))
        valid = jnp.ones((1, count), bool)
        for name, on_arrays in (("forward", False), ("gradient", True)):

            def work(full: Any, backward: bool = on_arrays, arrays: Any = (q, k, v), valid: Any = valid) -> Callable[[], Any]:
                def run(*arrays: jax.Array) -> Any:
                    out, pull = jax.vjp(full(valid), *arrays)
                    return pull(jnp.cos(out)) if backward else out

                program = jax.jit(run)
                return lambda: jax.block_until_ready(program(*arrays))

            pair = Pair(f"full attention, {name}", f"{count} patches", ours=work(XLA.full), peer=work(_WHOLE.full))
            rows.append(run_pair(pair, rounds))
    return rows


def table(memories: Sequence[Memory], rows: Sequence[Row]) -> str:
    """Formats both measurements as two tables."""
    first = [["one layer", "type", "patches", "work", "in blocks", "in one block", f"target {TARGET} GiB"]]
    for one in memories:
        gib = [f"{amount:.2f} GiB" for amount in (one.blocks, one.whole)]
        first.append([one.size, one.dtype, str(one.patches), one.work, *gib, "met" if one.met else "MISSED"])
    second = [["work", "size", "in blocks", "in one block", "speed of blocks (range)"]]
    for row in rows:
        sides = [duration(statistics.median(side)) for side in (row.ours_seconds, row.peer_seconds)]
        ratio = f"{row.ratio:.2f}x ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
        second.append([row.pair.name, row.pair.size, *sides, ratio])
    return f"{aligned(first)}\n\n{aligned(second)}"
