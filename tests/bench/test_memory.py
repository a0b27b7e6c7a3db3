"""The bench of memory: what it counts as a rise, and that a run leaves no images behind."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pytest

from tests.kit import micro
from tests.kit import rollout as engines
from tests.kit.errors import Main
from tests.kit.processes import MICRO
from vitar_jax.bench import __main__ as command_line
from vitar_jax.bench import memory
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.sample import Sample
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.processing.packing import BatchShape, pack


def test_a_rise_is_of_the_last_steps_over_those_after_the_warm_up() -> None:
    """Whatever compiles in the warm-up, and whatever single step stands out."""
    resident = [10.0 * step for step in range(100)] + [1000.0] * 900
    assert memory.summarize(resident)["rise"] == 0
    resident[150] = resident[950] = 9999.0
    found = memory.summarize(resident)
    assert (found["before"], found["after"], found["warm_up"], found["met"]) == (1000.0, 1000.0, 100, True)
    found = memory.summarize([*resident[:910], *[1011.0] * 90])
    assert found["rise"] == pytest.approx(0.011) and not found["met"] and "+1.10%" in memory.report(found, "grpo")
    assert memory.summarize([1.0, 5.0, 10.0, 10.0])["warm_up"] == 2


def test_the_memory_of_a_run_is_drawn(tmp_path: Path) -> None:
    memory.figure([400.0, 980.0, 985.0], tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_a_group_holds_its_images_once() -> None:
    """The records of eight episodes have the same arrays, and a batch of them has room for one copy."""
    processor = engines.PROCESSOR
    limits = Limits(tokens=1024, turn_tokens=12, images=memory.IMAGES)
    leader = Episode(memory.Questions()[3], engines.BLIND, processor, limits)
    group = [leader.fork(member) for member in range(8)]
    held = [image for e in group for image in e.trajectory(stream="on_policy", policy_version=0, banned_sha256="").images]
    assert len(held) == 8 * memory.IMAGES and len({id(image.pixels) for image in held}) == memory.IMAGES
    shape = BatchShape(1, 8, 512, memory.IMAGES, processor.size_classes[-1], 64)
    batch = pack([episode.example() for episode in group], shape, processor)
    assert np.abs(batch.pixels).sum(axis=(2, 3)).all()  # each of the eight rows of pixels is an image


def test_a_stage_gets_room_for_eight_images() -> None:
    recipe = Recipe.from_config(micro.get_config())
    assert memory.played_stage(recipe) == "grpo"
    changed = memory.with_eight_images(recipe, "grpo", 7)
    assert changed.limits.images == recipe.limits.images + 7 and changed.stages["grpo"].steps == 7
    assert list(changed.stages) == ["grpo"] and changed.limits.tokens == recipe.limits.tokens + 7 * 11


@pytest.mark.sweep
def test_a_run_leaves_no_images_behind(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step begins with the images of at most the step before."""
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    real = memory.Questions.__getitem__

    def counted(self: memory.Questions, index: SupportsIndex, /) -> Sample:
        gc.collect()
        alive.append(sum(image() is not None for image in made))
        sample = real(self, index)
        made.extend(map(weakref.ref, sample.images))
        return sample

    monkeypatch.setattr(memory.Questions, "__getitem__", counted)
    output, picture = tmp_path / "memory.json", tmp_path / "memory.png"
    stage = "--config.stages.grpo."
    given = [f"--config={MICRO}", "--steps=4", f"--figure={picture}", f"--output={output}"]
    given += [f"{stage}batch_size=1", f"{stage}objective.group_size=8", f"{stage}probe_every=0", f"{stage}checkpoint_every=4"]
    assert main(command_line, "memory", *given, commands=command_line.COMMANDS) == 0
    found = json.loads(output.read_text())
    assert len(found["resident"]) == found["steps"] == 4 and min(found["resident"]) > 100 and picture.stat().st_size > 1000
    assert "stage grpo, 4 steps with 8 images per group" in capsys.readouterr().out
    assert len(alive) >= 4 and max(alive[-4:]) <= 2 * memory.IMAGES


def test_a_recipe_that_plays_nothing_is_an_error(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--config={MICRO}", "--config.schedule=('warmup',)"]
    assert main(command_line, "memory", *given, commands=command_line.COMMANDS) == 2
    assert "--config: no stage of the schedule plays episodes" in capsys.readouterr().err
