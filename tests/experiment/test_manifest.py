"""The manifest: what a run read is recorded, and a change between two starts is refused or accepted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kit import micro
from tests.kit.images import noise
from tests.kit.streams import ADDRESS, box, trace
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.experiment.manifest import check_inputs
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import open_workdir

ROWS = "id,image,question,options,answer\n1,a.png,Which texture?,flat|rows,B\n2,a.png,Which one?,flat|rows,A\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    noise(40, 32).save(tmp_path / "a.png")
    path = tmp_path / "set.csv"
    path.write_text(ROWS)
    return path


def config(table: Path, **changes: Any) -> Any:
    """The micro recipe, whose GRPO plays the questions of a file."""
    made = micro.get_config()
    made.stages.grpo.sources = dict(mine=dict(name="questions", options=dict(file=str(table))))
    made.update(changes)
    return made


def recipe(table: Path, **changes: Any) -> Recipe:
    return Recipe.from_config(config(table, **changes))


def manifest(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "manifest.json").read_text())


def test_what_a_run_reads_is_recorded(table: Path, tmp_path: Path) -> None:
    check_inputs(recipe(table), tmp_path / "run", ["sft", "grpo"])
    recorded = manifest(tmp_path / "run")
    assert recorded["packages"]["jax"] and recorded["vitar_jax"] and {"commit", "inputs"} < recorded.keys()
    assert recorded["inputs"].keys() == {
        *(f"config.stages.sft.sources.{name}" for name in micro.get_config().stages.sft.sources),
        "config.stages.grpo.sources.mine",
        "config.evaluation",  # GRPO has probes
    }
    mine = recorded["inputs"]["config.stages.grpo.sources.mine"]
    assert {**mine, "sha256": ""} == dict(
        name="questions", split="train", options=dict(file=str(table)), samples=2, sha256=""
    ) and len(mine["sha256"]) == 64


def test_a_stage_that_begins_later_is_added(table: Path, tmp_path: Path) -> None:
    check_inputs(recipe(table), tmp_path, ["sft"])
    before = manifest(tmp_path)
    check_inputs(recipe(table), tmp_path, ["grpo"])
    inputs = manifest(tmp_path)["inputs"]
    assert before["inputs"].items() < inputs.items() and "config.stages.grpo.sources.mine" in inputs


@pytest.mark.parametrize(
    "rows, said",
    [
        (ROWS.replace("flat|rows,B", "flat|rows,A"), "has changed its content"),
        (ROWS + "3,a.png,Which?,flat|rows,A\n", "had 2 samples and now has 3"),
    ],
)
def test_a_changed_data_set_is_refused_until_it_is_accepted(
    rows: str, said: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_inputs(recipe(table), tmp_path, ["grpo"])
    check_inputs(recipe(table), tmp_path, ["grpo"])
    before = (tmp_path / "manifest.json").read_text()
    table.write_text(rows)
    check_inputs(recipe(table), tmp_path, ["sft"])  # which does not read it
    with pytest.raises(ConfigError) as caught:
        check_inputs(recipe(table), tmp_path, ["grpo"])
    assert f"manifest.json: config.stages.grpo.sources.mine: {said}, since this run began; " in str(caught.value)
    assert "--config.accept_changed_data=true" in str(caught.value)
    assert json.loads(before)["inputs"].items() < manifest(tmp_path)["inputs"].items()
    capsys.readouterr()
    check_inputs(recipe(table, accept_changed_data=True), tmp_path, ["grpo"])
    assert capsys.readouterr().out == f"config.stages.grpo.sources.mine: {said}; accepted\n"
    check_inputs(recipe(table), tmp_path, ["grpo"])


def test_changed_weights_are_refused(table: Path, tmp_path: Path) -> None:
    """The reference of a KL term is read at every start."""
    weights = tmp_path / "base" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    changed = config(table)
    changed.model.pretrained = str(weights.parent)
    check_inputs(Recipe.from_config(changed), tmp_path, ["warmup"])
    weights.write_bytes(b"2")
    with pytest.raises(ConfigError, match="config.model.pretrained: has changed its content"):
        check_inputs(Recipe.from_config(changed), tmp_path, ["warmup"])
    check_inputs(Recipe.from_config(changed), tmp_path, ["grpo"])  # starts from another stage


DAMAGED = ["", "[]", "{}", "7", '{"inputs": []}', '{"inputs": {"a": {}}}', '{"inputs": {"a": 3}}', "\xff"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_manifest_is_one_line(content: str, table: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match="manifest.json: is not a run's manifest .*; remove it"):
        check_inputs(recipe(table), tmp_path, ["sft"])


def test_a_run_notices_before_it_trains(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr(Run, "_train_stage", lambda self, name, *_: trained.append(name))
    workdir = tmp_path / "run"

    def start(**changes: Any) -> None:
        open_workdir(config(table, **changes), workdir)
        Run(recipe(table, **changes), workdir).train()

    start()
    table.write_text(ROWS.replace("flat|rows,B", "flat|rows,A"))
    with pytest.raises(ConfigError, match="has changed its content"):
        start()
    assert trained == ["warmup", "sft", "grpo"]
    start(accept_changed_data=True)
    assert trained == 2 * ["warmup", "sft", "grpo"]
    table.write_text(ROWS + ROWS.splitlines()[1].replace("1", "3", 1) + "\n")
    for stage in ("warmup", "sft", "grpo"):
        (workdir / stage / "model").mkdir(parents=True)
    start()  # all is done


def test_an_experts_traces_are_recorded_and_a_change_is_refused(table: Path, tmp_path: Path) -> None:
    made = config(table)
    made.stages.grpo.objective.experts = dict(traces=(str(tmp_path), ADDRESS))
    lines = [json.dumps(trace("1", number, "B", box(4)).to_json()) + "\n" for number in range(2)]
    (tmp_path / "traces.jsonl").write_text(lines[0])
    check_inputs(Recipe.from_config(made), tmp_path / "run", ["grpo"])
    key = "config.stages.grpo.objective.experts.traces[0]"
    assert manifest(tmp_path / "run")["inputs"][key].items() >= {"name": str(tmp_path), "samples": 1}.items()
    (tmp_path / "traces.jsonl").write_text("".join(lines))
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: has changed its content"):
        check_inputs(Recipe.from_config(made), tmp_path / "run", ["grpo"])
    (tmp_path / "traces.jsonl").unlink()
    with pytest.raises(DataError, match="traces"):
        Recipe.from_config(made).open_sources()
