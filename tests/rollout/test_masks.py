"""Masks while playing: those of a teacher-forced pass, on one device and on a mesh, for images that are encoded once."""

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.kit import masks as kit
from tests.kit import tiny_qwen3
from tests.kit.masks import KEPT, MARKING, OUTLINING, SEG, engine, episodes, model, processor, view
from tests.kit.rollout import DRAWN, LIMITS, assert_nothing_compiles, run, sample
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.mask_drawing import outlined
from vitar_jax.episodes.tools import OUTLINE_WIDTH
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.learning.metrics import rollout_scalars
from vitar_jax.learning.trainable import Trainable
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.sa2va import SA2VA
from vitar_jax.models.sa2va.model import Sa2VA
from vitar_jax.parallel.mesh import BATCH, ShardingRules, make_mesh, regrouped, shardings
from vitar_jax.processing.masks import bilinear, ground_pixels
from vitar_jax.processing.packing import BatchShape, pack
from vitar_jax.rollout import masks, sampler
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.masks import EndedTurn, Masker
from vitar_jax.rollout.player import Player
from vitar_jax.rollout.sampler import Marks
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.scheduler import Scheduler
from vitar_jax.rollout.weights import Resharder, RolloutWeights, rollout_weights

pytestmark = pytest.mark.slow

SIDE = 64
TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], np.ndarray]:
    """The sampler's states of every turn with masks, by the episode's id and the turn's number."""
    found: dict[tuple[int, int], np.ndarray] = {}
    make = Masker.make

    def note(self: Masker, marks: Marks, turns: Sequence[EndedTurn]) -> Any:
        for slot, episode, count in turns:
            found[id(episode), len(episode.turns)] = np.asarray(marks.states[slot, :count])
        return make(self, marks, turns)

    monkeypatch.setattr(Masker, "make", note)
    return found


def check_masks(played: Sequence[Episode], kept: dict[tuple[int, int], np.ndarray] | None = None) -> int:
    """Checks states, masks and scores against a teacher-forced pass. Returns the number of masks after a tool's image."""
    late = 0
    shape = BatchShape(1, 1, LIMITS.tokens, 4, processor().size_classes[-1], LIMITS.tokens)
    for episode in played:
        batch = pack([episode.example()], shape, processor())
        hidden = np.asarray(kit.states_of(model(), batch.inputs))[0, 0]
        picture = episode.images[0].pixels
        for number, turn in enumerate(episode.turns):
            entries = [mask for mask in turn.masks if mask.mask is not None]
            places = [index for index in range(turn.start, turn.end - 1) if episode.token_ids[index] == SEG][:KEPT]
            assert [mask.token for mask in entries] == places
            if not places:
                continue
            states = hidden[places]
            if kept is not None:
                np.testing.assert_allclose(kept[id(episode), number], states, rtol=TOLERANCE, atol=TOLERANCE)
            padded = np.concatenate([states, np.zeros((KEPT - len(states), states.shape[1]), np.float32)])
            logits, scores = map(np.asarray, kit.masks_of(model(), ground_pixels(picture, SIDE), padded))
            sure = 0
            for mask, logit, score in zip(entries, logits, scores, strict=False):
                assert mask.mask is not None and mask.mask.frame == "original" and mask.mask.shape == picture.size[::-1]
                assert mask.score == pytest.approx(float(score), abs=TOLERANCE)
                full = bilinear(bilinear(logit, SIDE, SIDE), *mask.mask.shape)
                far = np.abs(full) > TOLERANCE * np.abs(logits).max()
                assert np.array_equal(mask.mask.array[far], full[far] > 0)
                sure += far.sum()
            assert sure > 0.95 * picture.width * picture.height * len(entries)
            late += len(entries) * (number > 0 and episode.turns[number - 1].image is not None)
    return late


def test_nothing_compiles_after_the_warm_up() -> None:
    """The first test, so that the others take the programs that it compiles."""
    played = assert_nothing_compiles(engine(), view(), MARKING)
    shapes = {mask.mask.shape for episode in played for turn in episode.turns for mask in turn.masks if mask.mask}
    assert len(shapes) >= 8


