"""A run's directory belongs to one config, but for what changes nothing that is learnt."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from tests.kit import micro
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import trainer
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
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
    more: dict[str, object] = {
        "stages__grpo__probe_interventions": ("blank",),
        "stages__grpo__objective__packed": True,
        "stages__grpo__objective__alarms__box_area": 0.5,
    }
    open_workdir(changed(mesh__fsdp=2, stages__sft__checkpoint_every=1, **more), workdir)
    assert capsys.readouterr().out.splitlines() == [
        "config.mesh.fsdp was -1 and is now 2",
        "config.stages.grpo.objective.alarms.box_area was -1.0 and is now 0.5",
        "config.stages.grpo.objective.packed was false and is now true",
        'config.stages.grpo.probe_interventions was [] and is now ["blank"]',
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


SOURCE = dict(options=dict(task="look"), split="train", protocol="", weight=1.0)
SFT = dict(protocol="vitar", steps=4, batch_size=4, optimizer=dict(learning_rate=0.003))
REWARDS = dict(vitar=dict(function="vitar", weights=dict(iou=2.0), timeout=60.0))
ALARMS = dict(action_share=0.5, box_area=0.8)
# What every stage had before objectives, whether it used them or not.
UNUSED = dict(group_size=8, temperature=1.0, top_p=1.0, alarms=ALARMS, rewards=REWARDS, too_long="error", pack=False)
TOWER = dict(vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
TOWER.update(num_key_value_heads=2, mrope_section=[2, 3, 3], tie_word_embeddings=True)
REST = dict(limits=dict(tokens=104, turn_tokens=28, images=2), schedule=["sft", "grpo"], evaluation_samples=6)
OLD: dict[str, Any] = dict(
    REST,
    model=dict(text=dict(TOWER, rms_norm_eps=1e-6, max_position_embeddings=128_000), dtype="float32"),
    processor=dict(tokenizer="data_prep.phantom_tokenizer", size_classes=[[1, 36]]),
    rollout=dict(slots=4, extend_lengths=[24, 40], extend_rows=16),
    stages=dict(
        sft=dict(SFT, **UNUSED | dict(pack=True), sources=dict(a=dict(SOURCE, name="phantom")), grpo=None),
        grpo=dict(
            SFT,
            **UNUSED | dict(group_size=2, top_p=0.9),
            sources=dict(a=dict(SOURCE, name="built"), b=dict(SOURCE, name="questions"), c=dict(SOURCE, name="vqa_rad")),
            grpo=dict(clip_low=0.3, epochs=2),
        ),
    ),
    evaluation=dict(SOURCE, name="phantom"),
    benchmarks=dict(rad=dict(SOURCE, name="built", protocol="direct")),
)


def rewritten() -> ConfigDict:
    """`OLD` as a recipe says it today."""
    names = dict(a="data_prep.built:source", b="questions", c="data_prep.sets.vqa_rad:source")
    sources = {key: dict(SOURCE, name=name) for key, name in names.items()}
    phantom = dict(SOURCE, name="data_prep.phantom:source")
    grpo = dict(name="grpo", group_size=2, top_p=0.9, clip_low=0.3, epochs=2, rewards=REWARDS)
    config = dict(
        REST,
        model=dict(text=TOWER),
        processor=dict(tokenizer="data_prep.phantom.tokenizer:save", size_classes=[[1, 36]]),
        rollout=dict(slots=4, prefill_lengths=[24, 40], prefill_rows=16),
        stages=dict(
            sft=dict(SFT, sources=dict(a=phantom), objective=dict(name="sft", pack=True, rewards=REWARDS)),
            grpo=dict(SFT, sources=sources, objective=grpo),
        ),
        evaluation=phantom,
        benchmarks=dict(rad=dict(source=sources["a"], protocol="direct")),
    )
    return ConfigDict(json.loads(json.dumps(config)))  # No value is shared.


def test_a_directory_of_old_keys_and_names_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No other difference is printed, so every value equals the old one but the default of what is too long."""
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    open_workdir(rewritten(), tmp_path)
    assert capsys.readouterr().out == 'config.stages.sft.objective.too_long was "error" and is now "skip"\n'
    config = rewritten()
    config.benchmarks.rad.rules = ("exact",)
    config.proof = dict(title="Two looks", rows=dict(), order=(), episode="none" * 100)
    open_workdir(config, tmp_path)
    benchmark, proof, _ = capsys.readouterr().out.splitlines()
    assert benchmark == 'config.benchmarks.rad.rules was [] and is now ["exact"]'
    assert proof.startswith("config.proof was null and is now {") and len(proof) <= 200


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "processor.tokenizer",
            "elsewhere",
            'config.processor.tokenizer was "data_prep.phantom.tokenizer:save" and is now "else',
        ),
        (
            "evaluation.name",
            "mine.py:cases",
            'config.evaluation.name was "data_prep.phantom:source" and is now "mine.py:cases"',
        ),
        ("rollout.prefill_rows", 8, "config.rollout.prefill_rows was 16 and is now 8"),
        ("stages.grpo.objective.clip_low", 0.2, "config.stages.grpo.objective.clip_low was 0.3 and is now 0.2"),
        ("stages.sft.objective.pack", False, "config.stages.sft.objective.pack was true and is now false"),
        ("stages.grpo.objective.rewards.vitar.weights.iou", 1.0, "rewards.vitar.weights.iou was 2.0 and is now 1.0"),
        ("model.text.hidden_size", 64, "config.model.text.hidden_size was 32 and is now 64"),
    ],
)
def test_an_old_directory_of_another_config_is_refused(key: str, value: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    config = rewritten()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError) as caught:
        open_workdir(config, tmp_path)
    assert said in str(caught.value) and str(caught.value).count(" was ") == 2  # once in "was made with"


