"""Training with masks from end to end: a killed run resumes with the same bits, and GRPO teaches the masks of answers."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.kit import micro_masks
from tests.kit.micro_masks import TAGS, has_answer_mask, writing
from vitar_jax.episodes.trace_parser import SEG
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.experiment.programs import Call, Programs
from vitar_jax.experiment.recipe import StageConfig
from vitar_jax.learning.grpo_batches import GRPOBatches
from vitar_jax.learning.sft import SFTBatches
from vitar_jax.learning.train_state import TrainState
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.sa2va import SA2VA
from vitar_jax.parallel.mesh import local_bins, put_batch
from vitar_jax.processing.mask_targets import MaskBatch
from vitar_jax.processing.masks import nearest
from vitar_jax.rollout.scheduler import Scheduler

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Ends a run as a kill does: nothing of the run handles it."""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[dict[str, Call]]:
    """Compiles the train step of each stage once for all runs of this module, and yields them by the objective's name."""
    calls: dict[str, Call] = {}
    make = Programs.train

    def train(self: Programs, stage: StageConfig, banned: jax.Array) -> Call:
        name = stage.objective.name
        if name not in calls:
            calls[name] = make(self, stage, banned)
        return calls[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "train", train)
        yield calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    micro_masks.start(workdir).train()
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    """That of a run that was killed in the second step of SFT and while it played in the second step of GRPO."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    read, play, steps = SFTBatches.next, Scheduler.play, []

    def learning(self: SFTBatches, state: Any) -> Any:
        if int(state.step) == 1:
            raise Killed
        return read(self, state)

    def playing(self: Scheduler, *arguments: Any) -> Iterator[Any]:
        steps.append(len(steps))
        for episode in play(self, *arguments):
            if steps == [0, 1]:
                raise Killed
            yield episode

    for owner, name, fatal in ((SFTBatches, "next", learning), (Scheduler, "play", playing)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(owner, name, fatal)
            micro_masks.start(workdir).train()
    assert (workdir / "sft" / "model").exists() and not (workdir / "grpo" / "model").exists()
    assert [path.name for path in (workdir / "grpo" / "checkpoints").iterdir()] == ["1"]
    micro_masks.start(workdir).train()
    return workdir


def metrics(workdir: Path, stage: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("timing_s", "perf"))} for row in rows]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_killed_run_ends_with_the_same_bits(whole: Path, stopped: Path, stage: str) -> None:
    expected, ours = (load_file(workdir / stage / "model" / "model.safetensors") for workdir in (whole, stopped))
    assert expected.keys() == ours.keys()
    for name, values in expected.items():
        assert values.tobytes() == ours[name].tobytes(), name
    rows = metrics(whole, stage)
    assert metrics(stopped, stage) == rows and [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["actor/masks/cross_entropy"] > 0  # there was something to restore


def test_a_train_step_is_compiled_once(whole: Path, stopped: Path, compiled: dict[str, Call]) -> None:
    """A step returns the state in the sharding that the next step was compiled for."""
    assert compiled.keys() == {"sft", "grpo"} and all(call.program._cache_size() <= 1 for call in compiled.values())


def test_the_same_masks_are_kept(whole: Path, stopped: Path) -> None:
    kept = [[trajectory.to_json() for trajectory in read_trajectories(workdir / "grpo")] for workdir in (whole, stopped)]
    assert kept[0] == kept[1] and any(mask["mask"] for one in kept[0] for turn in one["turns"] for mask in turn["masks"])


def test_grpo_teaches_the_masks_of_answers(tmp_path: Path) -> None:
    """Those of the best episode of each group. Without them, bridge and mask decoder get no gradient."""
    run = micro_masks.start(tmp_path / "run")
    stage = dataclasses.replace(run.recipe.stages["grpo"], start="")
    step = run.programs.train(stage, jax.numpy.asarray(run.banned)).program
    batches = run.batches("grpo", stage, run.programs.local_batch_shape(stage, local_bins(run.mesh)))
    assert isinstance(batches, GRPOBatches) and stage.objective.masks is not None
    played: list[Trajectory] = []
    batches.keep = lambda _, trajectories: played.extend(trajectories)

    def learn(state: TrainState) -> tuple[TrainState, MaskBatch, dict[str, float], set[str]]:
        """Takes one step. Also returns the masks of the batch, the metrics, and the parts whose weights have changed."""
        batch, scalars = batches.next(state)
        assert batch.masks is not None
        before = {path: np.asarray(leaf) for path, leaf in leaf_paths(state.model)}
        state, found = step(state, put_batch(batch, run.mesh))
        moved = {SA2VA.part_of(path) for path, leaf in leaf_paths(state.model) if np.any(np.asarray(leaf) != before[path])}
        return state, batch.masks, scalars | {name: float(value) for name, value in found.items()}, moved

    run.engine = writing(run, *TAGS)
    state, masks, found, moved = learn(run.initial_state(stage))
    assert not masks.valid.any() and found["rollout/masks"] == 0
    assert found["masks/cross_entropy"] == found["masks/dice"] == found["masks/iou"] == found["loss"] == 0
    assert not moved  # all rewards are 0

    played.clear()
    run.engine = writing(run, *TAGS, SEG)
    state, masks, found, moved = learn(state)
    assert found["masks/cross_entropy"] > 0 and found["masks/dice"] > 0
    assert moved == {"vision", "merger", "decoder", "embeddings", "bridge", "mask_decoder"}
    best = [max(group, key=lambda one: one.advantage or 0) for group in zip(played[::2], played[1::2], strict=True)]
    marked = [one for one in best if has_answer_mask(one)["has_answer_mask"]]
    assert masks.valid.sum() == stage.objective.masks.masks * len(marked) > 0
    side, bits = masks.unpacked().shape[-1], np.asarray(masks.unpacked())
    taught = {bits[place].tobytes() for place in zip(*np.nonzero(masks.valid), strict=True)}
    gold = [next(each.mask for each in one.objects if each.in_answer) for one in marked]
    assert taught == {nearest(mask.array, side, side).tobytes() for mask in gold}
