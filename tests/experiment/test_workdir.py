"""A run's directory belongs to one config, but for what changes nothing that is learnt."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.kit import micro
from vitar_jax.errors import ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.workdir import open_workdir
from vitar_jax.runtime.config import with_defaults


def filled() -> ConfigDict:
    """With defaults, as commands see it."""
    return with_defaults(Recipe, micro.get_config())


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    open_workdir(filled(), tmp_path / "run")
    return tmp_path / "run"


def changed(**values: object) -> ConfigDict:
    config = filled()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return config


def test_the_same_again(workdir: Path) -> None:
    """A default that is written out, or left out, is no change."""
    config = filled()
    assert config.loader_threads == 1 and config.stages.grpo.objective.top_p == 1.0
    del config.stages.grpo.objective.top_p
    open_workdir(config, workdir)


def test_a_change_that_matters_is_refused_with_a_diff(workdir: Path) -> None:
    config = changed(limits__images=3, stages__sft__optimizer__learning_rate=1.0, stages__sft__log_every=7)
    config.data.more = 1
    del config.evaluation_samples
    with pytest.raises(ConfigError) as caught:
        open_workdir(config, workdir)
    before = filled().stages.sft.optimizer.learning_rate
    assert str(caught.value) == (
        f"{workdir} was made with another config (or old keys, docs/moved_keys.md); config.data.more was not set and is now 1; "
        "config.evaluation_samples was 6 and is now 0; config.limits.images was 2 and is now 3; "
        f"config.stages.sft.optimizer.learning_rate was {before} and is now 1.0; take another --workdir"
    )


def test_what_changes_nothing_that_is_learnt_is_said(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_workdir(changed(mesh__fsdp=2, stages__sft__checkpoint_every=1, stages__grpo__objective__alarms__box_area=0.5), workdir)
    assert capsys.readouterr().out.splitlines() == [
        "config.mesh.fsdp was -1 and is now 2",
        "config.stages.grpo.objective.alarms.box_area was -1.0 and is now 0.5",
        "config.stages.sft.checkpoint_every was 2 and is now 1",
    ]


def test_sizes_that_are_left_out_are_the_familys(workdir: Path) -> None:
    """A directory whose config has all sizes, as older ones do, and a recipe that leaves defaults out."""
    config = micro.get_config()
    assert "rms_norm_eps" not in config.model.text and "window_size" in config.model.vision
    config.model.text.rms_norm_eps = 1e-6
    open_workdir(config, workdir)
    config.model.text.rms_norm_eps = 1e-5
    with pytest.raises(ConfigError, match="config.model.text.rms_norm_eps was 1e-06 and is now 1e-05"):
        open_workdir(config, workdir)
