"""Dialogues: a data set's samples, each with a search as its demonstration."""

import importlib
import json
import logging
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from data_prep.gaze.__main__ import main
from tests.kit.gaze import write_questions
from tests.kit.images import noise
from tests.kit.processes import ROOT
from tests.kit.recipes import load_config
from vitar_jax.data.fingerprint import fingerprint
from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.data.traces import Traces
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.experiment.recipe import Recipe


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """Returns a question file and the traces of its questions."""
    file, output = write_questions(tmp_path / "data", 5), tmp_path / "traces"
    flags = ["--expert=annotations", "--wrong_answers=0.6", "--searches=4", "--nucleus=top_p"]
    main([f"--set={file}", f"--output={output}", *flags])
    return file, output


def opened(file: Path, traces: Path, **options: Any) -> Source:
    given = {"of": "questions", "file": str(file), "traces": str(traces)} | options
    return load_source(SourceConfig("data_prep.gaze:source", options=given))


def test_every_search_is_a_demonstration(made: tuple[Path, Path]) -> None:
    file, output = made
    traces = [trace for sample_id in Traces([output]) for trace in Traces([output])[sample_id]]
    everything = opened(file, output, searches="all")
    samples = [everything[number] for number in range(len(everything))]
    assert [sample.demonstration for sample in samples] == [trace.demonstration() for trace in traces]
    assert [sample.sample_id for sample in samples] == [f"{trace.sample_id}/search-{trace.search}" for trace in traces]
    assert {sample.question for sample in samples} == {"Which texture?"}
    right = opened(file, output)
    shown = [right[number].demonstration for number in range(len(right))]
    assert shown == [trace.demonstration() for trace in traces if trace.right] and 0 < len(shown) < len(traces)
    assert all(sample.answer == sample.demonstration.answer.text for sample in map(right.__getitem__, range(len(right))))  # type: ignore[union-attr]
    assert len({fingerprint(source) for source in (right, everything, opened(file, output))}) == 2


def test_what_is_missing_is_told(made: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, output = made
    more = write_questions(tmp_path / "data", 7)
    with caplog.at_level(logging.WARNING):
        assert len(opened(more, output, searches="all")) == 20
    assert "no searches of 2 of the 7 samples of questions, split train" in caplog.text
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "Is it large?"}\n')
    with pytest.raises(DataError, match="traces.jsonl: no right searches of the 1 samples of questions.*another data set"):
        opened(other, output)
    with pytest.raises(ConfigError, match="searches: got 'wrong', expected right or all"):
        opened(file, output, searches="wrong")
    noise(120, 90, "L", seed=99).save(tmp_path / "data" / "0.png")
    changed = opened(file, output, searches="all")
    with pytest.raises(DataError, match=r"traces.jsonl:1: sample 'q/0': its image has the hash"):
        changed[0]
    assert changed[4].demonstration


@pytest.mark.slow
def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands run one after another, and its recipe reads what they wrote."""
    page = (ROOT / "docs" / "medeyes.md").read_text().replace("runs/", f"{tmp_path}/").replace("\\\n", " ")
    commands = re.findall(r"^    python -m (\S+) (.*)", page, re.MULTILINE)
    assert [module for module, _ in commands] == ["data_prep.phantom", "data_prep.curate", "data_prep.gaze"]
    for module, flags in commands:
        monkeypatch.setattr("sys.argv", [module, *flags.split()])
        importlib.import_module(module if module == "data_prep.curate" else f"{module}.__main__").main()
    assert json.loads((tmp_path / "traces" / "report.json").read_text())["share_right"] == 1
    (recipe,) = re.findall(r"^    (config\.stages.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    config = load_config("quickstart_smoke")
    exec(textwrap.dedent("    " + recipe), {"config": config})
    (gazes,) = Recipe.from_config(config).stages["sft"].sources.values()
    shown = load_source(gazes)[0].demonstration
    assert gazes.protocol == "medeyes" and shown and shown.looks[0].tool == "Gaze"
