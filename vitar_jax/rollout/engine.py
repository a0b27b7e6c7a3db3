"""The host side of rollout: plays a wave of episodes on a fixed number of slots, turn by turn."""

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import ConfigError
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout import sampler
from vitar_jax.rollout.sampler import DecodeState, SamplingState
from vitar_jax.rollout.view import RolloutView

_Piece = tuple[np.ndarray, np.ndarray, np.ndarray]  # of one slot: token ids [n], feature rows [n], positions [3, n]
_NOTHING: _Piece = (np.zeros(0, int), np.zeros(0, int), np.zeros((3, 0), int))


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Static sizes of the rollout programs.

    Attributes:
      slots: episodes played at a time.
      extend_lengths: sizes that prompts and observations are padded up to; longer ones go in pieces.
      chunk: tokens sampled between two looks of the host.
      encode_batch: images encoded by one call.
      workers: threads that open images, run tools and process what they return.
      dtype: type of weights, activations and cache in rollout.
      tensor: devices that share one copy of the weights; slots are spread over the rest of a process's devices.
    """

    slots: int
    extend_lengths: tuple[int, ...]
    chunk: int = 32
    encode_batch: int = 8
    workers: int = 4
    dtype: str = "float32"
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.slots < 1 or not self.extend_lengths or min(self.extend_lengths) < 1:
            raise ConfigError(f"rollout: slots {self.slots} and extend_lengths {self.extend_lengths} must be positive")
        if self.workers < 1:
            raise ConfigError(f"rollout: workers {self.workers} must be positive")


def feature_rows(config: RolloutConfig, limits: Limits, largest: int) -> int:
    """Features of every image that all slots may hold, `largest` an image, and of the last batch's padding."""
    return (config.slots * limits.images + config.encode_batch) * largest


