"""The masks that demonstrations and answers train on, their part of a batch, and the rewards of an episode's masks."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import masked
from vitar_jax.data.pipeline import sft_batches
from vitar_jax.data.sources import SourceConfig
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Answer as LastTurn
from vitar_jax.episodes.sample import Demonstration, Sample, SegmentedObject
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import ConfigError, DataError, TooLongError
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_batches import grpo_batch
from vitar_jax.learning.rewards import RewardConfig, Rewards
from vitar_jax.learning.sft import SFT
from vitar_jax.learning.traced_masks import answered_masks, choose_masks, traced_masks
from vitar_jax.processing.mask_targets import MaskShape
from vitar_jax.processing.masks import ground_pixels
from vitar_jax.processing.packing import pack

SEG = masked.processor().chat.token_id("[SEG]")
OF_MASKS = MaskShape(masked.SIDE, images=8, entries=8, masks=3)


def nearest_of_torch(mask: Mask, side: int = masked.SIDE // 4) -> np.ndarray:
    array = torch.tensor(mask.array)[None, None].float()
    return torch.nn.functional.interpolate(array, size=(side, side), mode="nearest")[0, 0].numpy() > 0


def test_a_trace_teaches_the_mask_of_each_mention() -> None:
    one = masked.sample(3)
    episode = masked.shown(one)
    found = traced_masks(episode, np.random.default_rng(0), OF_MASKS)
    assert found is not None
    assert [episode.token_ids[place] for place in found.positions] == [SEG] * 3  # two in the reasoning, one in the answer
    chosen = next(other for other in one.objects if other.in_answer)
    for target, wanted in zip(found.targets, [*one.objects, chosen], strict=True):
        np.testing.assert_array_equal(target, nearest_of_torch(wanted.mask))
    np.testing.assert_array_equal(found.pixels, ground_pixels(episode.images[0].pixels, masked.SIDE))


def test_rows_choose_by_seed() -> None:
    episode = masked.shown(masked.sample(0))
    places = [mask.token for mask in episode.turns[0].masks]

    def chosen(seed: int, masks: int) -> list[int]:
        found = traced_masks(episode, np.random.default_rng(seed), dataclasses.replace(OF_MASKS, masks=masks))
        assert found is not None
        return found.positions.tolist()

    assert chosen(0, 5) == [*places, *places[:2]]  # repeated, as published
    assert chosen(1, 2) == chosen(1, 2)
    assert {tuple(chosen(seed, 2)) for seed in range(40)} == {(a, b) for a in places for b in places if a != b}


@settings(max_examples=20)
@given(st.integers(0, 12), st.integers(1, 6), st.integers(0, 100))
def test_rows_choose_their_masks(available: int, wanted: int, seed: int) -> None:
    chosen = choose_masks(available, wanted, np.random.default_rng(seed))
    np.testing.assert_array_equal(chosen, choose_masks(available, wanted, np.random.default_rng(seed)))
    if not available:
        assert not len(chosen)
        return
    assert len(chosen) == wanted and set(chosen) <= set(range(available))
    if available >= wanted:
        assert len(set(chosen)) == wanted
    else:
        tiled = torch.cat([torch.arange(available)] * (wanted // available + 1))[:wanted]
        np.testing.assert_array_equal(chosen, tiled)


def changed(**changes: Any) -> Sample:
    return dataclasses.replace(masked.sample(0), **changes)


def with_object(**changes: Any) -> Sample:
    one = masked.sample(0)
    return changed(objects=(dataclasses.replace(one.objects[0], **changes), *one.objects[1:]))


def test_a_token_without_an_object_is_named() -> None:
    episode = masked.shown(masked.sample(0))
    (turn,) = episode.turns
    episode.turns = [dataclasses.replace(turn, masks=(dataclasses.replace(turn.masks[0], name=None), *turn.masks[1:]))]
    with pytest.raises(DataError, match=r"^sample phantom-findings-train-0-0: its trace has a \[SEG\] without an object$"):
        traced_masks(episode, np.random.default_rng(0), OF_MASKS)


def with_trace(thought: str, answer: str) -> Sample:
    return changed(demonstration=Demonstration((), LastTurn(thought, answer)))


SMALL = Mask.of(np.ones((47, 48), bool), "original")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: changed(objects=masked.sample(0).objects[:1]), "its trace mentions <obj2>, which has no mask"),
        (lambda: with_object(name="obj7"), "its trace mentions <obj1>, which has no mask"),
        (
            lambda: with_trace("The <obj2>.", "The <obj2>."),
            "<obj1> has a mask, but its trace's reasoning does not mention it",
        ),
        (
            lambda: with_trace("The <obj1> and the <obj2>.", "Both."),
            "has a mask, but its trace's answer does not mention it",
        ),
        (lambda: with_object(mask=SMALL), "<obj1>: got run lengths of 48 x 47 pixels, expected the image's 48 x 48"),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[], Sample], message: str) -> None:
    with pytest.raises(DataError, match=f"^sample phantom-findings-train-0-0: .*{message}$"):
        traced_masks(masked.shown(make()), np.random.default_rng(0), OF_MASKS)


def test_run_lengths_that_do_not_fill_their_image_are_refused() -> None:
    with pytest.raises(ValueError, match="got runs of 9 pixels, expected shape"):
        Mask.from_coco({"size": [4, 4], "counts": [3, 6]})


def test_masks_take_one_example_per_row() -> None:
    with pytest.raises(ConfigError, match=r"^objective\.pack: masks take one example per row"):
        SFT(pack=True, masks=masked.LOSS)


# --- the batch --------------------------------------------------------------------------------------


def test_a_batch_holds_the_masks_of_its_rows() -> None:
    order = [4, 1, 3, 1, 0, 2, 7, 6]
    batch = masked.make_batch(masked.shape(2), order)
    masks = batch.masks
    assert masks is not None
    bits = np.asarray(masks.unpacked())
    rows = [(bin, entry) for bin in range(2) for entry in range(4)]
    for index, (bin, entry) in zip(order, rows, strict=True):
        wanted = masked.example(index).masks
        assert wanted is not None
        row, image = masks.row[bin, entry], masks.image[bin, entry]
        assert (batch.token_ids[bin, row, masks.positions[bin, entry]] == SEG).all()
        np.testing.assert_array_equal(masks.positions[bin, entry], wanted.positions)
        np.testing.assert_array_equal(bits[bin, entry], wanted.targets)
        np.testing.assert_array_equal(masks.pixels[bin, image], wanted.pixels)
        assert masks.draws[bin, entry] == wanted.draw
    assert masks.image[0].tolist() == [0, 1, 2, 1] and not masks.pixels[0, 3].any()  # equal content once


def test_without_masks_a_batch_is_as_before() -> None:
    plain = dataclasses.replace(masked.shape(1), masks=None)
    batch = masked.make_batch(plain)
    assert batch.masks is None and len(jax.tree.leaves(batch)) == len(jax.tree.leaves(masked.make_batch(masked.shape(1)))) - 6
    assert "masks" not in batch.inputs


def test_masks_without_room_are_named() -> None:
    few = masked.shape(1, masks=2)
    with pytest.raises(TooLongError, match=r"^phantom-findings-train-0-0: 3 masks, .* and masks of its objective make room$"):
        pack([masked.example(0)], few, masked.processor())
    of_masks = few.masks
    assert of_masks is not None
    narrow = dataclasses.replace(masked.shape(1), masks=dataclasses.replace(of_masks, masks=3, entries=1))
    with pytest.raises(TooLongError, match="^phantom-findings-train-0-1: 3 masks"):
        pack([masked.example(0), masked.example(1)], narrow, masked.processor())


def test_a_resumed_iterator_draws_the_same_masks() -> None:
    shape = masked.shape(1, masks=2)
    of_masks = shape.masks
    assert of_masks is not None

    def batches() -> Any:
        return iter(
            sft_batches(
                [SourceConfig("data_prep.phantom.findings:source", split="train", options={"side": 48, "length": 12})],
                protocols={"vrt": masked.VRT},
                default_protocol="vrt",
                processor=masked.processor(),
                limits=masked.LIMITS,
                shape=shape,
                seed=3,
                batch_size=8,
                threads=0,
                masks=partial(traced_masks, shape=of_masks),
            )
        )

    whole = batches()
    made, states = [], []
    for _ in range(3):
        states.append(whole.get_state())
        made.append(next(whole))
    again = batches()
    again.set_state(states[1])
    for wanted in made[1:]:
        jax.tree.map(np.testing.assert_array_equal, next(again), wanted)
    draws = np.concatenate([batch.masks.draws[0] for batch in made])
    assert len(set(draws.tolist())) == 24  # each epoch has draws of its own


# --- episodes ---------------------------------------------------------------------------------------


def disc(x: float, radius: float = 8, side: int = 48) -> Mask:
    rows, columns = np.mgrid[:side, :side]
    return Mask.of(np.hypot(columns - x, rows - 20) < radius, "original")


def played(answer: Sequence[Mask | None], gold: Sequence[Mask], reasoning: tuple[Mask, ...] = (), **changes: Any) -> Trajectory:
    """Returns the record of a demonstration, with other masks in its parts and other gold masks of its answer."""
    record = masked.shown(masked.sample(0)).trajectory(stream="on_policy", policy_version=0, banned_sha256="")
    made = [*(("reasoning", mask) for mask in reasoning), *(("answer", mask) for mask in answer)]
    masks = tuple(ObjectMask(40 + place, None, part, mask) for place, (part, mask) in enumerate(made))
    objects = (SegmentedObject("obj9", disc(2), in_reasoning=True), *(SegmentedObject("g", m, in_answer=True) for m in gold))
    turn = dataclasses.replace(record.turns[0], masks=masks)
    return dataclasses.replace(record, turns=(turn,), objects=objects, **changes)


def test_an_answer_learns_the_masks_of_the_best_pairs() -> None:
    one = played([disc(40, 3), None, disc(30), disc(12)], [disc(11), disc(31)], (disc(2),))
    found = answered_masks(one, np.random.default_rng(0), dataclasses.replace(OF_MASKS, masks=2))
    assert found is not None
    assert found.positions.tolist() == [43, 44]  # 40 is of the reasoning, 41 pairs with none, 42 has no mask
    np.testing.assert_array_equal(found.targets, [nearest_of_torch(disc(31)), nearest_of_torch(disc(11))])
    assert answered_masks(played([], [disc(11)]), np.random.default_rng(0), OF_MASKS) is None
    assert answered_masks(played([disc(11)], []), np.random.default_rng(0), OF_MASKS) is None
    with pytest.raises(DataError, match="<g>: got run lengths of 48 x 47 pixels, expected the image's 48 x 48"):
        answered_masks(played([disc(11)], [SMALL]), np.random.default_rng(0), OF_MASKS)


def test_the_best_episode_of_a_group_learns_its_masks() -> None:
    """The first of equal ones, and none that failed or is an expert's."""
    members = [
        ("a", 0.5, {}),
        ("a", 1.0, {}),
        ("a", 1.0, {}),
        ("b", None, {}),
        ("b", -1.0, {"stream": "expert"}),
        ("b", 0.0, {}),
        ("c", 1.0, {"rewards": None}),
        ("c", -1.0, {}),
    ]
    one, of_masks = [disc(20)], dataclasses.replace(OF_MASKS, entries=3, images=1)
    trajectories = [
        played(one, one, group_id=group, advantage=advantage, rewards={"vrt": 1.0}) for group, advantage, _ in members
    ]
    trajectories = [dataclasses.replace(t, **member[2]) for t, member in zip(trajectories, members, strict=True)]
    shape = dataclasses.replace(masked.shape(1), masks=of_masks, policy_tokens=1000)
    objective, episodes = GRPO(masks=masked.LOSS), [masked.shown(masked.sample(0))] * len(members)
    batch = grpo_batch(episodes, trajectories, objective, shape, masked.processor(), step=1)
    assert batch.masks is not None
    assert batch.masks.row.tolist() == [[1, 5, 7]] and batch.masks.image.tolist() == [[0, 0, 0]]
    assert (batch.masks.positions == 40).all()
    later = grpo_batch(episodes, trajectories, objective, shape, masked.processor(), step=2)
    assert later.masks is not None
    assert len({*batch.masks.draws[0].tolist(), *later.masks.draws[0].tolist()}) == 6
    plain = grpo_batch(episodes, trajectories, GRPO(), dataclasses.replace(shape, masks=None), masked.processor(), step=1)
    assert plain.masks is None


