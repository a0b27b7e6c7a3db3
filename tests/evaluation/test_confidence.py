"""The probability of an answer: of its own tokens, wherever a tokenizer cuts."""

import dataclasses
import math

import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.evaluation.confidence import answer_probability, locate_answer

PROCESSOR = tiny.processor(12)
CHAT = PROCESSOR.chat


def played(text: str, protocol: str = "vitar") -> Trajectory:
    """An episode whose one turn is this text, with log-probabilities that all differ."""
    sample = Sample("s", "Which?", (noise(84, 84),), "A")
    episode = Episode(sample, PROTOCOLS[protocol], PROCESSOR, Limits(tokens=900, turn_tokens=400))
    token_ids = [*CHAT.text(text), CHAT.im_end]
    episode.add_turn(token_ids, (-np.arange(1, len(token_ids) + 1) / 100).tolist())
    return episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="")


@pytest.mark.parametrize("answer", ["A", "left upper lobe", "the", "naïve 病灶 🫁", "thought"])
@pytest.mark.parametrize("protocol", ["vitar", "plain"])
def test_the_fewest_tokens_that_hold_the_answer(answer, protocol):
    text = f'{{"thought": "A the {answer}", "actions": [{{"name": "Terminate", "arguments": {{"answer": "{answer}"}}}}]}}'
    trajectory = locate_answer(played(text if protocol == "vitar" else answer, protocol), CHAT.decode)
    assert trajectory.predicted_answer == answer
    start, end = trajectory.turns[-1].answer_tokens
    assert answer in CHAT.decode(trajectory.token_ids[start:end])
    assert answer not in CHAT.decode(trajectory.token_ids[start + 1 : end])
    assert answer not in CHAT.decode(trajectory.token_ids[start : end - 1])
    assert answer not in CHAT.decode(trajectory.token_ids[end:])  # it is the last of them
    assert answer_probability(trajectory) == pytest.approx(math.exp(np.mean(trajectory.logprobs[start:end])))


def test_without_an_answer_or_its_log_probabilities_there_is_none(tmp_path):
    for text in ("no JSON", write_turn("I look", "mark", box=[[1, 2, 30, 40]]), write_turn("so", "Terminate", answer='"A"')):
        trajectory = played(text)
        assert locate_answer(trajectory, CHAT.decode) == trajectory
        assert answer_probability(trajectory) is None
    located = locate_answer(played(write_turn("so", "Terminate", answer="A")), CHAT.decode)
    assert answer_probability(dataclasses.replace(located, logprobs=(None,) * len(located.logprobs))) is None
    # It survives files.
    TrajectoryWriter(tmp_path).write([located])
    (again,) = read_trajectories(tmp_path)
    assert again.turns == located.turns and answer_probability(again) == answer_probability(located)
