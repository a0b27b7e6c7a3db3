"""Dialogues: a data set's samples, each with a search as its demonstration."""

import logging
from pathlib import Path
from typing import Any

import pytest

from data_prep.gaze.__main__ import main
from tests.kit.gaze import write_questions
from tests.kit.images import noise
from vitar_jax.data.fingerprint import fingerprint
from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.data.traces import Traces
from vitar_jax.errors import ConfigError, DataError


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
