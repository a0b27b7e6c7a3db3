"""VQA-RAD's real questions and images, searched by an expert behind an endpoint, and played with the real tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.gaze.__main__ import main
from tests.kit.endpoint import serving
from tests.kit.gaze import expert_reply
from tests.kit.recipes import load_config
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.data.traces import Traces
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.positions import SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor
from vitar_jax.runtime.crash_safe import read_json_lines

SET = "data_prep.sets.vqa_rad:source"


def search_all(test_data: Path, output: Path, *flags: str) -> dict[str, Any]:
    options = json.dumps({"directory": str(test_data / "vqa_rad")})
    with serving(expert_reply) as server:
        asks = ["--expert=endpoint", f"--endpoint={server.url}", "--model=expert", "--retries=0"]
        main([f"--set={SET}", f"--options={options}", f"--output={output}", *asks, *flags])
    return json.loads((output / "report.json").read_text())


def play(test_data: Path, traces: Path, every: int) -> int:
    """Plays every n-th dialogue with the real tokenizer. Returns how many were played."""
    processor = Processor(
        Chat(test_data / "qwen2_5_vl_7b_instruct"),
        ImageProcessor(min_pixels=4 * 28 * 28, max_pixels=256 * 28 * 28),
        (SizeClass(1024, 64),),
        layout=VisionLayout(112),
    )
    options = {"of": SET, "directory": str(test_data / "vqa_rad"), "traces": str(traces), "searches": "all"}
    dialogues = load_source(SourceConfig("data_prep.gaze:source", options=options))
    opened, played = Traces([traces]), 0
    for number in range(0, len(dialogues), every):
        sample = dialogues[number]
        name, _, search = sample.sample_id.rpartition("/search-")
        trace = opened[name][int(search)]
        episode = demonstrate(sample, PROTOCOLS["medeyes"], processor, Limits(tokens=6000, turn_tokens=1000, images=6))
        assert episode.predicted_answer == trace.answer and len(episode.images) == 1 + len(trace.looks)
        assert episode.images[0].sha256 == trace.image_sha256 and not any(turn.error for turn in episode.turns)
        played += 1
    return played


@pytest.mark.slow
def test_some_of_vqa_rad(test_data: Path, tmp_path: Path) -> None:
    report = search_all(test_data, tmp_path, "--count=6", "--searches=2", "--most_gazes=2")
    assert report["questions"] == 6 and report["searches"] == 12 and report["failed"] == {}
    assert play(test_data, tmp_path, every=4) == 3


def train(test_data: Path, traces: Path, workdir: Path, steps: int) -> list[dict[str, Any]]:
    """Trains a tiny model with the stage of MedEyes' recipe and the real processor. Returns the metrics of each step."""
    config, small = load_config("medeyes_3b"), load_config("vqa_rad_small")
    small.data.processor = str(test_data / "qwen2_5_vl_7b_instruct")
    config.model, config.processor, config.rollout = small.model, small.processor, small.rollout
    config.limits = dict(tokens=1024, turn_tokens=96, images=5)
    config.rollout.prefill_lengths = (64, 320)
    del config["data"]
    directory = str(test_data / "vqa_rad")
    config.evaluation = dict(name=SET, split="test", options=dict(directory=directory))
    stage = config.stages.grpo
    stage.sources = dict(vqa_rad=dict(name=SET, options=dict(directory=directory)))
    stage.update(steps=steps, batch_size=1, micro_rows=0, logprob_chunk=64, probe_every=0, checkpoint_every=steps)
    # To random weights the expert's tokens are so unlikely that the published mixture has no gradient.
    stage.objective.experts.update(traces=(str(traces),), missing="error", mu_peak=0.5, mu_valley=0.5)
    stage.optimizer.learning_rate = 5e-3
    Run(Recipe.from_config(config), workdir).train()
    return list(read_json_lines(workdir / "grpo" / "metrics.jsonl", dict))


@pytest.mark.sweep
def test_the_whole_of_vqa_rad(test_data: Path, tmp_path: Path) -> None:
    report = search_all(test_data, tmp_path)
    assert report["questions"] == 1793 and report["searches"] == 6 * 1793 and report["failed"] == {} == report["skipped"]
    assert play(test_data, tmp_path, every=50) == 216

    rows = train(test_data, tmp_path, tmp_path / "run", steps=10)
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        assert row["expert/missing"] == row["data/skipped"] == 0 and row["expert/reward/grammar"] == pytest.approx(0.2)
    assert rows[-1]["expert/supervised"] < 0.8 * rows[0]["expert/supervised"] and rows[-1]["expert/supervised"] > 0
