"""Masks of finished turns: two jitted programs, and the host side that calls them.

`encode_maps` encodes images into the maps that masks are decoded from. `make_masks` decodes the states at the `[SEG]` tokens of
turns into masks, for a fixed number of turns and of masks per turn.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.regions import Mask
from vitar_jax.errors import ConfigError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.registry import FAMILIES, family_of
from vitar_jax.models.sam2.model import ImageMaps
from vitar_jax.parallel.mesh import keep_in_bins, on_mesh
from vitar_jax.processing.masks import full_size, ground_pixels
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.sampler import Marks, slot_shards
from vitar_jax.rollout.stats import RolloutStats
from vitar_jax.rollout.weights import RolloutWeights

_BLOCK = 8  # masks of a row that are decoded at once, or as many as divide the maximum of a turn


def lacks_masks(protocol: Protocol, config: ModelConfig) -> bool:
    """Returns whether a protocol needs masks and the model's family makes none."""
    return protocol.makes_masks and family_of(config).masks is None


def check_makes_masks(protocol: Protocol, config: ModelConfig) -> None:
    """Checks that a model can play a protocol whose turns have masks.

    Raises:
      ConfigError: If the protocol needs masks, and the model's family makes none.
    """
    if lacks_masks(protocol, config):
        making = ", ".join(name for name, family in FAMILIES.items() if family.masks is not None)
        raise ConfigError(
            f"protocol {protocol.name}: got a model of the family {config.model_type}, expected one that makes masks of [SEG] "
            f"tokens: {making}; choose another protocol or checkpoint"
        )


@jax.jit
def encode_maps(weights: RolloutWeights, pixels: UInt8[Array, "B side side 3"]) -> tuple[ImageMaps, ...]:
    """Returns the maps of B images, each without leading axes. Data shards encode the images in parallel, if they divide B."""
    assert weights.masks is not None
    with on_mesh(weights.mesh):
        maps = weights.masks.image_maps(keep_in_bins(pixels)[:, None], weights.config.dtype)
    apart = tuple(jax.tree.map(lambda leaf, i=i: leaf[i, 0], maps) for i in range(len(pixels)))
    if weights.mesh is None:
        return apart
    return jax.lax.with_sharding_constraint(apart, NamedSharding(weights.mesh, P()))


@jax.jit
def make_masks(
    weights: RolloutWeights,
    states: Float[Array, "B K D"],
    maps: tuple[ImageMaps, ...],
    slots: Int[Array, " R"],
    counts: Int[Array, " R"],
) -> tuple[Float[Array, "R K height width"], Float[Array, "R K"]]:
    """Returns the mask logits of turns at 1/4 of the side of SAM 2's image, and their predicted IoUs.

    Args:
      states: States at the marked tokens of all slots.
      maps: Maps of the image of each of the R turns.
      slots, counts: Slot of each turn, and its number of masks. Masks past the count are undefined. Data shards take rows in
        turn. A row's masks are decoded in blocks. A block in which no shard has a mask is skipped, so that time follows the
        number of masks and memory does not grow with K.
    """
    maker, shards = weights.masks, slot_shards(len(maps), weights.mesh)
    block = math.gcd(states.shape[1], _BLOCK)
    assert maker is not None

    def decode(maps: ImageMaps, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        masks = maker.masks(maps, states)
        return masks.best().astype(jnp.float32), masks.ious.max(axis=-1).astype(jnp.float32)

    def decode_rows(turns: tuple[ImageMaps, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        maps, states, counts = jax.tree.map(keep_in_bins, turns)

        def decode_if_any(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            states, first = part
            empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(decode, maps, states))
            return jax.lax.cond((counts > first).any(), decode, lambda *_: empty, maps, states)

        blocks = jnp.moveaxis(states.reshape(shards, -1, block, states.shape[-1]), 1, 0)
        return jax.lax.map(decode_if_any, (blocks, block * jnp.arange(len(blocks))))

    turns = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *maps), states[slots], counts)
    with on_mesh(weights.mesh):
        made = jax.lax.map(decode_rows, jax.tree.map(lambda rows: rows.reshape(-1, shards, *rows.shape[1:]), turns))
    # [rows / shards, blocks, shards, block, ...] -> [rows, K, ...]
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 2, 1).reshape(len(maps), -1, *leaf.shape[4:]), made)


