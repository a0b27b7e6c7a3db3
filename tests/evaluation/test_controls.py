"""Controls: what they change, that they change nothing else, and always alike."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from tests.kit.trajectories import make_trajectory
from vitar_jax.data.interventions import Given, find_change
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample
from vitar_jax.episodes.trajectory_files import TrajectoryWriter
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.controls import LOOKS, Variant, look_tool, outlined_masks, put_look, random_box

PROCESSOR = tiny.processor(12)
LIMITS = Limits(tokens=900, turn_tokens=400)
GOLD = Box(10, 20, 66, 76, "original")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Six of three images and of different sizes, one of them a file, and one without an image."""
    path = tmp_path_factory.mktemp("images") / "grey.png"
    noise(120, 90).convert("L").save(path)
    images = [str(path), noise(112, 84, seed=1), noise(84, 112, seed=2)]
    made = [Sample(f"s{i}", f"Which {i}?", (images[i // 2],), "A", boxes=(GOLD,)) for i in range(6)]
    return [*made, Sample("text", "What is a CT?", (), "x")]


def begin(sample, protocol="vitar"):
    return Episode(sample, PROTOCOLS[protocol], PROCESSOR, LIMITS)


def test_a_blank_image_tells_nothing_and_costs_as_much(samples):
    for sample in samples:
        changed = find_change("blank")(sample)
        assert dataclasses.replace(changed, images=sample.images) == sample
        first, second = begin(sample), begin(changed)
        assert first.token_ids == second.token_ids
        for one, two in zip(first.images, second.images, strict=True):
            assert (one.size, one.pixels.size, one.pixels.mode) == (two.size, two.pixels.size, two.pixels.mode)
            assert set(np.asarray(two.pixels).ravel()) == {128}


def test_a_wrong_image_is_anothers_in_the_size_of_its_own(samples):
    change = find_change("wrong_image", Given(samples, len(samples)))
    shown = []
    for sample in samples[:6]:
        changed = change(sample)
        assert dataclasses.replace(changed, images=sample.images) == sample
        image: Any = changed.images[0]
        own, others = begin(sample).images[0].pixels, [begin(other).images[0].pixels for other in samples[:6]]
        assert image.size == own.size
        assert image.tobytes() != own.tobytes()
        assert any(image.tobytes() == other.resize(own.size).tobytes() for other in others)
        assert change(sample).images == (image,)
        assert find_change("wrong_image", Given(samples, len(samples)))(sample).images == (image,)
        shown.append(image.tobytes())
    assert len(set(shown)) > 2
    assert change(samples[6]) == samples[6]  # nothing to take away
    with pytest.raises(DataError, match="s0: none of 2 samples"):
        find_change("wrong_image", Given(samples, 2))(samples[0])  # both are of one image


@pytest.mark.parametrize("protocol", ["vitar", "zoom", "vitar_reference"])
def test_the_true_box_is_what_an_expert_would_look_at(samples, protocol):
    sample = samples[2]
    episode = begin(sample, protocol)
    put_look(LOOKS["truth"])(episode)
    tool = look_tool(PROTOCOLS[protocol])
    shown = dataclasses.replace(sample, demonstration=Demonstration((Look("I look here.", tool, (GOLD,)),), Answer("x", "A")))
    expert = demonstrate(shown, PROTOCOLS[protocol], PROCESSOR, LIMITS)
    assert episode.turns[0].text == expert.turns[0].text
    assert episode.turns[0].carried_out and episode.images[1].pixels.tobytes() == expert.images[1].pixels.tobytes()
    assert not any(episode.loss_mask) and not episode.finished  # the model goes on, and is not asked for these tokens


def test_a_random_box_has_the_references_size_lies_inside_and_stays(samples):
    centres = set()
    for sample in samples[:6]:
        (box,) = random_box(begin(sample))
        width, height = begin(sample).images[0].pixels.size
        assert (box.width, box.height) == pytest.approx((56, 56))
        assert box.x1 >= 0 and box.y1 >= 0 and box.x2 <= width and box.y2 <= height
        assert random_box(begin(sample)) == (box,)
        centres.add(box.xyxy)
        (half,) = random_box(begin(dataclasses.replace(sample, boxes=())))
        assert (half.width, half.height) == pytest.approx((width / 2, height / 2))
    assert len(centres) == 6


def test_a_look_at_all_of_it_shows_nothing_new(samples):
    episode = begin(samples[2], "zoom")
    put_look(LOOKS["none"])(episode)
    assert episode.turns[0].boxes_original == ((0, 0, 112, 84),)
    assert episode.images[1].pixels.tobytes() == episode.images[0].pixels.resize(episode.images[1].pixels.size).tobytes()


def test_where_there_is_nothing_to_look_at_or_with(samples):
    with pytest.raises(DataError, match="text: has no image"):
        put_look(LOOKS["none"])(begin(samples[6]))
    with pytest.raises(DataError, match="s0: has no gold box"):
        put_look(LOOKS["truth"])(begin(dataclasses.replace(samples[0], boxes=())))
    with pytest.raises(DataError, match="s0: box"):
        put_look(LOOKS["truth"])(begin(dataclasses.replace(samples[0], boxes=(Box(500, 500, 600, 600, "original"),))))
    with pytest.raises(ConfigError, match="plain"):
        look_tool(PROTOCOLS["plain"])


def test_boxes_beyond_the_image_are_cut(samples):
    beyond = dataclasses.replace(samples[2], boxes=(Box(-10, 50, 40, 100, "original"),))
    assert LOOKS["truth"](begin(beyond)) == (Box(0, 50, 40, 84, "original"),)
    assert isinstance(beyond.images[0], Image.Image)


def test_a_variant_is_named_by_what_it_changes(samples, tmp_path):
    plain = Variant()
    assert (plain.name, plain.settings, plain.intervene(samples, 6, tmp_path)) == ("", {}, (None, {}))
    assert plain.play_under(PROTOCOLS["vitar"]) == PROTOCOLS["vitar"]
    other = Variant("path/mine.py:protocol", True, "blank", "random")
    assert other.name == "protocol-forced-blank-random" and other.settings == {"control": "blank", "look": "random"}
    assert Variant("direct").name == "direct"
    assert not other.play_under(PROTOCOLS["vitar"]).early_answer
    change, recorded = other.intervene(samples, 6, tmp_path)
    assert change is not None and change.name == "blank" and recorded == other.settings
    assert Variant(control="blur:2.5").name == "blur-2.5"
    with pytest.raises(ConfigError, match="no tool that takes a box"):
        other.play_under(PROTOCOLS["direct"])
    episode = begin(samples[0])
    plain.prepare(episode)
    assert not episode.turns
    other.prepare(episode)
    assert len(episode.turns) == 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"control": "blanc"}, "unknown intervention 'blanc', did you mean blank"),
        ({"control": "erase_masks"}, "erase_masks: needs the masks of an earlier run"),
        ({"control": "blank", "of": "grpo"}, "of: 'grpo' has no effect on control 'blank'"),
        ({"of": "grpo"}, "of: 'grpo' has no effect on control ''"),
    ],
)
def test_controls_that_do_not_exist(changes, words):
    with pytest.raises(ConfigError, match=words):
        Variant(**changes)


