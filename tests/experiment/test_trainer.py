"""Probes with samples that cannot be played, and warnings before the first step."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit import micro
from tests.kit.images import noise
from vitar_jax.data.pipeline import Share
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.experiment import trainer
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.processing.positions import SizeClass
from vitar_jax.rollout.player import Player

STATE: Any = SimpleNamespace(step=3, model=None)


class Saying(Player):
    """A player whose every turn is an answer."""

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        for (episode,) in groups:
            episode.add_turn(self.processor.chat.turn("A"), None)
            yield episode


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(Recipe.from_config(micro.get_config()), tmp_path_factory.mktemp("run"))


def probe(run: Run, bad: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Plays a probe of four samples, the first `bad` of which cannot be played."""
    samples = [Sample(f"{i}", "Which?", ("nowhere.png" if i < bad else noise(84, 84),), "A") for i in range(4)]
    monkeypatch.setattr(trainer, "sample_stream", lambda *_, **__: samples)
    player = Saying(run.engine, PROTOCOLS["plain"], lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr(run, "_trained_player", lambda *_: player)
    played = run.probe("grpo", run.recipe.stages["grpo"])
    assert played is not None
    return played(STATE)


def test_a_probe_leaves_out_samples_that_cannot_be_played_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = probe(run, 0, monkeypatch), probe(run, 2, monkeypatch)
    assert whole["probe/samples"] == 4 and not whole["probe/skipped"]
    assert (part["probe/samples"], part["probe/skipped"], part["probe/skipped/image"]) == (2, 2, 2)
    assert part["probe/reward/mean"] == whole["probe/reward/mean"] and part.keys() == whole.keys()


class Looking(Player):
    """A player that sees whether the middle of the image is grey, and looks before it answers."""

    def begin(self, sample: Sample, member: int = 0) -> Episode:
        return Episode(sample, self.protocol, self.processor, Limits(tokens=2000, turn_tokens=400), member=member)

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        for (episode,) in groups:
            grey = np.asarray(episode.images[0].pixels)[30:54, 30:54].std() < 1
            episode.add_turn(self.processor.chat.turn(write_turn("There.", "zoom", box=[[20, 20, 60, 60]])), None)
            episode.add_turn(self.processor.chat.turn(write_turn("So.", "Terminate", answer="B" if grey else "A")), None)
            yield episode


def reliance(run: Run, monkeypatch: pytest.MonkeyPatch, *interventions: str, boxed: int = 4) -> dict[str, float]:
    """Plays a probe of four samples, one of which is grey itself; the first `boxed` have a box in the middle."""
    box = (Box(25, 25, 60, 60, "original"),)
    images = [*(noise(84, 84, seed=n) for n in range(3)), Image.new("RGB", (84, 84), (9, 9, 9))]
    samples = [Sample(f"{n}", "Which?", (image,), "A", boxes=box if n < boxed else ()) for n, image in enumerate(images)]
    monkeypatch.setattr(trainer, "sample_stream", lambda *_, **__: samples)
    player = Looking(run.engine, PROTOCOLS["zoom"], lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr(run, "_trained_player", lambda *_: player)
    played = run.probe("grpo", dataclasses.replace(run.recipe.stages["grpo"], probe_interventions=interventions))
    assert played is not None
    return played(STATE)


def test_a_probe_says_what_answers_rely_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers of four are right, and all of these need the middle; of what is grey, nothing changes."""
    found = reliance(run, monkeypatch, "blank", "region_erased", "blur:0")
    assert found["probe/tool_turns"] == 0.5 and found["timing_s/probe"] > 0
    reliances = {name.removeprefix("probe/reliance/"): value for name, value in found.items() if "/reliance/" in name}
    expected = {"": 0.75, "/changed": 0.75, "/stay_right": 0.0, "/skipped": 0.0}
    expected = {f"{name}{number}": value for name in ("blank", "region_erased") for number, value in expected.items()}
    assert reliances == expected | {"blur-0": 0, "blur-0/changed": 0, "blur-0/stay_right": 1, "blur-0/skipped": 0}
    plain = reliance(run, monkeypatch)
    assert plain.keys() == {name for name in found if "/reliance/" not in name and name != "probe/tool_turns"}
    assert all(plain[name] == found[name] for name in plain if not name.startswith("timing_s"))


def test_samples_that_an_intervention_does_not_apply_to(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reliance(run, monkeypatch, "region_erased", boxed=2)
    assert (found["probe/reliance/region_erased"], found["probe/reliance/region_erased/skipped"]) == (1, 2)
    assert found["probe/skipped"] == 0
    with pytest.raises(DataError, match="4 of 4 samples of the probe were skipped.*: sample 3: has no box or mask"):
        reliance(run, monkeypatch, "region_erased", boxed=0)


def test_a_wrong_image_is_of_the_samples_of_all_processes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this process, one of two, are of one image."""
    images = noise(84, 84), Image.new("RGB", (84, 84), (9, 9, 9))
    samples = [Sample(f"{n}", "Which?", (images[n % 2],), "A") for n in range(4)]
    monkeypatch.setattr(run, "share", Share(0, 2))
    monkeypatch.setattr(trainer, "sample_stream", lambda *_, seed, share=None: samples[::2] if share else samples)
    player = Looking(run.engine, PROTOCOLS["zoom"], lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr(run, "_trained_player", lambda *_: player)
    played = run.probe("grpo", dataclasses.replace(run.recipe.stages["grpo"], probe_interventions=("wrong_image",)))
    assert played is not None and played(STATE)["probe/reliance/wrong_image"] == 1


def test_interventions_of_a_probe_exist() -> None:
    config: Any = micro.get_config()
    config.stages.grpo.probe_interventions = ("blank", "region_erase")
    with pytest.raises(ConfigError, match="stages.grpo.probe_interventions: unknown intervention 'region_erase', did you mean"):
        Recipe.from_config(config)


@pytest.mark.parametrize("bad", [3, 4])
def test_a_probe_of_bad_samples_ends_the_run(bad: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"{bad} of 4 samples of the probe were skipped.*: sample {bad - 1}: nowhere.png"):
        probe(run, bad, monkeypatch)


def test_images_that_do_not_fit_are_said_before_the_first_stage(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(Run, "_train_stage", lambda *_: None)
    run.train()
    assert "size_classes" not in capsys.readouterr().out  # those of the quickstart hold all but images thinner than 11 to 1
    monkeypatch.setattr(run, "processor", dataclasses.replace(run.processor, size_classes=(SizeClass(1, 32),)))
    run.train()
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("config.processor.size_classes: some images of the budget, max_pixels=7100, do not fit")
