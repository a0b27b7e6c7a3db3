"""Attention of trajectories against Hugging Face's eager module, and what is measured of it against plain loops over it."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from tests.kit import parity, tiny, tiny_qwen3
from tests.kit.images import noise
from tests.kit.parity import BROKEN, TOLERANCE, relative_error
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import DataError
from vitar_jax.evaluation.attention import AttentionReader, measure_attention, same_length_text
from vitar_jax.processing.packing import Example
from vitar_jax.processing.processor import Processor

PROCESSOR = tiny.processor(4, 12)
FAMILIES: dict[str, tuple[Any, Processor]] = {  # kit and processor
    "qwen2_5_vl": (tiny, PROCESSOR),
    "qwen3_vl": (tiny_qwen3, tiny_qwen3.processor()),
}
CHAT = PROCESSOR.chat
MERGE = PROCESSOR.images.merge_size
VITAR = dataclasses.replace(PROTOCOLS["vitar"], system="Look twice.", tools=("mark", "zoom", "window"), max_turns=3)
BANNED = "of the checkpoint"
WIDE, SMALL = noise(300, 200, seed=1), noise(60, 90, seed=2)  # the model sees WIDE smaller
GOLD = (150.0, 40.0, 210.0, 120.0)
QUESTION = "Which texture is it, and where in the image is it to be seen?"  # more tokens than most images
ANSWER = write_turn("This is it.", "Terminate", answer="A")


def look(tool: str, *boxes: Sequence[float], image: int = 0) -> str:
    return write_turn("spot", tool, box=[list(box) for box in boxes], image=image)


# Images and turns of the played episodes. Boxes are in pixels of what the model sees of WIDE: 168 x 112, or with Qwen3-VL
# 192 x 128.
EPISODES = {
    "a mark": ((WIDE,), [look("mark", (84, 20, 130, 70)), ANSWER]),
    "two marks at a time": ((WIDE,), [look("mark", (0, 0, 30, 56), (100, 50, 168, 112)), ANSWER]),
    "a zoom": ((WIDE,), [look("zoom", (70, 10, 140, 80)), ANSWER]),
    "a zoom of a zoom": ((WIDE,), [look("zoom", (60, 0, 150, 90)), look("zoom", (20, 20, 90, 90), image=1), ANSWER]),
    "a zoom beside the gold box": ((WIDE,), [look("zoom", (0, 56, 70, 112)), ANSWER]),
    "a mark on the second image": ((WIDE, SMALL), [look("mark", (5, 5, 50, 60), image=1), ANSWER]),
    "grey values stretched": (
        (WIDE,),
        [write_turn("w", "window", centre=100, width=80), look("mark", (0, 0, 60, 60)), ANSWER],
    ),
    "no JSON": ((WIDE,), ["it", ANSWER]),
    "no image": ((), [ANSWER]),
}


@cache
def episode(name: str, family: str = "qwen2_5_vl") -> Episode:
    images, turns = EPISODES[name]
    gold = (Box(*GOLD, frame="original"),) if images else ()
    played = Episode(Sample(name, QUESTION, images, "A", boxes=gold), VITAR, FAMILIES[family][1], Limits(600, 200))
    for turn in turns:
        played.add_turn([*CHAT.text(turn), CHAT.im_end], None)
    assert played.finished and len(played.turns) == len(turns)
    return played


def trajectory(name: str, family: str = "qwen2_5_vl") -> Trajectory:
    return episode(name, family).trajectory(stream="on_policy", policy_version=0, banned_sha256=BANNED)


@cache
def theirs(side: str | None = None, family: str = "qwen2_5_vl") -> dict[str, np.ndarray]:
    """Hugging Face's attention [L, H, S, S] in all episodes."""
    played = {name: episode(name, family) for name in EPISODES}
    cases = [parity.Case(one.example(), (0.0,) * len(one.images)) for one in played.values()]
    return parity.attentions_of_theirs(FAMILIES[family][0].pretrained()[0], cases, side)


