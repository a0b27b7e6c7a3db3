"""The thread that owns the scheduler, whose slots the episodes of all requests share."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from absl import logging
from PIL import Image

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trajectory import Turn
from vitar_jax.rollout.scheduler import Scheduler


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of an episode since the last report.

    Attributes:
      text: New text of the turn in progress, up to where later tokens could still change it.
      token_ids, logprobs: Tokens of that turn, with the token that ended it.
      turn: The turn, if it has ended.
      image: The image that the turn's tool returned.
      finish_reason: "stop" or "length" if the episode has ended.
    """

    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    turn: Turn | None = None
    image: Image.Image | None = None
    finish_reason: str = ""


class TurnText:
    """The text of a growing turn, up to the first of the stop texts.

    Attributes:
      read: Number of tokens that the turn has so far; a stop text ends it.
      stopped: Whether a stop text has ended the turn.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]):
        self._decode, self._stop = decode, stop
        self._released = self.read = 0
        self.stopped = False

    def push(self, token_ids: Sequence[int], *, final: bool) -> str:
        """Takes all tokens so far and returns the new text.

        Holds back the end of the text while it may be part of a character, or the beginning of a stop text.
        """
        text = self._decode(token_ids)
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, end = True, min(found)
            longer = range(self.read + 1, len(token_ids) + 1)
            self.read = next(n for n in longer if any(stop in self._decode(token_ids[:n]) for stop in self._stop))
        else:
            self.read, end = len(token_ids), len(text)
            if not final:
                end = len(text.rstrip("\ufffd"))
                parts = (stop[:length] for stop in self._stop for length in range(1, len(stop)))
                end -= max((len(part) for part in parts if text[:end].endswith(part)), default=0)
        new = text[self._released : end]
        self._released = max(self._released, end)
        return new


Report = Callable[[Progress | BaseException], None]


class Seat:
    """An episode that a request waits for. Once it is submitted, only the engine's thread uses it.

    Args:
      stop: Texts that end the episode's only turn.
      report: The engine's thread calls it with each `Progress`, or with the exception that ended the engine.
    """

    def __init__(self, episode: Episode, stop: Sequence[str], report: Report):
        self.episode, self.report, self.ended = episode, report, False
        self._stop, self._turn = stop, 0
        self._text = TurnText(episode.processor.chat.decode, stop)

    def advance(self, written: Sequence[int], logprobs: Sequence[float], *, finished: bool) -> None:
        """Reports what is new, given the tokens of the turn in progress."""
        if not finished and not written:
            return  # it waits for a slot, or its tool runs
        turns, token_ids, all_logprobs = self.episode.turns, self.episode.token_ids, self.episode.logprobs
        for turn in turns[self._turn :]:
            span, last = slice(turn.start, turn.end), finished and turn is turns[-1]
            self._grow(token_ids[span], all_logprobs[span], turn, last=last)
            self._turn += 1
        if not finished and not self.ended:
            self._grow(written, logprobs)

    def _grow(
        self, token_ids: Sequence[int], logprobs: Sequence[float | None], turn: Turn | None = None, *, last: bool = False
    ) -> None:
        """Reports the new tokens of a turn, which has ended if `turn` is given."""
        ended = turn is not None and token_ids[-1] in self.episode.stop_ids
        before = self._text.read
        text = self._text.push(token_ids[:-1] if ended else token_ids, final=turn is not None)
        reason = "length" if self.episode.end_reason in ("too_long", "overflow") else "stop"
        if self._text.stopped:
            last, ended, reason = True, False, "stop"
        new = slice(before, self._text.read + ended)
        image = None if turn is None or turn.image is None else self.episode.images[turn.image].pixels
        self.ended = last
        if text or turn or token_ids[new]:
            probs = [0.0 if one is None else one for one in logprobs[new]]
            self.report(Progress(text, token_ids[new], probs, turn, image, reason if last else ""))
        if turn is not None:
            self._text = TurnText(self.episode.processor.chat.decode, self._stop)


class EngineThread(threading.Thread):
    """The thread that steps a scheduler. Other threads may call `submit`, `cancel` and `close`.

    Attributes:
      failure: The exception that ended the engine, or None.
      seats: Episodes in the engine.
    """

    def __init__(self, scheduler: Scheduler):
        super().__init__(name="engine", daemon=True)
        self.failure: BaseException | None = None
        self.seats: list[Seat] = []
        self._scheduler = scheduler
        self._inbox: SimpleQueue[tuple[Callable[[Seat], None], Seat] | None] = SimpleQueue()

    def submit(self, seat: Seat) -> None:
        self._inbox.put((self._admit, seat))

    def cancel(self, seat: Seat) -> None:
        """Evicts an episode, whether it waits, plays or has ended."""
        self._inbox.put((self._evict, seat))

    def close(self) -> None:
        """Ends the thread after the earlier calls, and drops episodes that still play."""
        self._inbox.put(None)
        self.join()

    def run(self) -> None:
        try:
            while self._receive():
                if self._scheduler.idle:
                    continue
                finished = {id(episode) for episode in self._scheduler.step()}
                for seat in list(self.seats):
                    written, logprobs = self._scheduler.written(seat.episode)
                    seat.advance(written, logprobs, finished=id(seat.episode) in finished)
                    if seat.ended:
                        self._evict(seat)
        except BaseException as error:
            logging.exception("the engine has failed")
            self.failure = error
        while self.failure:  # until the process ends
            for seat in self.seats:
                seat.report(self.failure)
            self.seats.clear()
            if (item := self._inbox.get()) is None:
                return
            self.seats.append(item[1])

    def _receive(self) -> bool:
        """Handles the calls of other threads; waits for one if no episode plays. Returns False once `close` was called."""
        while not self._inbox.empty() or self._scheduler.idle:
            if (item := self._inbox.get()) is None:
                return False
            call, seat = item
            call(seat)
        return True

    def _admit(self, seat: Seat) -> None:
        self.seats.append(seat)
        self._scheduler.submit([seat.episode])

    def _evict(self, seat: Seat) -> None:
        if seat in self.seats:
            self.seats.remove(seat)
            self._scheduler.cancel(seat.episode)
