"""The model's probability of its own answer, from the log-probabilities of the answer's tokens in the last turn."""

import dataclasses
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from vitar_jax.episodes.trajectory import Trajectory

NAME = "answer_probability/1"


def locate_answer(trajectory: Trajectory, decode: Callable[[Sequence[int]], str]) -> Trajectory:
    """Sets `answer_tokens` of the last turn: the shortest span of tokens that covers the answer's last occurrence in its text.

    Returns the trajectory unchanged if it has no answer or no tokens, or if the text spells the answer differently (JSON may
    escape a character).

    Args:
      decode: Function from token ids to text.
    """
    if not trajectory.turns or not trajectory.predicted_answer:
        return trajectory
    turn, answer = trajectory.turns[-1], trajectory.predicted_answer
    span = span_of(answer, turn.text, trajectory.token_ids[turn.start : turn.end], decode) if trajectory.token_ids else None
    if span is None:
        return trajectory
    located = dataclasses.replace(turn, answer_tokens=(turn.start + span[0], turn.start + span[1]))
    return dataclasses.replace(trajectory, turns=(*trajectory.turns[:-1], located))


def span_of(
    answer: str, text: str, token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[int, int] | None:
    """Returns the shortest span of a turn's tokens that covers the answer's last occurrence; None if it does not occur."""
    place = text.rfind(answer)
    if place < 0:
        return None

    def decoded(count: int) -> str:
        """Returns the text of the turn's first `count` tokens, where an incomplete character is U+FFFD."""
        return decode(token_ids[:count])

    counts = range(len(token_ids) + 1)
    start = bisect_right(counts, place, key=lambda count: len(decoded(count))) - 1
    end = bisect_left(counts, place + len(answer), key=lambda count: len(decoded(count).rstrip("\ufffd")))
    return start, end


def answer_probability(trajectory: Trajectory) -> float | None:
    """Returns exp of the mean log-probability of the answer's tokens, given all earlier tokens and images.

    This is the probability of an option's letter, and the length-normalised probability of a longer answer (Malinin and Gales,
    2021). None if the answer's tokens are unknown, or were not sampled by us.
    """
    span = trajectory.turns[-1].answer_tokens if trajectory.turns else None
    logprobs = [logprob for logprob in trajectory.logprobs[slice(*span)] if logprob is not None] if span else []
    if span is None or not logprobs or len(logprobs) < span[1] - span[0]:
        return None
    return math.exp(math.fsum(logprobs) / len(logprobs))