def means_of_theirs(name: str, side: str | None = None, family: str = "qwen2_5_vl") -> np.ndarray:
    """[R, L, H, S]"""
    turns = episode(name, family).turns
    return np.stack([theirs(side, family)[name][:, :, turn.start : turn.end].mean(axis=2) for turn in turns])


def read(played: Trajectory, family: str = "qwen2_5_vl") -> np.ndarray:
    kit, processor = FAMILIES[family]
    with jax.default_matmul_precision("highest"):
        return AttentionReader(kit.pretrained()[1], processor, banned_sha256=BANNED, rows=64).read(played)


# The attention


CASES = [
    *itertools.product(["qwen2_5_vl"], EPISODES, [None, "left", "right"]),
    *itertools.product(["qwen3_vl"], ["a mark", "a zoom of a zoom", "a mark on the second image", "no image"], [None, "left"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("family, name, side", CASES)
def test_attention_equals_hugging_faces(family: str, name: str, side: str | None) -> None:
    ours = read(trajectory(name, family), family)
    for turn, expected in zip(ours, means_of_theirs(name, side, family), strict=True):
        for layer, layer_expected in zip(turn, expected, strict=True):
            assert relative_error(layer, layer_expected) <= TOLERANCE


@pytest.mark.slow
def test_attention_without_deepstack_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    features = AttentionReader._features

    def flat(self: AttentionReader, example: Example) -> np.ndarray:
        found = features(self, example)
        found[:, self._model.config.text.hidden_size :] = 0
        return found

    monkeypatch.setattr(AttentionReader, "_features", flat)
    found = read(trajectory("a mark", "qwen3_vl"), "qwen3_vl")
    assert relative_error(found, means_of_theirs("a mark", family="qwen3_vl")) > BROKEN


def changed(**changes: Callable[[Trajectory], Any]) -> Callable[[Trajectory], np.ndarray]:
    return lambda played: read(dataclasses.replace(played, **{name: change(played) for name, change in changes.items()}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(changed(position_ids=lambda t: (tuple(range(len(t.token_ids))),) * 3), id="positions of text"),
        pytest.param(changed(position_ids=lambda t: t.position_ids[::-1]), id="columns for times"),
        pytest.param(
            changed(vision_index=lambda t: [i if i < 0 else max(t.vision_index) - i for i in t.vision_index]), id="features"
        ),
        pytest.param(
            changed(turns=lambda t: [dataclasses.replace(u, start=u.start - 1) for u in t.turns]), id="one query more"
        ),
        pytest.param(lambda t: read(t)[:, :, [0, 2, 1, 3]], id="heads by place in a group"),
        pytest.param(lambda t: np.roll(read(t), 1, axis=-1), id="keys one further"),
    ],
)
def test_what_is_broken_shows(broken: Callable[[Trajectory], np.ndarray]) -> None:
    assert relative_error(broken(trajectory("a mark")), means_of_theirs("a mark")) > BROKEN


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"banned_sha256": "another"}, "a mark: its banned tokens differ"),
        ({"vision_index": (-1,) * 400}, "got 48 image tokens"),
    ],
)
def test_a_trajectory_of_another_checkpoint(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(dataclasses.replace(trajectory("a mark"), **changes))


def test_a_trajectory_of_another_image_processing() -> None:
    other = tiny.processor(12, max_pixels=28 * 28 * 8)
    with pytest.raises(DataError, match="image 0: got grid"):
        AttentionReader(tiny.pretrained()[1], other, banned_sha256=BANNED).read(trajectory("a mark"))


# What is measured


def inside(box: Sequence[float], x: float, y: float) -> bool:
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def on_base(name: str, image: int, x: float, y: float) -> tuple[int, float, float]:
    """The image of the sample, and the place on it, that a place (both as shares of the sides) on an image shows."""
    played = episode(name)
    while (maker := played.images[image].turn) is not None:
        turn = played.turns[maker]
        assert turn.action
        if turn.action["name"] == "zoom":
            source = played.images[turn.acted_on].pixels
            x1, y1, x2, y2 = turn.boxes_original[0]
            x, y = (x1 + x * (x2 - x1)) / source.width, (y1 + y * (y2 - y1)) / source.height
        image = turn.acted_on
    return image, x, y


def covered(name: str, image: int, kind: str, number: int) -> np.ndarray:
    """What share of each token's pixels is in the boxes, pixel by pixel, as seen on the sample's own images."""
    played = episode(name)
    record = trajectory(name)
    base, boxes = 0, [GOLD]
    if kind == "model":
        looks = [turn for turn in played.turns[: number + 1] if turn.boxes_original and not turn.error]
        if not looks:
            return np.zeros(1)
        base, found = record.looked_at(looks[-1])
        boxes = [box.xyxy for box in found]
    height, width = played.images[image].size
    counts = np.zeros((height // 28, width // 28))
    for row, column in np.ndindex(height, width):
        shown, x, y = on_base(name, image, (column + 0.5) / width, (row + 0.5) / height)
        pixels = played.images[shown].pixels
        if shown == base and any(inside(box, x * pixels.width, y * pixels.height) for box in boxes):
            counts[row // 28, column // 28] += 1
    return counts.reshape(-1) / 28**2


@pytest.mark.slow
@pytest.mark.parametrize("name", EPISODES)
def test_measures_equal_those_of_hugging_faces_attention(name: str) -> None:
    """Without what takes boxes at random."""
    played = trajectory(name)
    records = measure_attention(played, read(played), merge_size=MERGE)
    assert [record["turn"] for record in records] == list(range(1, len(played.turns) + 1))
    is_image = np.array(played.token_ids) == CHAT.image_pad
    ends = np.cumsum([0] + [image.size[0] * image.size[1] // 28**2 for image in played.images])
    for number, (turn, record) in enumerate(zip(played.turns, records, strict=True)):
        seen = theirs()[name][:, :, turn.start : turn.end].astype(np.float64)  # [L, H, T, S]
        close(record["text"], seen[..., ~is_image].sum(axis=-1).mean(axis=-1))
        before = [i for i, image in enumerate(played.images) if image.turn is None or image.turn < number]
        assert [image["image"] for image in record["images"]] == before
        for found in record["images"]:
            index = found["image"]
            assert found["edited"] == (played.images[index].turn is not None)
            tokens = np.flatnonzero(is_image)[ends[index] : ends[index + 1]]
            on_image = seen[..., tokens].mean(axis=2)  # [L, H, n]
            close(found["share"], on_image.sum(axis=-1))
            close(np.array(found["map"]).reshape(-1), on_image.mean(axis=(0, 1)) / on_image.mean(axis=(0, 1)).sum())
            text = seen.mean(axis=2)[..., : turn.start][..., ~is_image[: turn.start]]
            spans = [text[..., i : i + len(tokens)].sum(axis=-1) for i in range(text.shape[-1] - len(tokens) + 1)]
            close(found["same_length_text"], np.mean(spans, axis=0) if spans else np.full(text.shape[:-1], np.nan))
            expected = {kind: covered(name, index, kind, number) for kind in ("gold", "model")}
            assert found["boxes"].keys() == {kind for kind, cover in expected.items() if 0 < cover.mean() < 1}
            for kind, box in found["boxes"].items():
                cover = expected[kind]
                mass = (on_image * cover).sum(axis=-1) / on_image.sum(axis=-1)
                assert box["area"] == pytest.approx(cover.mean(), rel=1e-6)
                close(box["mass"], mass)
                close(box["enrichment"], mass / cover.mean())
                hits = [[cover[np.argmax(head)] > 0 for head in layer] for layer in on_image]
                np.testing.assert_array_equal(box["pointing"], hits)


def close(ours: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(ours, float), expected, rtol=TOLERANCE)


def test_boxes_are_where_they_are_expected() -> None:
    """That the loop above does not pass by having nothing to compare."""
    kinds = {name: [(i["image"], *i["boxes"]) for i in measured(name)[-1]["images"]] for name in EPISODES}
    assert kinds["a mark"] == [(0, "gold", "model"), (1, "gold", "model")]
    assert kinds["a zoom"] == [(0, "gold", "model"), (1, "gold")]
    assert kinds["a zoom of a zoom"] == [(0, "gold", "model"), (1, "gold", "model"), (2, "gold")]
    assert kinds["a zoom beside the gold box"] == [(0, "gold", "model"), (1,)]
    assert kinds["a mark on the second image"] == [(0, "gold"), (1, "model"), (2, "model")]
    assert kinds["grey values stretched"] == [(0, "gold", "model"), (1, "gold", "model"), (2, "gold", "model")]
    assert kinds["no JSON"] == [(0, "gold")]
    assert kinds["no image"] == []


def measured(name: str, attention: np.ndarray | None = None, **options: int) -> list[dict[str, Any]]:
    played = trajectory(name)
    if attention is None:  # even over all that stands before
        attention = np.ones((len(played.turns), 2, 3, len(played.token_ids)))
    return measure_attention(played, attention, merge_size=MERGE, **options)


def test_where_attention_is_even_every_box_gets_its_area() -> None:
    for record in measured("a mark"):
        for image in record["images"]:
            np.testing.assert_allclose(image["share"], image["same_length_text"])
            assert np.ptp(image["map"]) < 1e-6
            for box in image["boxes"].values():
                np.testing.assert_allclose(box["enrichment"], 1, rtol=1e-5)
                np.testing.assert_allclose(box["random_enrichment"], 1, rtol=1e-5)
                np.testing.assert_allclose(box["mass"], box["area"], rtol=1e-5)


@pytest.mark.slow
def test_random_boxes() -> None:
    """Attention on one token that the box holds whole: of random boxes, about as many hold it as of all there can be."""
    played = trajectory("a mark")
    first = played.vision_index.index(0)
    attention = np.zeros((2, 1, 1, len(played.token_ids)))
    attention[..., first + 9] = 1  # second row, fourth column: pixels 84 to 112, 28 to 56
    boxes = [measured("a mark", attention, random_boxes=1000)[n]["images"][0]["boxes"]["model"] for n in range(2)]
    assert boxes[0] == boxes[1]
    (box,) = boxes[:1]
    assert box["pointing"] == [[1.0]] and box["mass"] == [[1.0]]  # x 84 to 130, y 20 to 70
    corners = [(x, y) for x in range(168 - 46 + 1) for y in range(112 - 50 + 1)]
    shared = [max(0, min(112, x + 46) - max(84, x)) * max(0, min(56, y + 50) - max(28, y)) / 28**2 for x, y in corners]
    assert box["random_enrichment"][0][0] == pytest.approx(np.mean(shared) / box["area"], rel=0.1)
    assert box["random_pointing"][0][0] == pytest.approx(np.mean(np.array(shared) > 0), abs=0.05)
    assert measured("a mark", attention)[0] != measured("a mark", attention, seed=1)[0]


def test_no_attention_on_an_image_is_no_number() -> None:
    played = trajectory("a mark")
    attention = np.tile(np.array(played.vision_index) < 0, (2, 1, 1, 1)).astype(float)
    image = measured("a mark", attention)[0]["images"][0]
    assert image["share"] == [[0.0]] and image["map"][0][0] is None
    assert all(value == [[None]] for name, value in image["boxes"]["gold"].items() if name not in ("corners", "area"))


def test_text_of_the_same_length() -> None:
    on_text = np.array([0.2, 0.1, 0.3])
    assert same_length_text(on_text, 3) == pytest.approx(0.6)
    assert same_length_text(on_text, 2) == pytest.approx((0.3 + 0.4) / 2)
    assert np.isnan(same_length_text(on_text, 4))


def test_tiny_and_protruding_boxes_cover_what_is_there() -> None:
    """A box thinner than a pixel takes one, and one beyond the image is cut."""
    played = dataclasses.replace(
        trajectory("a mark"), boxes=(Box(299.9, 0, 299.95, 1, "original"), Box(-50, 190, 60, 900, "original"))
    )
    box = measure_attention(played, np.ones((2, 1, 1, len(played.token_ids))), merge_size=MERGE)[0]["images"][0]["boxes"][
        "gold"
    ]
    assert box["area"] * 168 * 112 == pytest.approx(1 + round(60 / 300 * 168) * (112 - round(190 / 200 * 112)))