def masks(*parts):
    """A mask of one pixel for each part of a turn, from left to right; "nothing" is a token without a mask."""
    made = []
    for place, part in enumerate(parts):
        pixels = np.zeros((84, 112), bool)
        pixels[0, place] = True
        mask = None if part == "nothing" else Mask.of(pixels, "original")
        made.append(ObjectMask(place, f"obj{place}", "reasoning" if part == "nothing" else part, mask, 0.9))
    return tuple(made)


def write_outlines(directory, **turns):
    """Trajectories by sample, each of which has the masks of its turns."""
    made = []
    for name, (first, second) in turns.items():
        plain = make_trajectory(0, sample_id=name)
        changed = tuple(dataclasses.replace(turn, masks=m) for turn, m in zip(plain.turns, (first, second), strict=True))
        made.append(dataclasses.replace(plain, turns=changed))
    TrajectoryWriter(directory).write(made)


def test_masks_of_an_earlier_evaluation(tmp_path, samples):
    """Of all turns, of the reasoning alone; the settings say what they were."""
    both = {"a": (masks("reasoning", "answer", "nothing"), masks("answer", "reasoning")), "b": (masks("reasoning"), ())}
    write_outlines(tmp_path / "one", **both, c=(masks("answer"), ()))
    found = outlined_masks(tmp_path / "one")
    assert {name: [mask.box.x1 for mask in masks] for name, masks in found.items()} == {"a": [0, 1], "b": [0]}
    variant = Variant(control="erase_elsewhere", of="grpo")
    assert variant.name == "erase_elsewhere-of_grpo"
    change, recorded = variant.intervene(samples, 6, tmp_path / "one")
    assert change is not None and change.given.outlined == found
    assert recorded.keys() == {"control", "of", "masks_sha256"} and recorded["of"] == "grpo"
    write_outlines(tmp_path / "again", b=both["b"], a=both["a"])  # in another order
    assert variant.intervene(samples, 6, tmp_path / "again")[1] == recorded
    write_outlines(tmp_path / "two", a=(masks("answer", "reasoning"), ()))
    assert variant.intervene(samples, 6, tmp_path / "two")[1] != recorded
    write_outlines(tmp_path / "none", a=(masks("answer", "nothing"), ()))
    with pytest.raises(DataError, match="none: no reasoning in this evaluation outlines anything"):
        outlined_masks(tmp_path / "none")
