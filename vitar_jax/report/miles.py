"""miles' conversations: DUMP/trajectory/ROLLOUT.jsonl, with `--dump-details=DUMP` or `--save-debug-trajectory-data`.

A line has `sample_index`, `group_index`, `status`, `reward`, `prompt` and `messages` (those of the prompt, and all turns). The
form is that of `trajectory_rows` in miles (August 2026). Its rollout_data/*.pt are pickles, which are not opened.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vitar_jax.report.conversation import Context, Played, Said, played, said
from vitar_jax.report.spoken import plain_chat, split_images

_END = {"completed": "answered", "truncated": "overflow"}


def matches(record: Mapping[str, Any]) -> bool:
    return record.keys() >= {"sample_index", "group_index", "status", "messages"}


def read(record: Mapping[str, Any], context: Context) -> Iterator[Played]:
    """Reads a line. A prompt that is text, and therefore not among the messages, comes before them."""
    messages = [said(message, context) for message in record["messages"]]
    if messages and messages[0].role == "assistant" and isinstance(record.get("prompt"), str):
        asked = [Said(role, tuple(split_images(text))) for role, text in plain_chat(record["prompt"], "user")]
        messages = [one for one in asked if one.role != "assistant" or one.text] + messages
    step = context.path.stem.removeprefix("eval_")
    name = record["group_index"] if record["group_index"] is not None else record["sample_index"]
    reward, status = record.get("reward"), str(record["status"])
    yield played(
        messages,
        context,
        sample_id=f"{context.path.stem}-{name}",
        protocol="miles",
        policy_version=int(step) if step.isdigit() else 0,
        rewards={} if reward is None else {"reward": float(reward)},
        end_reason=_END.get(status, status),
        metadata={"sample_index": record["sample_index"]},
    )