def test_states_and_masks_are_those_of_a_teacher_forced_pass(kept: dict[tuple[int, int], np.ndarray]) -> None:
    """Of groups that share prompt and image, also in turns after a tool's image, through a player."""
    stats, played = engine().stats, episodes(6, group_size=3)
    stats.reset()
    player = Player(engine(), MARKING, view, DRAWN)
    for episode in played:
        episode.sampling = DRAWN
    assert len(list(player.play(played[i : i + 3] for i in range(0, len(played), 3)))) == len(played)
    assert check_masks(played, kept) > 5
    found = [mask for episode in played for turn in episode.turns for mask in turn.masks]
    made = [mask.mask.counts for mask in found if mask.mask is not None]
    assert len(set(made)) > len(made) / 2  # masks differ by their states
    assert (stats.masks, stats.masks_missing) == (len(made), len(found) - len(made)) and stats.masks_missing
    scalars = rollout_scalars([player.record(episode) for episode in played], [None] * len(played), [], masks=True)
    assert scalars["rollout/masks"] == pytest.approx(len(made) / len(played))
    assert scalars["rollout/masks_missing"] == pytest.approx(stats.masks_missing / len(played))


def test_a_turn_looks_again_at_its_own_masks() -> None:
    played = episodes(6, protocol=OUTLINING)
    run(engine(), view(), played, DRAWN)
    looks = [(one, turn, turn.image) for one in played for turn in one.turns if turn.image is not None]
    for episode, turn, image in looks:
        expected = outlined(episode.images[0].pixels, turn.masks, OUTLINE_WIDTH)
        assert episode.images[image].pixels.tobytes() == expected.tobytes() != episode.images[0].pixels.tobytes()
    assert len({turn.start for _, turn, _ in looks}) > 2
    assert check_masks(played) > 0
    blank = {turn.error for episode in played for turn in episode.turns if not any(one.mask for one in turn.masks)}
    assert blank <= {("no_mask", "The turn has no mask on this image."), ("too_long", "The turn is too long.")}


def test_a_token_on_which_the_budget_ends_has_no_mask() -> None:
    """Nor has one past the maximum of a turn, or of a question without an image."""
    only_seg = np.arange(len(kit.banned())) != SEG
    marking = Engine(engine().config, processor(), LIMITS, only_seg)
    seen, blind = sample(1), dataclasses.replace(sample(2), images=())
    played = [
        Episode(asked, MARKING, processor(), dataclasses.replace(LIMITS, turn_tokens=budget))
        for asked, budget in ((seen, KEPT), (seen, KEPT + 2), (blind, 2))
    ]
    run(marking, view(), played)
    made = [[mask.mask is not None for mask in episode.turns[0].masks] for episode in played]
    assert made == [[True, True, False], [True, True, True, False, False], [False, False]]
    found = [mask.mask is not None for episode in played for turn in episode.turns for mask in turn.masks]
    assert (marking.stats.masks, marking.stats.masks_missing) == (sum(found), len(found) - sum(found))


