"""How probable a model found its own answer: which tokens of the last turn say it, and what the sampler thought of them."""

import dataclasses
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from vitar_jax.episodes.trajectory import Trajectory

NAME = "answer_probability/1"


def locate_answer(trajectory: Trajectory, decode: Callable[[Sequence[int]], str]) -> Trajectory:
    """The trajectory with `answer_tokens` of its last turn: the fewest whose text holds the answer where it stands last.

    As it was where it has no answer, or the text spells it otherwise (JSON may escape a sign).

    Args:
      decode: the text of tokens.
    """
    if not trajectory.turns or not trajectory.predicted_answer:
        return trajectory
    turn, answer = trajectory.turns[-1], trajectory.predicted_answer
    place = turn.text.rfind(answer)
    if place < 0:
        return trajectory

    def text(count: int) -> str:
        """What the turn's first tokens say; a sign of which some bytes are missing is U+FFFD."""
        return decode(trajectory.token_ids[turn.start : turn.start + count])

    counts = range(turn.end - turn.start + 1)
    start = bisect_right(counts, place, key=lambda count: len(text(count))) - 1
    end = bisect_left(counts, place + len(answer), key=lambda count: len(text(count).rstrip("\ufffd")))
    located = dataclasses.replace(turn, answer_tokens=(turn.start + start, turn.start + end))
    return dataclasses.replace(trajectory, turns=(*trajectory.turns[:-1], located))


def answer_probability(trajectory: Trajectory) -> float | None:
    """exp of the mean log-probability of the tokens that say the answer: for an option's letter its probability, given what was
    thought and seen before; for longer answers their probability by length (Malinin and Gales, 2021).

    None where the answer's tokens are not known, or were not sampled by us.
    """
    span = trajectory.turns[-1].answer_tokens if trajectory.turns else None
    logprobs = [logprob for logprob in trajectory.logprobs[slice(*span)] if logprob is not None] if span else []
    if span is None or not logprobs or len(logprobs) < span[1] - span[0]:
        return None
    return math.exp(math.fsum(logprobs) / len(logprobs))
