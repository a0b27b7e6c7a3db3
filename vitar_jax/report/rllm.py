"""rLLM's episodes, one JSON file each: of its trainer's episode logger, and of `rllm eval`.

Both have `task`, `is_correct` and `trajectories`, each with `steps`. A step has the conversation up to it
(`chat_completions`), or only what the model wrote (`model_response`, `output`). The logger's have `episode_id` and
`training_step`, the evaluation's `id` and `eval_idx`. The forms are those of `EpisodeLogger` and `EvalEpisodeStore` (August
2026).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitar_jax.report.conversation import Context, Played, Said, played, said

_QUESTIONS = ("question", "instruction", "problem", "prompt")
_ANSWERS = ("ground_truth", "answer", "solution")


def matches(record: Mapping[str, Any]) -> bool:
    return record.keys() >= {"task", "is_correct", "trajectories"} and isinstance(record["trajectories"], list)


def read(record: Mapping[str, Any], context: Context) -> Iterator[Played]:
    """Reads an episode: one trajectory for each that has steps. An id of TASK:NUMBER is a member of the task's group."""
    task = record["task"] if isinstance(record["task"], Mapping) else {}
    known = {**(task.get("metadata") or {}), **task}
    name = str(record.get("episode_id") or record.get("id") or context.path.stem)
    sample, _, member = name.rpartition(":")
    step = int(record.get("training_step") or 0)
    trajectories = [one for one in record["trajectories"] if one.get("steps")]
    if not trajectories:
        raise ValueError("got an episode without steps")
    for trajectory in trajectories:
        label = trajectory.get("name") or ""
        sample_id = f"{sample or name}/{label}" if len(trajectories) > 1 else sample or name
        reward = trajectory.get("reward")
        yield played(
            _messages(trajectory["steps"], known, context),
            context,
            sample_id=sample_id,
            group_id=f"{step}/{sample_id}",
            member=int(member) if member.isdigit() and sample else None,
            protocol="rllm",
            policy_version=step,
            answer=next((known[key] for key in _ANSWERS if known.get(key) is not None), None),
            rewards={} if reward is None else {"reward": float(reward)},
            score=float(bool(record["is_correct"])),
            end_reason=str(record.get("termination_reason") or ""),
            metadata={"trajectory": label} if label else {},
        )


def _messages(steps: Sequence[Mapping[str, Any]], task: Mapping[str, Any], context: Context) -> list[Said]:
    """Returns a trajectory's conversation. Steps whose conversations do not go on from one another follow each other."""
    messages: list[Any] = []
    for number, step in enumerate(steps):
        chat = step.get("chat_completions") or []
        if not chat:
            written = step.get("model_response") or step.get("output") or ""
            chat = [*messages, {"role": "assistant", "content": str(written), "reasoning": step.get("thought") or None}]
            if not number:
                asked = step.get("input") or next((task[key] for key in _QUESTIONS if task.get(key)), "")
                chat = [{"role": "user", "content": asked if isinstance(asked, str | list) else str(asked)}, *chat]
        messages = list(chat) if chat[: len(messages)] == messages else messages + list(chat)
    return [said(message, context) for message in messages]
