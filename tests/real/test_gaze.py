"""VQA-RAD's real questions and images, searched by an expert behind an endpoint, and played with the real tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.gaze.__main__ import main
from tests.kit.endpoint import serving
from tests.kit.gaze import expert_reply
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.data.traces import Traces
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.positions import SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor

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


@pytest.mark.sweep
def test_the_whole_of_vqa_rad(test_data: Path, tmp_path: Path) -> None:
    report = search_all(test_data, tmp_path)
    assert report["questions"] == 1793 and report["searches"] == 6 * 1793 and report["failed"] == {} == report["skipped"]
    assert play(test_data, tmp_path, every=50) == 216