class Engine:
    """Plays episodes with the weights it is given; holds no weights of its own.

    Args:
      limits: the same limits that the episodes were made with; `limits.tokens` is the cache's capacity.
      banned: bool [V], ids that are never drawn.

    Attributes:
      pool: what an episode does by itself, beginning or acting on a turn, runs here. Its results never depend on how
        many threads there are, or on which is first.
    """

    def __init__(self, config: RolloutConfig, processor: Processor, limits: Limits, banned: np.ndarray):
        self.config = config
        self.processor = processor
        self.limits = limits
        self.banned = jnp.asarray(banned)
        self.pool = ThreadPoolExecutor(config.workers)
        self._stop_ids = jnp.array([processor.chat.im_end], jnp.int32)

    def play(self, view: RolloutView, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        """Plays episodes to their end, in place, and yields each when it has ended.

        Args:
          groups: any number; taken one by one as slots become free. The episodes of a group share their prompt, which is
            read once. An episode alone may come with turns already written and goes on from there.
        """
        groups = iter(groups)
        while first := next(groups, None):
            size = len(first)
            if self.config.slots % size:
                raise ConfigError(f"rollout: {self.config.slots} slots do not hold whole groups of {size}")
            wave = [first, *itertools.islice(groups, self.config.slots // size - 1)]
            episodes = [episode for group in wave for episode in group]
            if size > 1 and any(episode.turns for episode in episodes):
                raise ValueError("episodes of a group share their prompt alone, but turns are written already")
            self._play_wave(view, episodes, episodes[0].sampling, size)
            yield from episodes

    def warm_up(self, view: RolloutView, group_sizes: Sequence[int] = (1,)) -> None:
        """Compiles every program that any episode can need."""
        config = self.config
        for size_class in self.processor.size_classes:
            pixels = np.zeros((config.encode_batch, size_class.slots, self.processor.patch_width), np.float32)
            positions = np.full((config.encode_batch, size_class.windows, size_class.window_patches, 2), -1, np.int32)
            features = sampler.encode(view, self._feature_buffer(view), pixels, positions, np.int32(0))
        for group_size in group_sizes:
            rows = config.slots // group_size
            for length in config.extend_lengths:
                state = sampler.create_state(view, slots=rows, capacity=self.limits.tokens)
                for _ in range(2):  # the second call sees the first one's output as its input
                    state = self._extend(view, state, features, [_NOTHING] * rows, length)
            if group_size > 1:
                state = sampler.fork(state, np.zeros(config.slots, np.int32), view.mesh)
        sampling = self._sampling([], Sampling())
        for _ in range(2):
            state, *_ = sampler.decode(view, state, sampling, np.ones(config.slots, np.int32), steps=config.chunk)
            for length in config.extend_lengths:
                state = self._extend(view, state, features, [_NOTHING] * config.slots, length)

    def _play_wave(self, view: RolloutView, episodes: Sequence[Episode], sampling: Sampling, group_size: int) -> None:
        slots = self.config.slots
        read = np.zeros(slots, int)  # tokens of each episode that are in the cache
        device_sampling = self._sampling(episodes, sampling)

        leaders = episodes[::group_size]
        rows = slots // group_size
        state = sampler.create_state(view, slots=rows, capacity=self.limits.tokens)
        leader_read = np.zeros(rows, int)
        state = self._read_pending(view, state, leaders, leader_read)
        if group_size > 1:
            state = sampler.fork(state, np.repeat(np.arange(rows, dtype=np.int32), group_size), view.mesh)
        read[:] = np.repeat(leader_read, group_size)

        while not all(episode.finished for episode in episodes):
            state = self._read_pending(view, state, episodes, read)
            state = self._sample_turns(view, state, episodes, device_sampling, read)

    def _sample_turns(
        self,
        view: RolloutView,
        state: DecodeState,
        episodes: Sequence[Episode],
        sampling: SamplingState,
        read: np.ndarray,
    ) -> DecodeState:
        """Samples one turn of every unfinished episode, which act on theirs while others still write."""
        playing = [not episode.finished for episode in episodes]
        tokens: list[list[int]] = [[] for _ in episodes]
        logprobs: list[list[float]] = [[] for _ in episodes]
        acting: list[Future[None]] = []
        stop = self.processor.chat.im_end
        budgets = np.zeros(self.config.slots, np.int32)
        while any(playing):
            for slot, episode in enumerate(episodes):
                budgets[slot] = episode.turn_budget - len(tokens[slot]) if playing[slot] else 0
            state, *drawn = sampler.decode(view, state, sampling, budgets, steps=self.config.chunk)
            drawn_ids, drawn_logprobs, counts = (np.asarray(array) for array in drawn)
            for slot, episode in enumerate(episodes):
                count = int(counts[slot])
                tokens[slot] += drawn_ids[slot, :count].tolist()
                logprobs[slot] += drawn_logprobs[slot, :count].tolist()
                ended = count > 0 and (tokens[slot][-1] == stop or len(tokens[slot]) >= episode.turn_budget)
                if playing[slot] and ended:
                    playing[slot] = False
                    read[slot] = len(episode.token_ids) + len(tokens[slot]) - 1
                    acting.append(self.pool.submit(episode.add_turn, tokens[slot], logprobs[slot]))
        for turn in acting:
            turn.result()
        return state

    def _read_pending(
        self, view: RolloutView, state: DecodeState, episodes: Sequence[Episode], read: np.ndarray
    ) -> DecodeState:
        """Reads the tokens and images that unfinished episodes have gained. Updates `read`."""
        rows = len(read)
        pending: list[_Piece] = []
        features, places = self._encode_images(view, episodes, read)
        for slot in range(rows):
            episode = episodes[slot] if slot < len(episodes) else None
            if episode is None or episode.finished:
                pending.append(_NOTHING)
                continue
            new = slice(read[slot], len(episode.token_ids))
            index = np.array(episode.vision_index[new], int)
            pending.append(
                (
                    np.array(episode.token_ids[new]),
                    places[slot][index],
                    np.concatenate(episode.position_ids, axis=1)[:, new],
                )
            )
            read[slot] = new.stop
        longest = max(len(tokens) for tokens, _, _ in pending)
        start = 0
        while start < longest:
            lengths = self.config.extend_lengths
            length = min((n for n in lengths if n >= longest - start), default=max(lengths))
            piece = [
                (t[start : start + length], v[start : start + length], p[:, start : start + length]) for t, v, p in pending
            ]
            state = self._extend(view, state, features, piece, length)
            start += length
        return state

    def _extend(
        self, view: RolloutView, state: DecodeState, features: jax.Array, pieces: Sequence[_Piece], length: int
    ) -> DecodeState:
        """One call of the device: a piece of at most `length` tokens for each slot, padded to it."""
        rows = len(pieces)
        token_ids = np.zeros((rows, length), np.int32)
        vision_index = np.full((rows, length), -1, np.int32)
        position_ids = np.zeros((rows, 3, length), np.int32)
        counts = np.zeros(rows, np.int32)
        for row, piece in enumerate(pieces):
            counts[row] = n = len(piece[0])
            token_ids[row, :n], vision_index[row, :n], position_ids[row, :, :n] = piece
        return sampler.extend(view, state, features, token_ids, vision_index, position_ids, counts)

    def _encode_images(
        self, view: RolloutView, episodes: Sequence[Episode], read: np.ndarray
    ) -> tuple[jax.Array, list[np.ndarray]]:
        """Encodes every image that pending tokens stand for, each once.

        Returns:
          The buffer of features, and for each episode the row of the buffer that each of its features is in (0 where
          no pending token needs it); the last entry serves text, whose index is -1.
        """
        processor, batch = self.processor, self.config.encode_batch
        wanted: dict[int, tuple[np.ndarray, tuple[int, int, int]]] = {}
        needs: list[list[tuple[int, int]]] = []  # of each episode: (id of patches, tokens) of its images in order
        for slot, episode in enumerate(episodes):
            pending = {i for i in episode.vision_index[read[slot] :] if i >= 0} if not episode.finished else set()
            needs.append([])
            first = 0
            for image, patches in zip(episode.images, episode.patches, strict=True):
                if first in pending:
                    wanted[id(patches)] = (patches, image.grid_thw)
                count = processor.tokens(image.grid_thw)
                needs[-1].append((id(patches), count))
                first += count

        buffer = self._feature_buffer(view)
        rows: dict[int, np.ndarray] = {}
        offset = 0
        for size_class in processor.size_classes:
            ours = [key for key, (_, grid) in wanted.items() if processor.size_class(grid) == size_class]
            for start in range(0, len(ours), batch):
                keys = ours[start : start + batch]
                pixels = np.zeros((batch, size_class.slots, processor.patch_width), np.float32)
                positions = np.full((batch, size_class.windows, size_class.window_patches, 2), -1, np.int32)
                for i, key in enumerate(keys):
                    pixels[i], positions[i], slots = processor.arrange(*wanted[key], size_class)
                    rows[key] = offset + i * processor.features(size_class) + slots
                buffer = sampler.encode(view, buffer, pixels, positions, np.int32(offset))
                offset += len(keys) * processor.features(size_class)
        text = np.array([-1])
        places = [np.concatenate([*(rows.get(key, np.zeros(count, int)) for key, count in need), text]) for need in needs]
        return buffer, places

    def _feature_buffer(self, view: RolloutView) -> jax.Array:
        largest = max(self.processor.features(size_class) for size_class in self.processor.size_classes)
        return sampler.feature_buffer(view, rows=feature_rows(self.config, self.limits, largest))

    def _sampling(self, episodes: Sequence[Episode], sampling: Sampling) -> SamplingState:
        slots = self.config.slots
        samples, members = np.zeros(slots, np.uint32), np.zeros(slots, np.uint32)
        for slot, episode in enumerate(episodes):
            samples[slot] = zlib.crc32(episode.sample.sample_id.encode())
            members[slot] = episode.member
        return SamplingState(
            temperature=jax.device_put(np.full(slots, sampling.temperature, np.float32)),
            top_p=jax.device_put(np.full(slots, sampling.top_p, np.float32)),
            keys=sampler.slot_keys(np.uint32(sampling.seed), samples, members),
            stop_ids=self._stop_ids,
            banned=self.banned,
        )
