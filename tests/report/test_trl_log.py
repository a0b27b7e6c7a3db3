"""What TRL itself logs opens: its trainer writes the file here."""

from collections import defaultdict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.report.test_readers import TRL, check_two_turns
from vitar_jax.report.__main__ import Opener
from vitar_jax.report.conversation import Context


@pytest.mark.slow
def test_a_file_that_trl_logs_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an image in each message that has one, and messages of both of the forms that TRL's data sets have."""
    import transformers
    from trl import GRPOTrainer

    monkeypatch.setattr(transformers.Trainer, "log", lambda *_: None)
    trainer: Any = object.__new__(GRPOTrainer)
    logs: dict[str, Any] = {name: deque([value] * 2) for name, value in TRL.items() if name in ("prompt", "completion")}
    logs |= {"rewards": {"accuracy_reward": deque([0.0, 1.0])}, "extra": {"solution": deque(["no", "no"])}}
    logs |= {"advantages": deque([-0.5, 0.5]), "images": deque()}
    (tmp_path / "completions").mkdir()
    vars(trainer).update(
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        _logs=logs,
        accelerator=SimpleNamespace(is_main_process=True),
        log_completions=True,
        num_completions_to_print=0,
        log_unique_prompts=False,
        state=SimpleNamespace(global_step=3),
        args=SimpleNamespace(report_to=[], output_dir=str(tmp_path), log_completions_hub_repo=None),
    )
    monkeypatch.setattr("trl.trainer.grpo_trainer.is_rich_available", lambda: False)
    trainer.log({})
    (path,) = (tmp_path / "completions").iterdir()
    opener = Opener(Context(path))
    played = list(opener.trajectories([path]))
    assert opener.read == {"trl": 2} and not opener.unread
    for number, one in enumerate(played):
        check_two_turns(one.trajectory)
        assert (one.trajectory.sample_id, one.trajectory.member) == (f"{path.stem}-0", number)
        assert one.trajectory.rewards == {"accuracy_reward": float(number)} and one.trajectory.policy_version == 3
        assert [image.turn for image in one.trajectory.images] == [None, 0]
