"""The Agent Trajectory Interchange Format (ATIF): one JSON document per trajectory, with paths of images beside it.

A document that `document` wrote also holds our record in `extra`, so that it comes back without loss; only log-probabilities
that are not finite, which JSON cannot hold, become null.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import vitar_jax
from vitar_jax.episodes.trajectory import Trajectory, TrajectoryImage, Turn, UnrecordedImage, plain_value
from vitar_jax.evaluation.report_files import whole
from vitar_jax.report.conversation import Context, Played, Said, played, said
from vitar_jax.runtime.crash_safe import atomic_replace

VERSION = "ATIF-v1.7"  # the newest that several readers know; images came with 1.6
_OWN = "vitar_jax"
Restore = Callable[[dict[str, Any], Path, Context], Trajectory]


def matches(record: Mapping[str, Any]) -> bool:
    return str(record.get("schema_version", "")).startswith("ATIF-") and isinstance(record.get("steps"), list)


def read(record: Mapping[str, Any], context: Context, restore: Restore) -> Iterator[Played]:
    """Reads a document, and the trajectories of its subagents.

    Args:
      restore: Returns the trajectory of our own record, given the folder of its images.
    """
    extra = record.get("extra") or {}
    if own := extra.get(_OWN):
        yield Played(restore(own["trajectory"], context.path.parent / "images", context), own["score"])
    else:
        agent, steps = record.get("agent") or {}, record["steps"]
        if not any(step.get("source") == "agent" for step in steps):
            raise ValueError("got a document without a step of the agent")
        numbers = {name: value for name, value in extra.items() if isinstance(value, int | float)}
        yield played(
            [one for step in steps for one in _messages(step, context)],
            context,
            sample_id=str(record.get("trajectory_id") or record.get("session_id") or context.path.stem),
            protocol=str(agent.get("name") or "atif"),
            rewards={"reward": float(numbers["reward"])} if "reward" in numbers else {},
            metadata={"model": agent.get("model_name")} if agent.get("model_name") else {},
        )
    for inner in record.get("subagent_trajectories") or ():
        yield from read(inner, context, restore)


def _messages(step: Mapping[str, Any], context: Context) -> Iterator[Said]:
    """Yields the message of a step, and its observation as a message of a tool."""
    role = {"agent": "assistant"}.get(step["source"], step["source"])
    calls = [
        {"name": call.get("function_name"), "arguments": call.get("arguments")} for call in step.get("tool_calls") or ()
    ]
    message = {"role": role, "content": step["message"], "reasoning_content": step.get("reasoning_content")}
    yield said(message | {"tool_calls": calls}, context)
    for result in (step.get("observation") or {}).get("results", ()):
        yield said({"role": "tool", "content": result.get("content") or ""}, context)


def write(trajectory: Trajectory, score: float | None, directory: Path, name: str, *, images: bool) -> Path:
    """Writes a trajectory's document `directory/name.json`, and its images to `directory/images`.

    Args:
      score: Score of the answer, from 0 to 1; None if it is unknown.
      images: Whether to write the images. Without them, the document says in text that an image is left out.
    """
    folder = directory / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for image in trajectory.images if images else ():
        path = folder / f"{image.sha256}.png"
        if not isinstance(image, UnrecordedImage) and not path.exists():
            with atomic_replace(path) as partial:
                image.pixels.save(partial, format="PNG", compress_level=1)
    path = directory / f"{name}.json"
    with atomic_replace(path) as partial:
        text = json.dumps(document(trajectory, score, images=images), ensure_ascii=False, allow_nan=False, indent=1)
        partial.write_text(whole(text) + "\n", "utf-8")
    return path


def document(trajectory: Trajectory, score: float | None, *, images: bool) -> dict[str, Any]:
    """Returns a trajectory as an ATIF document, with the paths of its images."""
    steps: list[dict[str, Any]] = [
        {"source": role if role in ("system", "user") else "user", "message": text}
        for role, text in trajectory.metadata.get("before", ())
    ]
    first = [_image(image, images) for image in trajectory.images if image.turn is None]
    options = "".join(f"\n{letter} {text}" for letter, text in trajectory.options)
    asked = {"type": "text", "text": trajectory.question + options}
    steps.append({"source": "user", "message": [*first, asked]})
    steps += [_step(trajectory, number, turn, images) for number, turn in enumerate(trajectory.turns)]
    record = {"score": score, "trajectory": trajectory.to_json()}
    return {
        "schema_version": VERSION,
        "session_id": trajectory.group_id,
        "trajectory_id": f"{trajectory.sample_id}/{trajectory.stream}/{trajectory.member}",
        "agent": {"name": trajectory.protocol, "version": vitar_jax.__version__},
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, start=1)],
        "final_metrics": {"total_completion_tokens": sum(turn.end - turn.start for turn in trajectory.turns)},
        "extra": {_OWN: _finite(record)},
    }


def _step(trajectory: Trajectory, number: int, turn: Turn, images: bool) -> dict[str, Any]:
    step: dict[str, Any] = {"source": "agent", "message": turn.text}
    if turn.thought is not None:
        step["reasoning_content"] = turn.thought
    calls = [
        {
            "tool_call_id": f"{number}-{place}",
            "function_name": str(call.get("name")),
            "arguments": _finite(call["arguments"]) if isinstance(call.get("arguments"), dict) else {},
        }
        for place, call in enumerate(_calls(turn))
    ]
    seen = [_image(image, images) for n, image in enumerate(trajectory.images) if image.turn == number or n == turn.image]
    texts = [*([turn.error[1]] if turn.error else []), *([turn.observation] if turn.observation else [])]
    content = [*seen, *({"type": "text", "text": text} for text in texts)]
    if calls:
        step["tool_calls"] = calls
    if content:
        # Several calls share what came back, because records do not say which call an image is of.
        place = {"source_call_id": calls[0]["tool_call_id"]} if len(calls) == 1 else {}
        step["observation"] = {"results": [place | {"content": content}]}
    token_ids, logprobs = (values[turn.start : turn.end] for values in (trajectory.token_ids, trajectory.logprobs))
    if token_ids:
        step["metrics"] = {"completion_tokens": len(token_ids), "completion_token_ids": list(token_ids)}
        if None not in (finite := _finite(list(logprobs))):
            step["metrics"]["logprobs"] = finite
    return step


def _calls(turn: Turn) -> Sequence[Mapping[str, Any]]:
    """Returns the tool calls of a turn. An answer is none."""
    action = turn.action or {}
    calls = action["calls"] if isinstance(action.get("calls"), list) else [action]
    return [call for call in calls if isinstance(call, dict) and call.get("name") not in (None, "Terminate")]


def _image(image: TrajectoryImage, images: bool) -> dict[str, Any]:
    if not images or isinstance(image, UnrecordedImage):
        return {"type": "text", "text": "[image not recorded]" if images else "[image omitted]"}
    return {"type": "image", "source": {"media_type": "image/png", "path": f"images/{image.sha256}.png"}}


def _finite(value: Any) -> Any:
    """Returns a JSON value with null in place of numbers that JSON cannot hold."""
    return json.loads(json.dumps(value, default=plain_value), parse_constant=lambda _: None)
