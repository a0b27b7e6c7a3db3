"""Prefill on the host: arranges the new tokens and images of episodes in the static shapes of the device programs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.processing.positions import Grid, SizeClass
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout import sampler
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.sampler import DecodeState, slot_shards
from vitar_jax.rollout.stats import RolloutStats
from vitar_jax.rollout.weights import RolloutWeights


@dataclasses.dataclass(frozen=True)
class PrefillRequest:
    """Tokens `start:` of an episode, for `slots` (all on `shard`) whose caches hold the tokens before `start`."""

    episode: Episode
    start: int
    shard: int
    slots: list[int]

    @property
    def count(self) -> int:
        return len(self.episode.token_ids) - self.start


_Patches = tuple[np.ndarray, Grid]
_PER_TOKEN = ("token_ids", "vision_index", "position_ids")


class Prefiller:
    """The batching of requests into calls of `sampler.encode` and `sampler.prefill`."""

    def __init__(self, config: RolloutConfig, processor: Processor, limits: Limits, stats: RolloutStats):
        self.config, self.processor, self.limits, self.stats = config, processor, limits, stats

    def prefill(
        self, weights: RolloutWeights, state: DecodeState, requests: Sequence[PrefillRequest], width: int
    ) -> DecodeState:
        """Prefills all requests, one batch per device call.

        Args:
          width: Static upper bound on the slots of one request.
        """
        shards = slot_shards(self.config.slots, weights.mesh)
        rows = self.config.rows(shards) // shards
        # Requests of similar length share a call, which is padded to the longest.
        ordered = sorted(requests, key=lambda request: (-request.count, request.slots))
        queues = [[request for request in ordered if request.shard == shard] for shard in range(shards)]
        for first in range(0, max(map(len, queues)), rows):
            batches = [queue[first : first + rows] for queue in queues]
            padded = [row for batch in batches for row in [*batch, *[None] * (rows - len(batch))]]
            state = self._prefill_rows(weights, state, padded, width)
        return state

    def warm_up(self, weights: RolloutWeights, state: DecodeState, width: int) -> DecodeState:
        """Compiles `encode` for every size class and `prefill` for every length."""
        features = self._feature_buffer(weights)
        for size_class in self.processor.size_classes:
            features, _ = self._encode(weights, features, [], size_class, 0)
        for length in self.config.prefill_lengths:
            state = self._prefill(weights, state, features, self._blank(weights, width, length))
        return state

    def _prefill_rows(
        self, weights: RolloutWeights, state: DecodeState, rows: Sequence[PrefillRequest | None], width: int
    ) -> DecodeState:
        features, places = self._encode_images(weights, [row for row in rows if row is not None])
        pieces = self._pieces(max(row.count for row in rows if row is not None))
        tokens = self._blank(weights, width, sum(pieces))
        for i, row in enumerate(rows):
            if row is None:
                continue
            new, count = slice(row.start, None), row.count
            tokens["slots"][i, : len(row.slots)] = row.slots
            tokens["starts"][i], tokens["counts"][i] = row.start, count
            tokens["token_ids"][i, :count] = row.episode.token_ids[new]
            tokens["vision_index"][i, :count] = places[id(row.episode)][row.episode.vision_index[new]]
            tokens["position_ids"][i, :, :count] = np.concatenate(row.episode.position_ids, axis=1)[:, new]
            self.stats.prefilled += count
            self.stats.shared += count * (len(row.slots) - 1)
        offset = 0
        for length in pieces:
            piece = {name: array[..., offset : offset + length] for name, array in tokens.items() if name in _PER_TOKEN}
            piece["counts"] = np.clip(tokens["counts"] - offset, 0, length)
            piece["starts"] = tokens["starts"] + offset
            piece["slots"] = np.where(piece["counts"][:, None] > 0, tokens["slots"], self.config.slots)
            state = self._prefill(weights, state, features, piece)
            offset += length
        return state

    def _pieces(self, longest: int) -> list[int]:
        """Returns the lengths of the calls that prefill `longest` tokens."""
        lengths = sorted(self.config.prefill_lengths)
        pieces = [lengths[-1]] * (longest // lengths[-1])
        rest = longest - sum(pieces)
        return pieces + [n for n in lengths if n >= rest][:1] if rest else pieces

    def _blank(self, weights: RolloutWeights, width: int, length: int) -> dict[str, np.ndarray]:
        """Returns arguments of `sampler.prefill` that change no slot."""
        rows = self.config.rows(slot_shards(self.config.slots, weights.mesh))
        return {
            "slots": np.full((rows, width), self.config.slots, np.int32),
            "starts": np.zeros(rows, np.int32),
            "token_ids": np.zeros((rows, length), np.int32),
            "vision_index": np.full((rows, length), -1, np.int32),
            "position_ids": np.zeros((rows, 3, length), np.int32),
            "counts": np.zeros(rows, np.int32),
        }

    def _prefill(
        self, weights: RolloutWeights, state: DecodeState, features: jax.Array, tokens: dict[str, np.ndarray]
    ) -> DecodeState:
        with self.stats.time("prefill") as made:
            state = sampler.prefill(weights, state, features, **tokens)
            made.append(state.done)
        return state

    def _encode_images(
        self, weights: RolloutWeights, rows: Sequence[PrefillRequest]
    ) -> tuple[jax.Array, dict[int, np.ndarray]]:
        """Encodes each image that new tokens refer to, once.

        Returns:
          The feature buffer, and for each episode, by its id, the buffer row of each of its features (0 if no new token needs
          the feature). The last entry is for text, whose index is -1.
        """
        processor, batch = self.processor, self.config.encode_batch
        wanted: dict[str, _Patches] = {}
        for row in rows:
            new = set(row.episode.vision_index[row.start :])
            wanted |= {content: image for first, content, image in self._images(row.episode) if first in new}
        found: dict[str, np.ndarray] = {}
        classes: dict[SizeClass, list[str]] = {}
        for content, (_, grid) in wanted.items():
            classes.setdefault(processor.size_class(grid), []).append(content)
        buffer, offset = self._feature_buffer(weights, {one: len(contents) for one, contents in classes.items()}), 0
        for size_class, ours in sorted(classes.items()):
            for start in range(0, len(ours), batch):
                contents = ours[start : start + batch]
                images = [wanted[content] for content in contents]
                buffer, slots = self._encode(weights, buffer, images, size_class, offset)
                found |= dict(zip(contents, slots, strict=True))
                offset += len(images) * processor.features(size_class)
        text = np.array([-1])
        places = {
            id(row.episode): np.concatenate(
                [
                    *(
                        found.get(content, np.zeros(processor.tokens(grid), int))
                        for _, content, (_, grid) in self._images(row.episode)
                    ),
                    text,
                ]
            )
            for row in rows
        }
        return buffer, places

    def _encode(
        self, weights: RolloutWeights, buffer: jax.Array, images: Sequence[_Patches], size_class: SizeClass, offset: int
    ) -> tuple[jax.Array, list[np.ndarray]]:
        """Encodes one batch of images. Returns the buffer, and for each image the buffer rows of its features."""
        processor, batch = self.processor, self.config.encode_batch
        pixels = np.zeros((batch, size_class.slots, processor.patch_width), np.float32)
        positions = np.full((batch, size_class.windows, size_class.window_patches, 2), -1, np.int32)
        rows = []
        for i, (patches, grid) in enumerate(images):
            _, positions[i], slots = processor.arrange(patches, grid, size_class, into=pixels[i])
            rows.append(offset + i * processor.features(size_class) + slots)
        with self.stats.time("vision") as made:
            buffer = sampler.encode(weights, buffer, pixels, positions, np.int32(offset))
            made.append(buffer)
        return buffer, rows

    def _images(self, episode: Episode) -> Iterator[tuple[int, str, _Patches]]:
        """Yields each image's first feature, its content hash, and its patches with their grid."""
        first = 0
        for image, patches in zip(episode.images, episode.patches, strict=True):
            yield first, image.sha256, (patches, image.grid_thw)
            first += self.processor.tokens(image.grid_thw)

    def _feature_buffer(self, weights: RolloutWeights, images: Mapping[SizeClass, int] = {}) -> jax.Array:
        """Returns an empty buffer for `images`, the number of images of each size class."""
        rows, features = self.config.rows(slot_shards(self.config.slots, weights.mesh)), self.processor.features
        size = feature_rows(self.config, self.limits, rows, max(map(features, self.processor.size_classes)))
        if self.config.follow_images:
            needed = sum(count * features(one) for one, count in images.items())
            needed += self.config.encode_batch * max(map(features, images), default=1)  # the last call's padding
            size = 1 << (needed - 1).bit_length()  # few sizes, because each compiles programs
        return sampler.feature_buffer(weights, rows=size)


def feature_rows(config: RolloutConfig, limits: Limits, rows: int, largest: int) -> int:
    """Returns the size of the feature buffer: all images of a call's rows, `largest` features each, and one batch's padding."""
    return (rows * limits.images + config.encode_batch) * largest
