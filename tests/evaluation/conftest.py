"""Made-up episodes: only what scoring and reporting read is realistic; and a browser."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.evaluation.hostile import HOSTILE
from vitar_jax.episodes.boxes import Box
from vitar_jax.episodes.trajectory import Sampling, Trajectory, TrajectoryImage, Turn
from vitar_jax.evaluation.report import ReportSection, write_report
from vitar_jax.evaluation.scoring import score

SIZE = 448
VIEW = 84


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    return _make_trajectory


def _make_trajectory(
    index: int = 0,
    *,
    box: tuple[float, ...] | None = (100.0, 100.0, 200.0, 200.0),
    gold: tuple[float, ...] | None = (120.0, 120.0, 180.0, 180.0),
    answer: str | None = "B",
    error: tuple[str, str] | None = None,
    thought: str = "spot upper left zoom close",
    **changes: Any,
) -> Trajectory:
    """A zoom to `box` (a turn that is no JSON where None), then the answer (a turn limit where None)."""
    rng = np.random.default_rng(index)
    picture = Image.fromarray(rng.integers(0, 255, (SIZE, SIZE), np.uint8))
    images = [TrajectoryImage(picture, (1, 6, 6), (VIEW, VIEW))]
    if box is None:
        turns = [Turn(0, 2, "not JSON", error=error or ("bad_json", "The turn is not one JSON object."))]
    else:
        seen = None
        if error is None:
            seen = 1
            zoomed = picture.resize((VIEW, VIEW), box=box)  # type: ignore[arg-type]
            images.append(TrajectoryImage(zoomed, (1, 6, 6), (VIEW, VIEW), turn=0))
        small = tuple(value * VIEW / SIZE for value in box)
        action = {"name": "zoom", "arguments": {"box": [list(small)]}}
        turns = [Turn(0, 2, "{}", thought, action, (small,), (box,), error, seen)]
    if answer is not None:
        action = {"name": "Terminate", "arguments": {"answer": answer}}
        turns.append(Turn(2, 4, "{}", "shows rows", action))
    trajectory = Trajectory(
        sample_id=f"phantom-{index}",
        group_id=f"phantom-{index}",
        member=0,
        stream="on_policy",
        policy_version=3,
        protocol="vitar",
        sampling=Sampling(),
        banned_sha256="0" * 64,
        question="Which texture?",
        options=(("A", "flat"), ("B", "rows"), ("C", "columns"), ("D", "checks")),
        answer="B",
        boxes=(Box(*gold, frame="original"),) if gold else (),  # type: ignore[call-arg]
        token_ids=(1, 2, 3, 4),
        loss_mask=(1, 1, 1, 1),
        logprobs=(-0.5, -0.5, -0.5, -0.5),
        position_ids=((0, 1, 2, 3),) * 3,
        vision_index=(-1,) * 4,
        images=tuple(images),
        turns=tuple(turns),
        predicted_answer=answer,
        end_reason="answered" if answer is not None else "turn_limit",
        rewards={"accuracy": float(answer == "B"), "format": 0.5},
    )
    return dataclasses.replace(trajectory, **changes)


@pytest.fixture
def hostile(make_trajectory) -> Trajectory:
    """A trajectory in which everything a model or a data set can write is hostile."""
    trajectory = make_trajectory(0, thought=HOSTILE, answer=HOSTILE, sample_id="a/b#c%2F?<i>")
    action = {"name": HOSTILE, "arguments": {"__proto__": HOSTILE, "image": [1]}}
    broken = Turn(2, 4, HOSTILE, HOSTILE, action, error=("bad_box", HOSTILE))
    return dataclasses.replace(
        trajectory,
        question=HOSTILE,
        options=(("A", HOSTILE), ("B", "rows")),
        turns=(trajectory.turns[0], broken, *trajectory.turns[1:]),
        metadata={HOSTILE: HOSTILE, "__proto__": 1},
    )


@pytest.fixture
def report(tmp_path, make_trajectory, hostile) -> tuple[Path, dict[str, list[Trajectory]]]:
    """A report of two sections, and the trajectories in them."""
    sections = {
        "Two looks <after> GRPO": [
            hostile,
            make_trajectory(1),
            make_trajectory(1, member=1, answer="A", metadata={HOSTILE: "x"}),
        ],
        "two looks: after GRPO": [make_trajectory(1), make_trajectory(2, box=None, answer=None)],
    }
    page = write_report(
        tmp_path / "report",
        [ReportSection(name, iter(trajectories)) for name, trajectories in sections.items()],
        title=f"Title {HOSTILE}",
        summary={name: score(trajectories).to_json() for name, trajectories in sections.items()},
        pieces=lambda token_ids: [f"{HOSTILE}{token_id}" for token_id in token_ids],
        images=True,
    )
    return page, sections


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Without one the test is skipped, except under continuous integration (`CI=true`), where it fails."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = f"needs a browser: none of {', '.join(names)} is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    quiet = (
        "--disable-gpu --disable-quic --no-first-run --disable-sync --disable-background-networking --disable-component-update"
    )
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=quiet.split())
        yield opened
        opened.close()