class EndedTurn(NamedTuple):
    """A turn whose masks are to be made: its slot, its episode, and the number of its states."""

    slot: int
    episode: Episode
    count: int


MadeMasks = list[tuple[Mask, float]]


class Masker:
    """Makes the masks of turns. Encodes each image once and keeps its maps while a live episode needs them.

    Args:
      pool: Threads that resize images and masks.
    """

    def __init__(self, config: RolloutConfig, weights: RolloutWeights, pool: Executor, stats: RolloutStats):
        assert weights.masks is not None
        self._weights, self._pool, self._stats = weights, pool, stats
        self._side = weights.masks.side
        self._shards = slot_shards(config.slots, weights.mesh)
        self._rows = config.turns(self._shards)
        # By content of image 0.
        self._pixels: dict[str, Future[np.ndarray]] = {}
        self._maps: dict[str, ImageMaps] = {}

    def admit(self, episode: Episode) -> None:
        """Starts to resize the image of an admitted episode."""
        image = episode.images[0]
        if image.sha256 not in self._pixels and image.sha256 not in self._maps:
            self._pixels[image.sha256] = self._pool.submit(ground_pixels, image.pixels, self._side)

    def keep(self, live: Iterable[Episode]) -> None:
        """Releases the images that none of these episodes needs."""
        needed = {episode.images[0].sha256 for episode in live if episode.images}
        for held in (self._pixels, self._maps):
            for content in held.keys() - needed:
                del held[content]

    def make(self, marks: Marks, turns: Sequence[EndedTurn]) -> list[Callable[[], MadeMasks]]:
        """Starts to make the masks of turns. Returns a function for each turn that waits for them, for the pool to call."""
        self._encode(turns)
        waiting: list[Callable[[], MadeMasks]] = []
        for first in range(0, len(turns), self._rows):
            rows = turns[first : first + self._rows]
            maps = [self._maps[turn.episode.images[0].sha256] for turn in rows]
            logits, scores = self._call(marks, maps, [turn.slot for turn in rows], [turn.count for turn in rows])
            waiting += [self._in_full_size(turn, logits, scores, row) for row, turn in enumerate(rows)]
        return waiting

    def warm_up(self, marks: Marks) -> None:
        """Compiles both programs."""
        blank = np.zeros((self._shards, self._side, self._side, 3), np.uint8)
        self._call(marks, encode_maps(self._weights, blank)[:1], [0], [0])

    def _encode(self, turns: Sequence[EndedTurn]) -> None:
        """Encodes the images of turns that are not encoded yet."""
        contents = dict.fromkeys(turn.episode.images[0].sha256 for turn in turns)
        new = [content for content in contents if content not in self._maps]
        for first in range(0, len(new), self._shards):
            batch = new[first : first + self._shards]
            pixels = np.zeros((self._shards, self._side, self._side, 3), np.uint8)
            for row, content in enumerate(batch):
                pixels[row] = self._pixels.pop(content).result()
            with self._stats.time("masks") as made:
                maps = encode_maps(self._weights, pixels)
                made.append(maps)
            self._maps |= zip(batch, maps, strict=False)

    def _call(
        self, marks: Marks, maps: Sequence[ImageMaps], slots: Sequence[int], counts: Sequence[int]
    ) -> tuple[jax.Array, jax.Array]:
        """Calls `make_masks` on up to `mask_rows` turns."""
        missing = self._rows - len(maps)
        arrays = (np.array([*numbers, *[0] * missing], np.int32) for numbers in (slots, counts))
        with self._stats.time("masks") as made:
            found = make_masks(self._weights, marks.states, (*maps, *[maps[0]] * missing), *arrays)
            made.append(found)
        return found

    def _in_full_size(self, turn: EndedTurn, logits: jax.Array, scores: jax.Array, row: int) -> Callable[[], MadeMasks]:
        def wait() -> MadeMasks:
            width, height = turn.episode.images[0].pixels.size
            found = zip(np.asarray(logits)[row, : turn.count], np.asarray(scores)[row].tolist(), strict=False)
            # One at a time: each needs some bytes for every pixel of the image.
            return [(Mask.of(full_size(one, self._side, height, width), "original"), score) for one, score in found]

        return wait
