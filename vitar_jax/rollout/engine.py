"""The host side of rollout: plays a stream of episodes on a fixed number of slots, while their tools run beside it."""

import dataclasses
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np

from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.errors import ConfigError
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout import sampler
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.prefill import Reader, Reading
from vitar_jax.rollout.sampler import slot_shards
from vitar_jax.rollout.sampling import STOP_IDS, SamplingState, sampling_arrays
from vitar_jax.rollout.stats import Meter
from vitar_jax.rollout.weights import RolloutView


class Engine:
    """Plays episodes with the weights it is given; holds no weights of its own.

    Args:
      limits: the same limits that the episodes were made with; `limits.tokens` is the cache's capacity.
      banned: bool [V], ids that are never drawn.

    Attributes:
      pool: what an episode does by itself, beginning or acting on a turn, runs here. Its results never depend on how
        many threads there are, or on which is first.
      meter: what was played, and where the time went.
    """

    def __init__(self, config: RolloutConfig, processor: Processor, limits: Limits, banned: np.ndarray):
        self.config = config
        self.limits = limits
        self.banned = jnp.asarray(banned)
        self.pool = ThreadPoolExecutor(config.workers)
        self.meter = Meter()
        self.reader = Reader(config, processor, limits, self.meter)

    def play(self, view: RolloutView, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        """Plays episodes to their end, in place, and yields each when it has ended.

        Args:
          groups: any number; taken one by one as slots become free. The episodes of a group share their prompt, which those
            that begin together read once. An episode alone may come with turns already written and goes on from there.
        """
        return _Play(self, view, groups).run()

    def warm_up(self, view: RolloutView, group_sizes: Sequence[int] = (1,)) -> None:
        """Compiles every program that any episode can need."""
        play = _Play(self, view, ())
        for _ in range(2):  # the second time each program sees the others' output as its input
            for width in {1, *group_sizes}:
                play.state = self.reader.warm_up(view, play.state, width)
            play.decode(np.ones(self.config.slots, np.int32))


@dataclasses.dataclass
class _Seat:
    """An episode in a slot.

    Attributes:
      group: the episodes that share its prompt.
      read: how many of its tokens are in the slot's cache.
      tokens, logprobs: of the turn that is being written.
      acting: its turn's end, while that goes on.
    """

    episode: Episode
    group: Sequence[Episode]
    read: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    acting: Future[None] | None = None

    @property
    def plays(self) -> bool:
        """Whether it reads and writes, rather than acting or having ended. While it acts, its episode is not looked at."""
        return self.acting is None and not self.episode.finished

    @property
    def budget(self) -> int:
        """Tokens that the turn may still have."""
        return self.episode.turn_budget - len(self.tokens)


class _Play:
    """One stream of episodes.

    At each look of the host, turns that had ended at the look before (without `overlap`: at this one) have been acted on: their
    episodes end and leave their slots to others, or have an observation to be read. Then every slot that can writes on, while
    the turns that ended last are acted on. What happens when depends on tokens alone, never on the clock.
    """

    def __init__(self, engine: Engine, view: RolloutView, groups: Iterable[Sequence[Episode]]):
        self.engine, self.view, self.groups = engine, view, iter(groups)
        slots = engine.config.slots
        self.shard_slots = slots // slot_shards(slots, view.mesh)
        self.seats: list[_Seat | None] = [None] * slots
        self.group: Sequence[Episode] = ()
        self.waiting: deque[Episode] = deque()  # those of this group that have no slot yet
        self.state = sampler.create_state(view, slots=slots, capacity=engine.limits.tokens)
        self.sampling = sampling_arrays(slots)

    def run(self) -> Iterator[Episode]:
        due: list[_Seat] = []  # whose turns have to be done with at this look
        while True:
            with self.engine.meter.time("tools"):
                for seat in due:
                    assert seat.acting is not None
                    seat.acting.result()
                    seat.acting = None
            yield from self._dismiss()
            self._fill()
            self._read()
            seats = [seat for seat in self.seats if seat is not None]
            if not seats:
                return
            due = [seat for seat in seats if seat.acting is not None]
            if any(seat.plays for seat in seats):
                self._write()
            if not self.engine.config.overlap:
                due = [seat for seat in seats if seat.acting is not None]

    def _dismiss(self) -> Iterator[Episode]:
        """Takes episodes that have ended from their slots."""
        for slot, seat in enumerate(self.seats):
            if seat is not None and seat.acting is None and seat.episode.finished:
                self.seats[slot] = None
                self.engine.meter.episodes += 1
                yield seat.episode

    def _fill(self) -> None:
        """Gives free slots to episodes that wait, those of a group on one data shard where there is room."""
        free = [slot for slot, seat in enumerate(self.seats) if seat is None]
        alone = len(free) == len(self.seats)
        while free and (self.waiting or self._next_group()):
            if 2 * len(free) < len(self.waiting) and not alone:
                return  # those that begin together read their prompt once, which is worth a wait
            room = Counter(map(self._shard, free))
            free.sort(key=lambda slot: (-room[self._shard(slot)], slot))
            while free and self.waiting:
                self._sit(free.pop(0), self.waiting.popleft())

    def _next_group(self) -> bool:
        self.group = next(self.groups, ())
        if len(self.group) > 1 and any(episode.turns for episode in self.group):
            raise ValueError("episodes of a group share their prompt alone, but turns are written already")
        self.waiting.extend(self.group)
        return bool(self.group)

    def _sit(self, slot: int, episode: Episode) -> None:
        self.seats[slot] = _Seat(episode, self.group)
        stop_ids = episode.stop_ids
        if len(stop_ids) > STOP_IDS:
            raise ConfigError(f"sampling: {len(stop_ids)} ids may end a turn, at most {STOP_IDS} can")
        values = {
            **{name: getattr(episode.sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")},
            "seeds": episode.sampling.seed,
            "samples": zlib.crc32(episode.sample.sample_id.encode()),
            "members": episode.member,
            "stop_ids": [*stop_ids, *[-1] * (STOP_IDS - len(stop_ids))],
        }
        for name, value in values.items():
            self.sampling[name][slot] = value

    def _read(self) -> None:
        """Reads the prompts of those that begin and what has been observed."""
        prompts: dict[tuple[int, int], Reading] = {}
        observations = []
        width = 1
        for slot, seat in enumerate(self.seats):
            if seat is None or not seat.plays or seat.read == len(seat.episode.token_ids):
                continue
            if seat.read:
                observations.append(Reading(seat.episode, seat.read, self._shard(slot), [slot]))
            else:
                shard = self._shard(slot)
                prompts.setdefault((id(seat.group), shard), Reading(seat.episode, 0, shard, [])).slots.append(slot)
                width = max(width, len(seat.group))
            seat.read = len(seat.episode.token_ids)
        reader = self.engine.reader
        self.state = reader.read(self.view, self.state, list(prompts.values()), width)
        self.state = reader.read(self.view, self.state, observations, 1)

    def _write(self) -> None:
        """Samples, and lets the turns that have ended be acted on."""
        budgets = np.array([seat.budget if seat is not None and seat.plays else 0 for seat in self.seats], np.int32)
        tokens, logprobs, counts = self.decode(budgets)
        self.engine.meter.sampled += int(counts.sum())
        self.engine.meter.slot_steps += len(counts) * int(counts.max())
        for slot in np.flatnonzero(counts):
            seat = self.seats[slot]
            assert seat is not None
            seat.tokens += tokens[slot, : counts[slot]].tolist()
            seat.logprobs += logprobs[slot, : counts[slot]].tolist()
            if seat.tokens[-1] in seat.episode.stop_ids or seat.budget == 0:
                seat.read += len(seat.tokens) - 1  # the last one has been drawn, but not read
                seat.acting = self.engine.pool.submit(seat.episode.add_turn, seat.tokens, seat.logprobs)
                seat.tokens, seat.logprobs = [], []

    def decode(self, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One call of the device: tokens, their log-probabilities, and how many each slot drew."""
        config = self.engine.config
        # Copies: the device may look at them while they change here.
        sampling = SamplingState(**{k: v.copy() for k, v in self.sampling.items()}, banned=self.engine.banned)
        with self.engine.meter.time("decode"):
            self.state, *drawn = sampler.decode(
                self.view, self.state, sampling, budgets, np.int32(config.quorum), steps=config.chunk
            )
            tokens, logprobs, counts = (np.asarray(array) for array in drawn)
        return tokens, logprobs, counts

    def _shard(self, slot: int) -> int:
        return slot // self.shard_slots
