"""Drafts of a turn's next tokens, looked up in text: the episode's own, its group's, and what was written before.

`look_up` finds the longest end of an episode's text that occurs earlier in its row of texts, and drafts what followed there. A
draft decides how many tokens a decode step samples, never which ones (`rollout/speculation.py`).
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vitar_jax.episodes.actions import Answer, ToolCall
from vitar_jax.episodes.episode import Episode
from vitar_jax.errors import ConfigError, DataError

MATCHED = 8  # maximum length of a match; with 12, the quickstart's drafts are no better
REFERENCE = 1024  # tokens of other episodes in each row: with half as many, the quickstart needs 6 % more decode steps
_EPISODES = 256  # number of finished episodes that are remembered
_END = -1  # separates texts, and never matches


@partial(jax.tree_util.register_dataclass, data_fields=["tokens", "ends"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Texts:
    """A row of text per slot, without the tokens of images: other episodes, then the episode itself.

    Attributes:
      tokens: -1 separates the episodes of a row.
      ends: Number of tokens of each row. Later ones are never read.
    """

    tokens: Int[Array, "B C"]
    ends: Int[Array, " B"]

    def appended(self, new: Int[Array, "B T"], counts: Int[Array, " B"]) -> "Texts":
        """Returns the texts with the first `counts` new tokens of each row. Drops tokens for which a row has no room."""
        rows, capacity = self.tokens.shape
        offsets = jnp.arange(new.shape[1])[None]
        places = jnp.where(offsets < counts[:, None], self.ends[:, None] + offsets, capacity)
        tokens = self.tokens.at[jnp.arange(rows)[:, None], places].set(new, mode="drop")
        return Texts(tokens, jnp.minimum(self.ends + counts, capacity))


def look_up(texts: Texts, count: int) -> tuple[Int[Array, "B count"], Int[Array, " B"]]:
    """Returns a draft of the next `count` tokens of each row, and the number of them that are a draft at all.

    The longest match of a row's end wins, up to `MATCHED` tokens, and the last of equally long ones:

        a b c d -1 x b c e b c  ->  e b c    (`b c` also occurs before `d`, but earlier)
    """
    tokens, ends = texts.tokens, texts.ends
    capacity = tokens.shape[1]
    places = jnp.arange(capacity)
    equal, lengths = (places < ends[:, None] - 1), jnp.zeros(tokens.shape, jnp.int32)
    for back in range(MATCHED):
        place = ends[:, None] - 1 - back
        wanted = jnp.where(place >= 0, jnp.take_along_axis(tokens, jnp.maximum(place, 0), axis=1), _END)
        shifted = jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=_END)[:, :capacity]
        equal &= (shifted == wanted) & (wanted != _END)
        lengths += equal
    best = jnp.where(lengths > 0, lengths * capacity + places, -1).max(axis=1)
    follow = (best % capacity)[:, None] + 1 + jnp.arange(count)
    drafts = jnp.take_along_axis(tokens, jnp.minimum(follow, capacity - 1), axis=1)
    known = (best >= 0)[:, None] & (follow < ends[:, None]) & (drafts != _END)
    return drafts, jnp.cumprod(known, axis=1).sum(axis=1)


class WrittenTexts:
    """The texts of the episodes that an engine finished last, and of turns as the writers of their protocols write them."""

    def __init__(self) -> None:
        self._texts: deque[tuple[str, np.ndarray]] = deque(maxlen=_EPISODES)  # group, tokens
        self._protocols: set[str] = set()

    def add(self, episode: Episode) -> None:
        """Adds the text of a finished episode: its turns, what stands between them, and a little of the prompt."""
        if episode.turns:
            start = max(0, episode.turns[0].start - MATCHED)
            self._texts.append((episode.group_id, np.array([*_text(episode, start), _END], np.int32)))

    def around(self, episode: Episode) -> np.ndarray:
        """Returns the last `REFERENCE` tokens that others wrote. The episode's own group comes last, so that it wins."""
        if episode.protocol.name not in self._protocols:
            self._protocols.add(episode.protocol.name)
            self._texts.extend(("", turn) for turn in _written_turns(episode))
        row, start = np.full(REFERENCE, _END, np.int32), REFERENCE
        for _, text in sorted(reversed(self._texts), key=lambda one: one[0] != episode.group_id):
            if start == 0:
                break
            end, start = start, max(0, start - len(text))
            row[start:end] = text[start - end :]
        return row


class SlotTexts:
    """The texts of a scheduler's slots, which follow their episodes."""

    def __init__(self, written: WrittenTexts, slots: int, capacity: int):
        self._written = written
        self._tokens = np.full((slots, REFERENCE + capacity), _END, np.int32)
        self._ends = np.full(slots, REFERENCE, np.int32)
        self._read = np.zeros(slots, np.int64)  # number of the episode's tokens that are in its row, or are an image's

    def begin(self, index: int) -> None:
        """Empties a slot for another episode."""
        self._ends[index], self._read[index] = REFERENCE, 0

    def refer(self, index: int, episode: Episode) -> None:
        """Renews what the row of a slot holds of other episodes."""
        self._tokens[index, :REFERENCE] = self._written.around(episode)

    def follow(self, index: int, episode: Episode, turn: Sequence[int]) -> None:
        """Appends the new tokens of a slot's episode, and of its turn in progress."""
        done, read = len(episode.token_ids), int(self._read[index])
        new = [*_text(episode, read), *turn[max(0, read - done) :]]
        end = self._ends[index] + len(new)
        self._tokens[index, self._ends[index] : end] = new
        self._ends[index], self._read[index] = end, done + len(turn)

    def texts(self) -> Texts:
        """Returns the rows. Copies, because the device may read them while the host changes them."""
        copies: Any = self._tokens.copy(), self._ends.copy()
        return Texts(*copies)


def _text(episode: Episode, start: int) -> list[int]:
    """Returns the tokens of an episode from `start` on, without those of images."""
    pairs = zip(episode.token_ids[start:], episode.vision_index[start:], strict=True)
    return [token for token, vision in pairs if vision < 0]


def _written_turns(episode: Episode) -> Iterator[np.ndarray]:
    """Yields an answer, and a call of each tool, as the protocol's writer writes them, if it has one that can."""
    protocol, chat = episode.protocol, episode.processor.chat
    for outcome in (Answer("A"), *(ToolCall(name, ((0.0, 0.0, 1.0, 1.0),)) for name in protocol.toolbox)):
        try:
            turn = chat.turn(protocol.write("Look.", outcome), protocol.allowed_tokens)
        except (ConfigError, DataError):
            continue
        yield np.array([*turn, _END], np.int32)
