"""Probes with samples that cannot be played, and warnings before the first step."""

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kit import micro
from tests.kit.images import noise
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError
from vitar_jax.experiment import trainer
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
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
    played = run._probe("grpo", run.recipe.stages["grpo"])
    assert played is not None
    return played(STATE)


def test_a_probe_leaves_out_samples_that_cannot_be_played_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = probe(run, 0, monkeypatch), probe(run, 2, monkeypatch)
    assert whole["probe/samples"] == 4 and not whole["probe/skipped"]
    assert (part["probe/samples"], part["probe/skipped"], part["probe/skipped/image"]) == (2, 2, 2)
    assert part["probe/reward/mean"] == whole["probe/reward/mean"] and part.keys() == whole.keys()


@pytest.mark.parametrize("bad", [3, 4])
def test_a_probe_of_bad_samples_ends_the_run(bad: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"{bad} of 4 samples of the probe were skipped.*: sample {bad - 1}: nowhere.png"):
        probe(run, bad, monkeypatch)


def test_images_that_do_not_fit_are_said_before_the_first_stage(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(Run, "_train_stage", lambda *_: None)
    run.train()
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("config.processor.size_classes: images thinner than 11.0 to 1 do not fit and are skipped")