def test_an_old_key_that_is_gone_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    old = copy.deepcopy(OLD)
    old["stages"]["sft"].update(shuffle=7)
    old["evaluation"]["name"] = "mine"
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError) as caught:
        open_workdir(rewritten(), tmp_path)
    assert 'config.evaluation.name was "mine" and is now "data_prep.phantom:source"; ' in str(caught.value)
    assert "config.stages.sft.shuffle was 7 and is now not set" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"stages": {"sft": 3}}', json.dumps(OLD)[:-9], "\0"])
def test_a_damaged_config_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="config.json: "):
        open_workdir(rewritten(), tmp_path)


class Reached(Exception):
    """What is read after all checks."""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a run with minibatches, up to the point where it reads its inputs."""

    def read(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(trainer, "check_inputs", read)

    def start(**values: object) -> None:
        config = filled()
        config.stages.grpo.batch_size = 16
        config.stages.grpo.objective.minibatches = 2
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
        Run(Recipe.from_config(config), tmp_path).train()

    return start


def test_minibatches_stay_as_they_are_split(start: Any, tmp_path: Path) -> None:
    """Another mesh, and other rows at a time, put other episodes together."""
    path = tmp_path / "grpo" / "minibatches.json"
    for _ in range(2):
        with pytest.raises(Reached):
            start(stages__grpo__micro_rows=1)
    assert json.loads(path.read_text()) == {"processes": 1, "data_shards": 8, "micro_batches": 4}
    assert not (tmp_path / "sft" / "minibatches.json").exists()  # it has none
    with pytest.raises(ConfigError, match="minibatches were split by .*micro_batches=4, and would now be by .*micro_batches=2"):
        start(stages__grpo__micro_rows=2)
    with pytest.raises(ConfigError, match="split by processes=1, data_shards=8.* by processes=1, data_shards=4"):
        start(stages__grpo__micro_rows=1, mesh__tensor=2)
    path.write_text("no JSON")
    with pytest.raises(ConfigError, match="minibatches.json: is damaged"):
        start(stages__grpo__micro_rows=1)
    (tmp_path / "grpo" / "model").mkdir()  # a finished stage is not split again
    with pytest.raises(Reached):
        start(stages__grpo__micro_rows=2)
