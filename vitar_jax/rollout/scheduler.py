"""Continuous batching: assigns episodes to slots, and decides what the device runs next."""

import concurrent.futures
import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trace_parser import SEG
from vitar_jax.errors import ConfigError
from vitar_jax.rollout import sampler, speculation
from vitar_jax.rollout.drafts import SlotTexts
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.masks import EndedTurn, MadeMasks, Masker
from vitar_jax.rollout.prefill import PrefillRequest
from vitar_jax.rollout.sampler import Marks, slot_shards
from vitar_jax.rollout.sampling import STOP_IDS, SamplingState, sampling_arrays
from vitar_jax.rollout.weights import RolloutWeights


@dataclasses.dataclass
class Slot:
    """An episode in a row of the KV cache.

    Attributes:
      group: Episodes that share its prompt.
      prefilled: Number of its tokens that are in the cache.
      tokens, logprobs: Tokens so far of the turn in progress, and their log-probabilities.
      acting: The pending action of its last turn. While it runs, nothing else may access the episode.
    """

    episode: Episode
    group: Sequence[Episode]
    prefilled: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    acting: Future[None] | None = None

    @property
    def active(self) -> bool:
        """Whether the slot prefills and decodes: its episode has no pending action and has not finished."""
        return self.acting is None and not self.episode.finished

    @property
    def budget(self) -> int:
        """Number of tokens that the turn may still sample."""
        return self.episode.turn_budget - len(self.tokens)


