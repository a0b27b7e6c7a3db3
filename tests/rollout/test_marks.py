"""States at a marked token: those of a teacher-forced pass, kept while tokens are drawn, and nothing else changes."""

import jax
import numpy as np
import pytest

from tests.kit import tiny
from vitar_jax.rollout import sampler
from vitar_jax.rollout.sampler import DecodeState
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.weights import rollout_weights

SLOTS, CAPACITY, KEPT, CHUNK = 3, 48, 5, 8
MARKED, STOP = 17, 43  # only the first slot stops
LENGTHS = [7, 4, 6]
ALLOWED = [MARKED, 40, 41, 42, STOP]


def prompt() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "features": np.zeros((8, 64), np.float32),
        "slots": np.arange(SLOTS, dtype=np.int32)[:, None],
        "starts": np.zeros(SLOTS, np.int32),
        "token_ids": rng.integers(40, 200, (SLOTS, 8)).astype(np.int32),
        "vision_index": np.full((SLOTS, 8), -1, np.int32),
        "position_ids": np.tile(np.arange(8, dtype=np.int32), (SLOTS, 3, 1)),
        "counts": np.array(LENGTHS, np.int32),
    }


def play(budget: int, *, marked: bool = True) -> tuple[DecodeState, list[list[int]]]:
    """Prefills the prompts and draws a turn in each slot, in chunks."""
    weights = rollout_weights(tiny.pretrained()[1])
    marks = {"marked": MARKED, "marks": KEPT} if marked else {}
    state = sampler.prefill(weights, sampler.create_state(weights, SLOTS, CAPACITY, **marks), **prompt())
    arrays = sampling_arrays(SLOTS)
    arrays["samples"][:], arrays["temperature"][:], arrays["stop_ids"][0, 0] = np.arange(SLOTS), 5.0, STOP
    sampling = SamplingState(**arrays, banned=~np.isin(np.arange(tiny.VOCAB), ALLOWED))
    turns: list[list[int]] = [[] for _ in range(SLOTS)]
    for _ in range(-(-budget // CHUNK)):
        left = np.array([budget - len(turn) for turn in turns], np.int32)
        left[0] *= STOP not in turns[0]
        state, tokens, _, counts = sampler.decode(weights, state, sampling, left, np.int32(SLOTS), steps=CHUNK)
        for turn, new, count in zip(turns, np.asarray(tokens), np.asarray(counts), strict=True):
            turn += new[:count].tolist()
    return state, turns


def teacher_forced(token_ids: list[int]) -> np.ndarray:
    """The last hidden states of a text, after the last norm [S, D]."""
    model = tiny.pretrained()[1]
    ids = np.array([token_ids], np.int32)
    positions = np.tile(np.arange(ids.size, dtype=np.int32), (1, 3, 1))
    return np.asarray(model.model(model.embed(ids), positions, np.ones_like(ids), []))[0]


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.slow
def test_states_are_those_of_a_teacher_forced_pass() -> None:
    state, turns = play(24)
    marks, read = state.marks, prompt()["token_ids"]
    assert marks is not None
    most = 0
    for slot, (turn, length) in enumerate(zip(turns, LENGTHS, strict=True)):
        places = [place for place, token in enumerate(turn[:-1]) if token == MARKED]  # the last token is not read
        most = max(most, len(places))
        assert marks.counts[slot] == len(places)
        hidden = teacher_forced([*read[slot, :length].tolist(), *turn])
        for kept, place in zip(np.asarray(marks.states[slot]), places, strict=False):
            np.testing.assert_allclose(kept, hidden[length + place], rtol=1e-4, atol=1e-4)
    assert most > KEPT and turns[0][-1] == STOP and [len(turn) for turn in turns[1:]] == [24, 24]


@pytest.mark.slow
def test_marks_change_no_token_and_a_prefill_clears_them() -> None:
    (state, turns), (plain, same) = play(24), play(24, marked=False)
    assert turns == same and plain.marks is None
    for name in ("cache", "logits", "next_position"):
        leaves = (jax.tree.leaves(getattr(one, name)) for one in (state, plain))
        assert all(map(np.array_equal, *leaves))
    weights = rollout_weights(tiny.pretrained()[1])
    assert state.marks is not None
    counts = np.asarray(state.marks.counts)
    assert counts[1:].all()
    one = prompt() | {"slots": np.array([[1], [SLOTS], [SLOTS]], np.int32)}  # the other rows have no slot
    after = sampler.prefill(weights, state, **one)
    assert after.marks is not None
    assert np.asarray(after.marks.counts).tolist() == [counts[0], 0, counts[2]]
