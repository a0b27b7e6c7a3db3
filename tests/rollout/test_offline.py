"""Offline play: what is kept, what is retried, and what is refused. Episodes are real, the player is a stand-in."""

import dataclasses
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import Sample, SegmentedObject
from vitar_jax.episodes.trajectory import Stream, Trajectory
from vitar_jax.episodes.trajectory_files import JSONL, read_trajectories
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.rollout.offline import Failure, kinds, play_samples, read_failures

PROCESSOR = tiny.processor(12)
LIMITS = Limits(tokens=200, turn_tokens=20)


class Stopped(Exception):
    """Stands for anything that ends a run."""


class OneTurn:
    """A player whose episodes have one turn each; it is stopped before its `stop`-th one ends."""

    workers = 2

    def __init__(self, stop: int = -1, **settings: Any):
        self.pool = ThreadPoolExecutor(2)
        self.settings = {"weights": "w"} | settings
        self.played: list[str] = []
        self._stop = stop

    def start(self) -> None:
        """Is always ready."""

    def begin(self, sample: Sample, member: int = 0) -> Episode:
        return Episode(sample, PROTOCOLS["plain"], PROCESSOR, LIMITS, member=member)

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        chat = PROCESSOR.chat
        for (episode,) in groups:
            if len(self.played) == self._stop:
                raise Stopped
            episode.add_turn([*chat.text("yes"), chat.im_end], None)
            self.played.append(episode.sample.sample_id)
            yield episode

    def record(self, episode: Episode, *, stream: Stream = "on_policy", policy_version: int = 0) -> Trajectory:
        return episode.trajectory(stream=stream, policy_version=policy_version, banned_sha256="")


def samples(*ids: str, **images: Path | str) -> list[Sample]:
    return [Sample(name, "Is it large?", (str(images[name]),) if name in images else (), "") for name in ids]


def play(directory: Path, wanted: Sequence[Sample], player: OneTurn | None = None) -> list[str]:
    """Names of what was played."""
    player = player or OneTurn()
    played = play_samples(player, wanted, count=len(wanted), directory=directory, title="test")
    assert played.episodes == len(player.played)
    return player.played


def ids(directory: Path) -> list[str]:
    return sorted(trajectory.sample_id for trajectory in read_trajectories(directory))


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    wanted = samples(*"abcdef")
    with pytest.raises(Stopped):
        play(tmp_path, wanted, OneTurn(stop=2))
    assert ids(tmp_path) == ["a", "b"]
    assert play(tmp_path, wanted) == ["c", "d", "e", "f"]
    assert play(tmp_path, wanted) == [] and ids(tmp_path) == list("abcdef")