class Scheduler:
    """The scheduler of one set of weights. It plays episodes on the slots of an engine and has its own KV cache.

    Each step: (1) admits waiting episodes to free slots; (2) prefills prompts and observations; (3) decodes one chunk in all
    active slots, while tools run; (4) waits for the tools of turns that ended in the previous step (without
    `RolloutConfig.overlap`: also in this one); (5) evicts finished episodes. The schedule depends only on tokens, never on the
    clock. The cache stays allocated as long as the scheduler exists, also while it is idle.

    If the model makes masks and turns may contain `[SEG]`, step (3) also makes the masks of turns that ended, before anything
    overwrites their states.

    A scheduler is not thread-safe: the handlers of a server pass their requests to the thread that calls `step`.
    """

    def __init__(self, engine: Engine, weights: RolloutWeights):
        self.engine, self.weights = engine, weights
        slots = engine.config.slots
        chat, marks = engine.processor.chat, {}
        self._masker: Masker | None = None
        if weights.masks is not None and chat.allows([SEG]):
            self._masker = Masker(engine.config, weights, engine.pool, engine.stats)
            self._seg, marks = chat.token_id(SEG), {"marked": chat.token_id(SEG), "marks": engine.config.turn_masks}
        self.state = sampler.create_state(weights, slots=slots, capacity=engine.limits.tokens, **marks)
        self._shard_slots = slots // slot_shards(slots, weights.mesh)
        self._slots: list[Slot | None] = [None] * slots
        self._waiting: deque[tuple[Sequence[Episode], deque[Episode]]] = deque()  # groups, and their members without a slot
        self._sampling = sampling_arrays(slots)
        self._texts: SlotTexts | None = None
        if engine.config.draft_tokens:
            self._texts = SlotTexts(engine.written, slots, engine.limits.tokens)

    def submit(self, group: Sequence[Episode]) -> None:
        """Queues the episodes of a group, whose prompt is prefilled once for all members that are admitted together.

        A group of one episode may already have turns; it continues after them.

        Raises:
          ValueError: If episodes of a larger group have turns.
          ConfigError: If an episode has too many stop ids.
        """
        if len(group) > 1 and any(episode.turns for episode in group):
            raise ValueError("submit: got a group whose episodes have turns; expected only prompts, which the group shares")
        for episode in group:
            if len(episode.stop_ids) > STOP_IDS:
                raise ConfigError(f"sampling: got {len(episode.stop_ids)} stop ids, expected at most {STOP_IDS}")
        if group:
            self._waiting.append((group, deque(group)))

    def cancel(self, episode: Episode) -> None:
        """Evicts an episode, or removes it from the queue. Drops the turn in progress, but waits for a running tool."""
        waiting = [(group, deque(one for one in members if one is not episode)) for group, members in self._waiting]
        self._waiting = deque((group, members) for group, members in waiting if members)
        for index, slot in enumerate(self._slots):
            if slot is not None and slot.episode is episode:
                if slot.acting is not None:
                    concurrent.futures.wait([slot.acting])
                self._slots[index] = None
        self._keep_maps()

    def written(self, episode: Episode) -> tuple[list[int], list[float]]:
        """Returns the tokens so far of an episode's turn in progress, and their log-probabilities.

        If there are any, no action of the episode is pending, so that its finished turns may be read.
        """
        found = ((list(slot.tokens), list(slot.logprobs)) for slot in self._occupied if slot.episode is episode)
        return next(found, ([], []))

    @property
    def room(self) -> int:
        """Number of free slots that no waiting episode will take."""
        return self._slots.count(None) - sum(len(members) for _, members in self._waiting)

    @property
    def idle(self) -> bool:
        """Whether no episode is playing or waiting."""
        return not self._waiting and not self._occupied

    def step(self) -> list[Episode]:
        """Advances all episodes by one chunk, in place, and returns the finished ones."""
        with self.engine.precision():
            self._admit()
            self._prefill()
            due = [slot for slot in self._occupied if slot.acting is not None]
            if any(slot.active for slot in self._occupied):
                self._decode()
        if not self.engine.config.overlap:
            due = [slot for slot in self._occupied if slot.acting is not None]
        with self.engine.stats.time("tools"):
            for slot in due:
                assert slot.acting is not None
                slot.acting.result()
                slot.acting = None
        return self._evict()

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        """Plays groups to their end and yields each episode when it finishes. Takes the next group when a slot is free.

        An empty group means that no work is available yet: running episodes continue, and the next group is taken after the
        next step.

        Raises:
          RuntimeError: If other episodes are playing.
        """
        if not self.idle:
            raise RuntimeError("play: the scheduler is already playing other episodes")
        groups, more = iter(groups), True
        try:
            while more or not self.idle:
                while more and self.room > 0:
                    group = next(groups, None)
                    more = group is not None
                    if not group:
                        break
                    self.submit(group)
                yield from self.step()
        finally:  # after an exception, or if the caller stops early
            self._waiting.clear()
            for slot in self._occupied:
                self.cancel(slot.episode)

    def warm_up(self, group_sizes: Sequence[int] = (1,)) -> None:
        """Compiles every program that an episode can need."""
        with self.engine.precision():
            for _ in range(2):  # the second time each program sees the others' output as its input
                for width in {1, *group_sizes}:
                    self.state = self.engine.prefiller.warm_up(self.weights, self.state, width)
                for reach in (None, *(n for n in self.engine.config.decode_lengths if n < self.engine.limits.tokens)):
                    self._decode_chunk(np.ones(self.engine.config.slots, np.int32), reach)
                if self._masker is not None:
                    self._masker.warm_up(self._marks)

    @property
    def _occupied(self) -> list[Slot]:
        return [slot for slot in self._slots if slot is not None]

    def _admit(self) -> None:
        """Admits waiting episodes to free slots. Prefers one data shard for the members of a group."""
        free = [index for index, slot in enumerate(self._slots) if slot is None]
        empty = len(free) == len(self._slots)
        while free and self._waiting:
            group, members = self._waiting[0]
            if 2 * len(free) < len(members) and not empty:
                return  # waits, because members admitted together share one prefill
            room = Counter(map(self._shard, free))
            free.sort(key=lambda index: (-room[self._shard(index)], index))
            while free and members:
                self._admit_to(free.pop(0), members.popleft(), group)
            if not members:
                self._waiting.popleft()

    def _admit_to(self, index: int, episode: Episode, group: Sequence[Episode]) -> None:
        self._slots[index] = Slot(episode, group)
        if self._texts is not None:
            self._texts.begin(index)
        if self._masker is not None and episode.protocol.makes_masks and episode.images:
            self._masker.admit(episode)
        values = {
            **{name: getattr(episode.sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")},
            "seeds": episode.sampling.seed,
            "samples": episode.draw_key,
            "members": episode.member,
            "stop_ids": [*episode.stop_ids, *[-1] * (STOP_IDS - len(episode.stop_ids))],
        }
        for name, value in values.items():
            self._sampling[name][index] = value

    def _prefill(self) -> None:
        """Prefills the prompts of admitted episodes and the observations of running ones."""
        prompts: dict[tuple[int, int], PrefillRequest] = {}
        observations = []
        width = 1
        for index, slot in enumerate(self._slots):
            if slot is None or not slot.active or slot.prefilled == len(slot.episode.token_ids):
                continue
            shard = self._shard(index)
            if slot.prefilled:
                observations.append(PrefillRequest(slot.episode, slot.prefilled, shard, [index]))
            else:
                prompts.setdefault((id(slot.group), shard), PrefillRequest(slot.episode, 0, shard, [])).slots.append(index)
                width = max(width, len(slot.group))
            slot.prefilled = len(slot.episode.token_ids)
            if self._texts is not None:
                self._texts.refer(index, slot.episode)
        prefiller = self.engine.prefiller
        self.state = prefiller.prefill(self.weights, self.state, list(prompts.values()), width)
        self.state = prefiller.prefill(self.weights, self.state, observations, 1)

    def _decode(self) -> None:
        """Decodes one chunk and starts the actions of the turns that ended."""
        budgets = np.array([slot.budget if slot is not None and slot.active else 0 for slot in self._slots], np.int32)
        config, new = self.engine.config, np.minimum(budgets, self.engine.config.chunk_tokens)
        ends = [slot.prefilled + len(slot.tokens) + int(n) for slot, n in zip(self._slots, new, strict=True) if slot and n]
        reach = config.reach(max(ends, default=0), self.engine.limits.tokens)
        if self._texts is not None:
            for index in np.flatnonzero(budgets):
                slot = self._slots[index]
                assert slot is not None
                self._texts.follow(int(index), slot.episode, slot.tokens)
        tokens, logprobs, counts, passes = self._decode_chunk(budgets, reach)
        self.engine.stats.decoded(counts, passes)
        ended: dict[int, Slot] = {}
        for index in np.flatnonzero(counts):
            slot = self._slots[index]
            assert slot is not None
            slot.tokens += tokens[index, : counts[index]].tolist()
            slot.logprobs += logprobs[index, : counts[index]].tolist()
            if slot.tokens[-1] in slot.episode.stop_ids or slot.budget == 0:
                ended[int(index)] = slot
        masks = self._masks(ended)
        for index, slot in ended.items():
            slot.prefilled += len(slot.tokens) - 1  # the last token is sampled, but not in the cache
            slot.acting = self.engine.pool.submit(_add_turn, slot.episode, slot.tokens, slot.logprobs, masks.get(index))
            slot.tokens, slot.logprobs = [], []

    def _masks(self, ended: Mapping[int, Slot]) -> dict[int, Callable[[], MadeMasks]]:
        """Starts to make the masks of turns that ended. Returns a function for each slot with masks, which waits for them."""
        if self._masker is None:
            return {}
        turns = []
        for index, slot in ended.items():
            if not slot.episode.protocol.makes_masks:
                continue
            # The last token is not read, so it has no state.
            read = slot.tokens[:-1].count(self._seg) if slot.episode.images else 0
            count = min(read, self.engine.config.turn_masks)
            self.engine.stats.masks += count
            self.engine.stats.masks_missing += slot.tokens.count(self._seg) - count
            if count:
                turns.append(EndedTurn(index, slot.episode, count))
        return dict(zip([turn.slot for turn in turns], self._masker.make(self._marks, turns), strict=True))

    @property
    def _marks(self) -> Marks:
        assert self.state.marks is not None
        return self.state.marks

    def _keep_maps(self) -> None:
        """Releases encoded images that no episode needs any longer."""
        if self._masker is not None:
            waiting = (episode for _, members in self._waiting for episode in members)
            self._masker.keep((*waiting, *(slot.episode for slot in self._occupied)))

    def _decode_chunk(self, budgets: np.ndarray, reach: int | None) -> tuple[np.ndarray, ...]:
        """Calls the device once.

        Returns:
          Tokens, their log-probabilities, and the numbers of tokens that each slot sampled and of steps that it took for them.
        """
        config = self.engine.config
        # Copies, because the device may read the arrays while the host changes them.
        sampling = SamplingState(**{k: v.copy() for k, v in self._sampling.items()}, banned=self.engine.banned)
        arguments = (self.weights, self.state, sampling, budgets, np.int32(config.quorum))
        sizes: dict[str, Any] = {"steps": config.chunk, "reach": reach}
        with self.engine.stats.time("decode"):
            if self._texts is None:
                self.state, *sampled = sampler.decode(*arguments, **sizes)
                sampled.append(sampled[-1])  # a token per step
            else:
                texts, drafted = self._texts.texts(), config.draft_tokens
                self.state, *sampled = speculation.decode_drafted(*arguments, texts, drafted=drafted, **sizes)
            return tuple(np.asarray(array) for array in sampled)

    def _evict(self) -> list[Episode]:
        """Evicts finished episodes from their slots and returns them."""
        finished = []
        for index, slot in enumerate(self._slots):
            if slot is not None and slot.acting is None and slot.episode.finished:
                self._slots[index] = None
                self.engine.stats.episodes += 1
                if self._texts is not None:
                    self.engine.written.add(slot.episode)
                finished.append(slot.episode)
        if finished:
            self._keep_maps()
        return finished

    def _shard(self, index: int) -> int:
        return index // self._shard_slots


def _add_turn(
    episode: Episode, token_ids: Sequence[int], logprobs: Sequence[float], masks: Callable[[], MadeMasks] | None
) -> None:
    episode.add_turn(token_ids, logprobs, masks=() if masks is None else masks())