ALL = Rewards({name: RewardConfig(name) for name in ("vrt", "format_published", "answer_published")})


def rewarded(one: Trajectory, text: str) -> dict[str, float]:
    found, failure = ALL(dataclasses.replace(one, turns=tuple(dataclasses.replace(t, text=text) for t in one.turns)))
    assert failure is None and found.rewards is not None
    return found.rewards


def iou(a: Mask, b: Mask, side: int = 256) -> float:
    first, second = nearest_of_torch(a, side), nearest_of_torch(b, side)
    return (first & second).sum() / (first | second).sum()


def test_rewards_of_an_episode() -> None:
    form = "<think>a [SEG]</think><answer>b [SEG]</answer>"
    pair, far = iou(disc(20), disc(21)), disc(40, radius=4)
    one = played([disc(21)], [disc(20)], reasoning=(far,))
    forms, answers = dict.fromkeys(("format", "format_published"), 1.0), dict.fromkeys(("answer", "answer_published"), pair)
    assert rewarded(one, form) == pytest.approx(forms | answers)
    # The published code pairs the first masks if a side has one, and loses every mask of two answers.
    several = rewarded(played([far, disc(21), far], [disc(20)]), form)
    assert several["answer"] == pytest.approx(pair - 0.2) and several["answer_published"] == 0
    assert several["format"] == 0.5 and several["format_published"] == 1.0  # no mask of a token in the reasoning
    twice = rewarded(one, f"{form}<answer>c [SEG]</answer>")
    assert twice == pytest.approx({"answer": pair, "answer_published": 0, "format": 0, "format_published": 1})
    assert rewarded(played([None], [disc(20)]), form)["answer"] == 0
    assert set(rewarded(dataclasses.replace(one, turns=()), form).values()) == {0}
