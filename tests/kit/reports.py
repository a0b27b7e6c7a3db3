"""Fixtures: synthetic trajectories, reports of them, and a browser that opens reports."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.kit import trajectories
from tests.kit.text import HOSTILE
from vitar_jax.episodes.trajectory import Trajectory, Turn
from vitar_jax.evaluation.report import ReportSection, write_report


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    return trajectories.make_trajectory


@pytest.fixture
def hostile(make_trajectory) -> Trajectory:
    """Returns a trajectory in which everything that a model or a data set can write is hostile."""
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
    """Writes a report of two sections. Returns its page and the trajectories by section."""
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
        summary={name: {"n": len(trajectories), "iou": 0.5} for name, trajectories in sections.items()},
        pieces=lambda token_ids: [f"{HOSTILE}{token_id}" for token_id in token_ids],
        images=True,
    )
    return page, sections


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Yields a headless Chromium. If none is installed, skips the test, or fails it in continuous integration (`CI=true`)."""
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


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Yields a function that opens a page. Finally asserts that no page had an error or left its own files or server."""
    contexts, complaints = [], []

    def open_page(
        address: str,
        *,
        width: int = 1280,
        height: int = 800,
        scheme: Any = "light",
        ready: str = "#position",
        refused: bool = False,  # whether a server may refuse requests, which the browser logs
        **options: Any,
    ) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        allowed = ("data:", "file:" if address.startswith("file:") else address.partition("#")[0])
        page.on("pageerror", lambda error: complaints.append(str(error)))
        expected = "Failed to load resource: the server responded with a status of 4" if refused else "\0"
        page.on("console", lambda said: None if said.text.startswith(expected) else complaints.append(said.text))
        page.on("request", lambda asked: None if asked.url.startswith(allowed) else complaints.append(asked.url))
        page.goto(address)
        expect(page.locator(ready)).not_to_be_empty()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def group(make_trajectory) -> list[Trajectory]:
    """Returns two groups of three, with probabilities, masks, advantages, a tool failure, and an episode without a reward."""
    first = make_trajectory(0, metadata={"organ": "brain"}, rewards={"accuracy": 1.0, "length": -0.25}, advantage=1.0)
    members: list[dict[str, Any]] = [
        {"logprobs": (-0.01, -0.5, -2.0, -6.0)},
        {"logprobs": (None, -0.5, -0.5, -0.5), "loss_mask": (0, 1, 1, 1), "advantage": -2.0},
        {"predicted_answer": "A", "rewards": None, "advantage": None},
    ]
    other = make_trajectory(1, box=(10.0, 20.0, 30.0, 40.0), error=("bad_box", "No such box."), metadata={"organ": "lung"})
    other = dataclasses.replace(other, protocol="zoom", rewards={"accuracy": 0.0})
    return [
        *(dataclasses.replace(first, member=number, **changes) for number, changes in enumerate(members)),
        *(dataclasses.replace(other, member=number, sample_id="z", group_id="z") for number in range(3)),
    ]


@pytest.fixture
def open_group(tmp_path, group, show) -> Callable[..., Page]:
    def open_report(place: str = "", *, images: bool = True, single_file: bool = False, **how: Any) -> Page:
        page = write_report(
            tmp_path / "report",
            [ReportSection("played", group)],
            title="t",
            pieces=lambda token_ids: [f"<{token_id}>" for token_id in token_ids],
            images=images,
            single_file=single_file,
        )
        return show(f"{page.as_uri()}{place}", **how)

    return open_report
