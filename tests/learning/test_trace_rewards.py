"""Rewards of VRT's traces: worked cases of what is right, and of what the published code gives."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitar_jax.episodes.trace_parser import parts
from vitar_jax.learning.trace_rewards import KEPT, answer_masks, answer_published, form, format_published

# turn, form, the published format, indices of the masks of the reasoning and of the answer
TURNS = [
    ("<think>a [SEG]</think><answer>b [SEG]</answer>", 1.0, 1.0, [0], [1]),
    ("<think>a</think>\n\n<answer>b [SEG]</answer>", 0.5, 0.5, [], [0]),
    ("<think>a [SEG]</think><answer>b</answer>", 0.0, 0.0, [0], []),
    ("so <think>a [SEG]</think><answer>b [SEG]</answer>", 0.0, 0.0, [0], [1]),
    ("<think>a [SEG]</think><answer>b [SEG]</answer> so", 1.0, 1.0, [0], [1]),
    ("<think>a [SEG]</think><answer>b [SEG]", 0.0, 0.0, [], []),
    ("<think>a</think> [SEG] </think><answer>b [SEG]</answer>", 0.0, 1.0, [0], [1]),
    ("<think>a [SEG]</think><answer>b [SEG]</answer><answer>c [SEG]</answer>", 0.0, 1.0, [0], [1]),
    ("<think>a</think><answer>b</answer> [SEG] <answer>c [SEG]</answer>", 0.0, 0.5, [], []),
    ("<think>a [SEG]</think><answer>b [SEG]</answer> [SEG]", 1.0, 1.0, [0], [1]),
    ("", 0.0, 0.0, [], []),
    ("[SEG]", 0.0, 0.0, [], []),
]


@pytest.mark.parametrize(("turn", "right", "published", "reasoning", "answer"), TURNS)
def test_forms(turn, right, published, reasoning, answer):
    where = parts(turn, [match.start() for match in re.finditer(r"\[SEG\]", turn)])
    assert [n for n, part in enumerate(where) if part == "reasoning"] == reasoning
    assert [n for n, part in enumerate(where) if part == "answer"] == answer
    assert (form(turn, where), format_published(turn)) == (right, published)


def test_text_that_spells_the_token_is_no_mask():
    assert form("<think>a [SEG]</think><answer>b [SEG]</answer>", []) == 0.0


# IoUs by predicted and gold mask, what is right, what the published code gives
PAIRS = [
    ([[0.8]], 0.8, 0.8),
    ([[0.5]], 0.0, 0.0),
    ([[0.1], [0.9], [0.2]], 0.7, 0.0),
    ([[0.1, 0.2, 0.7]], 0.5, 0.0),
    ([[0.1, 0.8], [0.9, 0.1]], 0.85, 0.85),
    ([[0.9, 0.8], [0.85, 0.1]], 0.825, 0.825),
    ([[0.9, 0.1], [0.2, 0.6], [0.7, 0.65]], 0.675, 0.675),
    ([[0.9, 0.1], [0.1, 0.2]], 0.7, 0.7),
    ([[0.9]] + [[0.0]] * 11, -0.2, -0.2),
    (np.zeros((0, 2)), 0.0, 0.0),
    (np.zeros((0, 1)), 0.0, 0.0),
    (np.zeros((2, 0)), 0.0, 0.0),
]


@pytest.mark.parametrize(("ious", "right", "published"), PAIRS)
def test_pairs(ious, right, published):
    assert answer_masks(np.array(ious)) == pytest.approx(right, abs=1e-12)
    assert answer_published(np.array(ious)) == pytest.approx(published, abs=1e-12)


def best(ious: np.ndarray) -> float:
    """The reward by trying every assignment, for the one with the largest sum of IoUs."""
    flipped = ious if ious.shape[0] <= ious.shape[1] else ious.T
    rows, columns = flipped.shape
    chosen = max(
        itertools.permutations(range(columns), rows), key=lambda places: sum(flipped[n, c] for n, c in enumerate(places))
    )
    kept = [flipped[n, c] for n, c in enumerate(chosen) if flipped[n, c] > KEPT]
    return sum(kept) / len(kept) - 0.1 * (rows + columns - 2 * len(kept)) if kept else 0.0


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_pairs_are_the_best_of_all(rows, columns, seed):
    ious = np.random.default_rng(seed).random((rows, columns))  # without ties
    assert answer_masks(ious) == pytest.approx(best(ious), abs=1e-9)
