"""verl's rollout and validation dumps: `trainer.rollout_data_dir` and `validation_data_dir`, one STEP.jsonl per step.

A line has `input` and `output`, decoded without special tokens, `gts`, `score`, `step`, and what the reward function returned
besides. The images of an episode are not in it. The form is that of `_write_generations` in verl's trainers (August 2026).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vitar_jax.report.conversation import Context, Played, Said, played
from vitar_jax.report.spoken import plain_chat, split_images

_FIXED = ("input", "output", "gts", "score", "step")


def matches(record: Mapping[str, Any]) -> bool:
    return record.keys() >= {"input", "output", "score", "step"}


def read(record: Mapping[str, Any], context: Context) -> Iterator[Played]:
    """Reads a line.

    Samples of a step with the same input and answer are a group. `acc`, if it is there, is the score of the answer.
    """
    chat = [*plain_chat(record["input"], "user"), *plain_chat(record["output"], "assistant")]
    # The prompt ends with the role of the reply.
    chat = [one for one, after in zip(chat, [*chat[1:], ("", "")], strict=True) if one[1] or after[0] != "assistant"]
    key = f"{record['step']}\0{record['input']}\0{record.get('gts')}"
    right = record.get("acc")
    yield played(
        [Said(role, tuple(split_images(text))) for role, text in chat],
        context,
        sample_id=context.sample(key),
        protocol="verl",
        policy_version=int(record["step"]),
        answer=record.get("gts"),
        rewards={"score": float(record["score"])},
        score=None if right is None else float(right),
        metadata={name: value for name, value in record.items() if name not in _FIXED},
    )