@pytest.mark.slow
def test_every_process_plays_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other here, after one that stopped; then one again."""
    wanted = samples(*"abcdefg")
    with pytest.raises(Stopped):
        play(tmp_path, wanted, OneTurn(stop=1))
    known = threading.Barrier(2)  # neither writes before both have read
    monkeypatch.setattr("vitar_jax.rollout.offline.wait_for_all", lambda place: known.wait(timeout=60))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: int(threading.current_thread().name))
    played: dict[int, list[str]] = {}
    threads = [threading.Thread(target=lambda i=i: played.update({i: play(tmp_path, wanted)}), name=str(i)) for i in range(2)]
    threads[0].start()
    threads[0].join(timeout=1)  # waits for the other
    threads[1].start()
    for thread in threads:
        thread.join()
    assert played == {0: ["b", "d", "f"], 1: ["c", "e", "g"]}
    monkeypatch.undo()
    assert play(tmp_path, [*wanted, *samples("h")]) == ["h"] and ids(tmp_path) == list("abcdefgh")


def test_what_cannot_begin_is_counted_and_tried_again(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    wanted = samples(*"abcd", b="nowhere.png", c=damaged)
    wanted.append(Sample("e", "why " * 300, (), ""))
    output = tmp_path / "output"
    assert play(output, wanted) == ["a", "d"]
    failures = read_failures(output)
    assert [(f.sample_id, f.kind) for f in failures] == [("b", "ImageError"), ("c", "ImageError"), ("e", "TooLongError")]
    assert "nowhere.png" in failures[0].message and "damaged.png" in failures[1].message and "tokens" in failures[2].message
    assert kinds(failures) == "ImageError 2, TooLongError 1"
    noise(60, 60).save(damaged)
    assert play(output, wanted) == ["c"]
    assert [f.sample_id for f in read_failures(output)] == ["b", "e"]


def test_failures_of_a_process_that_is_no_more_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "failures-00003.jsonl").write_text('{"sample_id": "a", "kind": "ImageError", "message": ""}\n')
    assert read_failures(tmp_path) == [Failure("a", "ImageError", "")]
    assert play(tmp_path, samples("a")) == ["a"] and read_failures(tmp_path) == [] and kinds([]) == "none"


def test_a_bug_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        play(tmp_path, [Sample("a", None, (), "")])  # type: ignore[arg-type]


def test_image_settings_are_compared_where_they_are_known(tmp_path: Path) -> None:
    """Directories of older versions do not have them."""
    play(tmp_path, samples("a"))
    assert play(tmp_path, samples("a", "b"), OneTurn(images={"max_pixels": 9})) == ["b"]
    (tmp_path / "settings.json").write_text('{"weights": "w", "images": {"max_pixels": 8}}')
    with pytest.raises(ConfigError, match="other settings .images."):
        play(tmp_path, samples("a"), OneTurn(images={"max_pixels": 9}))


@pytest.mark.parametrize("before", ['{"weights": "w", "sampling": {"seed": 1}}', '"of another form"'])
def test_results_of_other_settings_are_not_mixed(before: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(before)
    with pytest.raises(ConfigError, match="sampling.*another directory"):
        play(tmp_path, samples("a"), OneTurn(sampling={"seed": 2}))
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"question": "Is it small?"}, "another question"),
        ({"options": (("A", "no"), ("B", "yes"))}, "other options"),
        ({"images": (noise(60, 60, seed=1),)}, "images"),
        ({"images": (noise(60, 60), noise(60, 60))}, "images"),
        ({"answer": "B"}, "gold answers"),
        ({"answers": ("A", "B")}, "gold answers"),
        ({"boxes": (Box(1, 2, 3, 5, "original"),)}, "boxes"),
        ({"objects": (SegmentedObject("obj1", Mask.of(np.eye(4, dtype=bool), "original"), "", True, True),)}, "boxes"),
    ],
)
def test_another_sample_by_the_same_name_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    boxes = (Box(1, 2, 3, 4, "original"),)
    first = Sample("a", "Is it large?", (noise(60, 60),), "A", (("A", "yes"), ("B", "no")), boxes, {"object": object()})
    assert play(tmp_path, [first]) == ["a"]
    assert play(tmp_path, [dataclasses.replace(first, metadata={"object": object()})]) == []
    with pytest.raises(DataError, match=f"{said}.* under the id 'a'"):
        play(tmp_path, [dataclasses.replace(first, **changes)])


def test_another_image_behind_the_same_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(60, 60).save(path)
    assert play(tmp_path / "output", samples("a", a=path)) == ["a"]
    moved = path.rename(tmp_path / "b.png")
    assert play(tmp_path / "output", samples("a", a=moved)) == []
    noise(60, 60, seed=1).save(moved)
    with pytest.raises(DataError, match="images.* under the id 'a'"):
        play(tmp_path / "output", samples("a", a=moved))


def test_a_record_of_an_older_version_is_known_by_its_question(tmp_path: Path) -> None:
    play(tmp_path, samples("a"))
    path = tmp_path / JSONL
    record = json.loads(path.read_text())
    assert record.pop("sample_sha256")
    path.write_text(json.dumps(record) + "\n")
    assert play(tmp_path, [dataclasses.replace(*samples("a"), answer="other")]) == []


def test_two_samples_of_one_name_are_refused(tmp_path: Path) -> None:
    """Also where the first was played at an earlier start."""
    twice = samples(*"abca")
    for _ in range(2):
        with pytest.raises(DataError, match="sample 'a': occurs twice"):
            play(tmp_path, twice)
    assert set(ids(tmp_path)) <= {"a", "b", "c"}
