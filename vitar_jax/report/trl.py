"""TRL's logged completions: OUTPUT_DIR/completions/completions_STEP.parquet, with `log_completions=True`.

A row has `step`, `prompt` and `completion` (a text, or messages whose images were dropped), one column per reward function,
`advantage`, and what reward functions logged besides. The form is that of `GRPOTrainer.log` of TRL 1.16, and of RLOO's.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vitar_jax.report.conversation import Context, Played, Said, played, said
from vitar_jax.report.spoken import plain_chat, split_images

_FIXED = ("step", "prompt", "completion", "advantage")
_ANSWERS = ("solution", "answer", "ground_truth")  # columns that reward functions often log


def matches(record: Mapping[str, Any]) -> bool:
    return record.keys() >= {*_FIXED}


def read(record: Mapping[str, Any], context: Context) -> Iterator[Played]:
    """Reads a row. Rows of a step with the same prompt are a group. A reward is before its weight, which is not recorded."""
    others = {name: value for name, value in record.items() if name not in _FIXED}
    yield played(
        [*_chat(record["prompt"], "user", context), *_chat(record["completion"], "assistant", context)],
        context,
        sample_id=context.sample(f"{record['step']}\0{json.dumps(record['prompt'], default=str)}"),
        protocol="trl",
        policy_version=int(record["step"]),
        answer=next((others[name] for name in _ANSWERS if others.get(name) is not None), None),
        rewards={name: value for name, value in others.items() if isinstance(value, float)},
        advantage=record["advantage"],
        metadata={name: value for name, value in others.items() if not isinstance(value, float) and value is not None},
    )


def _chat(value: Any, role: str, context: Context) -> list[Said]:
    """Reads a prompt or a completion. Text with a chat's special tokens is split into its messages."""
    if not isinstance(value, str):
        return [said(message, context) for message in value]
    chat = plain_chat(value, role) if "<|im_start|>" in value else [(role, value)]
    return [Said(role, tuple(split_images(text))) for role, text in chat]
