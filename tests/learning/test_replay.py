"""Replay: a step learns from earlier episodes of its samples, read from their records, the same after a restart."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tests.kit.streams import GROUPS, IMAGE, MEMBERS, make_batches
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_records
from vitar_jax.errors import DataError
from vitar_jax.learning.experts import ExpertsConfig
from vitar_jax.learning.grpo_batches import GRPOBatches
from vitar_jax.learning.replay import Replay
from vitar_jax.processing.packing import Batch


class Epochs:
    """Three samples again and again. The first episode of each group is right, the second is wrong."""

    def __getitem__(self, number: int) -> Sample:
        return Sample(f"{number % GROUPS}-1", "Which?", (IMAGE,), "B", (("A", "flat"), ("B", "rows")))


def replaying(directory: Path, kept: list[Trajectory], replay: Any = "newest", since: int = 0) -> GRPOBatches:
    config = ExpertsConfig(replay=replay, searches=3)
    batches = make_batches("1", kept, experts=config, replay=lambda config: Replay(config, directory, since))
    batches.samples = Epochs()  # type: ignore[assignment]
    return batches


def play(batches: GRPOBatches, number: int) -> tuple[Batch, dict[str, float]]:
    state: Any = SimpleNamespace(step=number, model=None)
    return batches.next(state)


@pytest.mark.parametrize("replay, versions, right", [("newest", [1, 1, 0], "BAB"), ("best", [1, 0, 1], "BBA")])
def test_earlier_episodes_of_a_sample_come_back_newest_or_best_first(
    replay: Any, versions: list[int], right: str, tmp_path: Path
) -> None:
    kept: list[Trajectory] = []
    batches = replaying(tmp_path, kept, replay)
    missing = [play(batches, number)[1]["expert/missing"] for number in range(2)]
    assert missing == pytest.approx([1, 1 / 3])
    before = [t for t in kept if t.stream == "on_policy"]
    kept.clear()
    batch, scalars = play(batches, 2)
    assert scalars["expert/missing"] == 0
    for group in {t.group_id for t in kept}:
        found = [t for t in kept if t.group_id == group and t.stream == "expert"]
        assert [t.metadata["replayed_from"] for t in found] == versions
        assert "".join(str(t.predicted_answer) for t in found) == right
        assert [(t.member, t.policy_version) for t in found] == [(MEMBERS + n, 2) for n in range(3)]
        for one in found:
            source = next(
                t
                for t in before
                if (t.group_id, t.policy_version, t.predicted_answer)
                == (group, one.metadata["replayed_from"], one.predicted_answer)
            )
            assert (one.token_ids, one.logprobs, one.rewards, one.turns) == (
                source.token_ids,
                source.logprobs,
                source.rewards,
                source.turns,
            )
    learnt = batch.loss_mask & (batch.extras["expert"] == 1)
    assert learnt.sum() == sum(sum(t.loss_mask) for t in kept if t.stream == "expert")
    assert set(batch.extras["old_logprobs"][learnt].tolist()) == {-0.5}  # those they were drawn with


def test_a_restart_replays_the_same(tmp_path: Path) -> None:
    def leaves(batch: Batch) -> list[bytes]:
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(batch)]

    batches = replaying(tmp_path, [])
    for number in range(2):
        play(batches, number)
    state = batches.get_state()
    expected = [leaves(play(batches, number)[0]) for number in (2, 3)]
    lines = (tmp_path / "trajectories.jsonl").read_bytes()
    with (tmp_path / "trajectories.jsonl").open("ab") as file:
        file.write(b'{"sample_id": "0-1", "poli')  # killed while it wrote
    TrajectoryWriter(tmp_path, 1).path.write_bytes(lines)  # of a start with two processes
    again = replaying(tmp_path, [], since=2)
    again.set_state(state)
    assert len((tmp_path / "trajectories-00001.jsonl").read_bytes().splitlines()) == 2 * GROUPS * MEMBERS
    (tmp_path / "trajectories-00001.jsonl").write_bytes(b"")
    assert [leaves(play(again, number)[0]) for number in (2, 3)] == expected
    assert (tmp_path / "trajectories.jsonl").read_bytes() == lines
    assert len(list(read_records(tmp_path))) == 4 * GROUPS * MEMBERS


def test_another_prompt_or_image_is_not_replayed_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    batches = replaying(tmp_path, [])
    play(batches, 0)
    path = tmp_path / "trajectories.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["token_ids"][3] += 1
    records[2]["images"][0]["sha256"] = records[2]["images"][1]["sha256"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = replaying(tmp_path, [], since=1)
    again.taken = GROUPS
    assert play(again, 1)[1]["expert/missing"] == pytest.approx(1 - 4 / 9)
    with path.open("a") as file:
        file.write('{"sample_id": "x"}\n')
    with pytest.raises(DataError, match="trajectories.jsonl: a line is damaged"):
        play(again, 2)


def test_records_of_the_same_step_by_a_faster_process_are_left_for_the_next(tmp_path: Path) -> None:
    kept: list[Trajectory] = []
    batches = replaying(tmp_path, kept)
    play(batches, 0)
    lines = (tmp_path / "trajectories.jsonl").read_text().replace('"policy_version": 0', '"policy_version": 1')
    (tmp_path / "trajectories-00001.jsonl").write_text(lines)
    kept.clear()
    play(batches, 1)
    assert {t.metadata["replayed_from"] for t in kept if t.stream == "expert"} == {0}