def maps_held() -> int:
    """Number of images whose maps are in the device's memory."""
    gc.collect()
    return sum(array.shape == (SIDE // 4, SIDE // 4, 4) for array in jax.live_arrays())


def test_a_group_encodes_its_image_once_and_lets_go_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before, calls, encode = maps_held(), [], masks.encode_maps

    def count(*arguments: Any) -> Any:
        calls.append(1)
        return encode(*arguments)

    monkeypatch.setattr(masks, "encode_maps", count)
    played, scheduler = episodes(5, group_size=4), Scheduler(engine(), view())
    for episode in played:
        episode.sampling = DRAWN
    assert len(list(scheduler.play(played[i : i + 4] for i in range(0, len(played), 4)))) == len(played)
    marked = {e.sample.sample_id for e in played for turn in e.turns for mask in turn.masks if mask.mask is not None}
    assert len(calls) == len(marked) >= 3
    assert scheduler.idle and maps_held() == before


def test_members_cancelled_midway_leave_nothing_behind() -> None:
    before, scheduler, members = maps_held(), Scheduler(engine(), view()), episodes(3, group_size=3)
    for episode in members:
        episode.sampling = DRAWN
    for first in (0, 3, 6):
        scheduler.submit(members[first : first + 3])
    while maps_held() == before:
        assert not scheduler.idle
        scheduler.step()
    for episode in members:
        scheduler.cancel(episode)
    assert scheduler.idle and maps_held() == before
    again = episodes(1, group_size=3)
    assert len(list(scheduler.play([again]))) == 3


def sharded() -> tuple[Resharder, Sa2VA]:
    """And the model as training lays it out, on 8 devices."""
    mesh, rules = make_mesh(1, 4, 2), ShardingRules()
    laid = jax.device_put(model(), shardings(model(), mesh, rules))
    return Resharder(model(), regrouped(mesh, 2), rules, dtype="float32"), laid


def test_a_mesh_makes_the_masks_of_one_device() -> None:
    """Of turns of three images in six of its slots, in two calls or in two rows of a shard, and in up to two blocks."""
    reshard, laid = sharded()
    rng, images = np.random.default_rng(0), episodes(3) + episodes(3)
    turns = [*zip((7, 2, 4, 5, 0, 3), images, (2, 9, 16, 1, 3, 5), strict=True)]
    marks = Marks.create(SEG, (8, 16, 48), "float32")
    marks = dataclasses.replace(marks, states=jnp.asarray(rng.normal(size=marks.states.shape), jnp.float32))
    made = []
    for weights in (view(), reshard(laid)):
        sizes = dataclasses.replace(engine().config, slots=8, mask_rows=5)
        masker = Masker(sizes, weights, engine().pool, engine().stats)
        spread = marks if weights.mesh is None else jax.device_put(marks, NamedSharding(weights.mesh, P(BATCH)))
        for _, episode, _ in turns:
            masker.admit(episode)
        made.append([wait() for wait in masker.make(spread, [EndedTurn(*turn) for turn in turns])])
    for mine, theirs, (slot, episode, count) in zip(*made, turns, strict=True):
        assert len(mine) == len(theirs) == count
        pixels = ground_pixels(episode.images[0].pixels, SIDE)
        _, scores = kit.masks_of(model(), pixels, marks.states[slot])
        np.testing.assert_allclose([score for _, score in mine], scores[:count], atol=TOLERANCE)
        for (one, score), (other, close) in zip(mine, theirs, strict=True):
            assert score == pytest.approx(close, abs=TOLERANCE) and np.mean(one.array != other.array) < 1e-3
    assert len({mask.counts for turn in made[0] for mask, _ in turn}) > 20


@pytest.mark.sweep
def test_a_mesh_plays_what_one_device_plays() -> None:
    reshard, laid = sharded()
    played = []
    for weights in (view(), reshard(laid)):
        played.append(episodes(6, group_size=4))
        run(engine(8), weights, played[-1], Sampling(seed=3), 4)
    compared = 0
    for one, other in zip(*played, strict=True):
        assert one.token_ids == other.token_ids
        for mine, theirs in zip(*([mask for turn in e.turns for mask in turn.masks] for e in (one, other)), strict=True):
            assert (mine.token, mine.mask is None) == (theirs.token, theirs.mask is None)
            if mine.mask is not None and theirs.mask is not None:
                assert mine.score == pytest.approx(theirs.score, abs=TOLERANCE)
                assert np.mean(mine.mask.array != theirs.mask.array) < 1e-3
                compared += 1
    assert compared > 10


def test_without_marks_programs_are_what_they_are() -> None:
    """As of a model that makes no masks. The sampler keeps marks only if turns may contain the token."""
    arrays = sampling_arrays(4)
    sampling = SamplingState(**arrays, banned=jnp.asarray(kit.banned()))

    def program(weights: RolloutWeights, **marks: int) -> str:
        state = sampler.create_state(weights, 4, 64, **marks)
        return sampler.decode.lower(weights, state, sampling, np.ones(4, np.int32), np.int32(4), steps=4).as_text()

    plain = dataclasses.replace(view(), masks=None)
    assert program(view()) == program(plain) != program(view(), marked=SEG, marks=KEPT)
    banning = Engine(engine().config, tiny_qwen3.processor(), LIMITS, kit.banned())
    assert Scheduler(banning, view()).state.marks is None
    assert Scheduler(engine(), plain).state.marks is None


def test_frozen_parts_are_not_copied() -> None:
    """They have rollout's type. The trained ones are cast, and all are those of the model."""
    mesh, rules = make_mesh(devices=jax.devices()[:1]), ShardingRules()
    trained = Trainable(("bridge", "mask_decoder"), frozen_dtype="bfloat16").prepare(model())
    laid = jax.device_put(trained, shardings(trained, mesh, rules))
    weights = Resharder(model(), mesh, rules, dtype="bfloat16")(laid)
    assert weights.masks is not None
    given = {path: leaf for path, leaf in leaf_paths(laid) if path.startswith(("bridge", "sam2"))}
    expected = dict(leaf_paths(rollout_weights(model(), "bfloat16").masks))
    shared = set()
    for path, leaf in leaf_paths(weights.masks):
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
        if leaf.unsafe_buffer_pointer() == given[path].unsafe_buffer_pointer():
            shared.add(path)
    encoder = {path for path in given if SA2VA.part_of(path) == "mask_encoder"}
    assert shared == encoder and len(encoder) < len(given) == len(expected)
