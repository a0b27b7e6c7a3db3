"""A report's record of a trajectory: the contents of its page, and its row in the table of episodes."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from PIL import Image

from vitar_jax.episodes.trajectory import Trajectory, TrajectoryImage, Turn, UnrecordedImage
from vitar_jax.evaluation.mask_scores import POOLED
from vitar_jax.evaluation.measures import MEASURES
from vitar_jax.evaluation.model_view import as_seen
from vitar_jax.evaluation.report_files import FolderFiles, SinglePage
from vitar_jax.evaluation.report_masks import Pieces, gold_masks, turn_masks

Files = FolderFiles | SinglePage

EXACT = 2**18  # largest image, in pixels, that is saved as PNG; larger ones are saved as JPEG
QUALITY = 90


def episode(
    trajectory: Trajectory, correct: float | None, rule: str, files: Files | None, pieces: Pieces | None
) -> dict[str, Any]:
    """Returns the contents of a trajectory's page, as JSON.

    Args:
      correct: Score of the answer under `rule`; None if the rule does not score it.
      files: Destination of the images. If None, images are omitted.
      pieces: Function from token ids to the text of each token. If None, tokens are omitted.
    """
    rewards = trajectory.rewards
    taken = {"intervention": trajectory.metadata.get("intervention")} if trajectory.stream == "counterfactual" else {}
    return {
        "sample_id": trajectory.sample_id,
        "member": trajectory.member,
        "stream": trajectory.stream,
        "policy_version": int(trajectory.policy_version),
        "protocol": trajectory.protocol,
        "question": trajectory.question,
        "options": trajectory.options,
        "answer": " | ".join(trajectory.gold_answers),
        "predicted": trajectory.predicted_answer,
        "correct": correct,
        "rule": rule,
        "end_reason": trajectory.end_reason,
        "rewards": None if rewards is None else [(name, finite(value)) for name, value in rewards.items()],
        "advantage": finite(trajectory.advantage),
        "gold": [_numbers(box.xyxy) for box in trajectory.boxes],
        "gold_masks": gold_masks(trajectory.objects),
        "images": [_image(image, files) for image in trajectory.images],
        "turns": [
            _turn(turn, len(trajectory.images)) | {"masks": turn_masks(trajectory.token_ids, turn, pieces)}
            for turn in trajectory.turns
        ],
        "looks": _looks(trajectory),
        "tokens": None if pieces is None else _segments(trajectory, pieces),
        **taken,
    }


def row(trajectory: Trajectory, correct: float | None, rule: str) -> dict[str, Any]:
    """Returns a trajectory's row in the table of episodes, which filters use; values are strings and numbers.

    Scores of masks are means over the episode's own masks.
    """
    rewards = trajectory.rewards
    return {
        "sample_id": trajectory.sample_id,
        "group_id": trajectory.group_id,
        "member": trajectory.member,
        "stream": trajectory.stream,
        "policy_version": int(trajectory.policy_version),
        "protocol": trajectory.protocol,
        "turns": len(trajectory.turns),
        "tokens": sum(trajectory.loss_mask),
        "answer": " | ".join(trajectory.gold_answers),
        "predicted": trajectory.predicted_answer,
        "correct": correct,
        "rule": rule,
        "tool_error": next((turn.error[0] for turn in trajectory.turns if turn.error), None),
        "end_reason": trajectory.end_reason,
        "reward": finite(trajectory.reward),
        "advantage": finite(trajectory.advantage),
        **{name: fmean(values) for name in POOLED if (values := MEASURES[name].values(trajectory))},
        **{f"reward/{name}": finite(value) for name, value in (rewards or {}).items()},
        **{f"metadata/{key}": value for key, value in trajectory.metadata.items() if isinstance(value, str | int)},
    }


def finite(value: float | None) -> float | None:
    """Converts a value to JSON: None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def _turn(turn: Turn, images: int) -> dict[str, Any]:
    on = turn.acted_on
    return {
        "start": turn.start,
        "text": turn.text,
        "thought": turn.thought,
        # As text, so that keys chosen by a model never become keys of a script's object.
        "action": None if turn.action is None else json.dumps(turn.action, ensure_ascii=False),
        "on": on if on < images else 0,
        "boxes": [_numbers(box) for box in turn.boxes_original],
        "error": turn.error,
        "image": turn.image,
        **({"observation": turn.observation} if turn.observation else {}),
    }


def _looks(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Returns the turns whose tool ran on boxes, in order, with the boxes on the sample's own image.

    An expert's looks also have the mode of its search and its confidence after the look.
    """
    searched = trajectory.metadata if trajectory.stream == "expert" else {}
    found: list[dict[str, Any]] = []
    for number, turn in [(number, one) for number, whole in enumerate(trajectory.turns) for one in whole.per_call]:
        if not turn.carried_out:
            continue
        on, boxes = trajectory.looked_at(turn)
        found.append(
            {
                "turn": number,
                "on": on,
                "boxes": [_numbers(box.xyxy) for box in boxes],
                "mode": _item(searched, "modes", len(found), str),
                "confidence": finite(_item(searched, "confidences", len(found), int | float)),
            }
        )
    return found


def _item(metadata: Mapping[str, Any], key: str, index: int, kind: Any) -> Any:
    """Returns an item of a list in the metadata; None if it does not exist or is of another type."""
    values = metadata.get(key)
    value = values[index] if isinstance(values, list) and index < len(values) else None
    return value if isinstance(value, kind) else None


def _segments(trajectory: Trajectory, pieces: Pieces) -> list[dict[str, Any]]:
    """Splits the tokens into runs: each is an image, a turn, or text that the model read."""
    starts = {place: turn.start for turn in trajectory.turns for place in range(turn.start, turn.end)}
    seen = -1  # index of the last image so far

    def kind(place: int) -> tuple[bool, int | None]:
        return trajectory.vision_index[place] >= 0, starts.get(place)

    found: list[dict[str, Any]] = []
    for (is_image, start), run in groupby(range(len(trajectory.token_ids)), kind):
        places = list(run)
        seen += is_image
        found.append({"image": seen, "count": len(places)} if is_image else _run(trajectory, places, start, pieces))
    return found


def _run(trajectory: Trajectory, places: Sequence[int], start: int | None, pieces: Pieces) -> dict[str, Any]:
    logprobs = [trajectory.logprobs[place] for place in places]
    sampled = any(logprob is not None for logprob in logprobs)
    return {
        "start": start,  # start of its turn; None if the run is no turn
        "text": list(pieces([trajectory.token_ids[place] for place in places])),
        "mask": "".join(str(int(trajectory.loss_mask[place])) for place in places),
        "logprobs": [None if p is None or not math.isfinite(p) else round(p, 4) for p in logprobs] if sampled else None,
    }


def _image(image: TrajectoryImage, files: Files | None) -> dict[str, Any]:
    (width, height), (seen_height, seen_width) = image.pixels.size, image.size
    unrecorded = isinstance(image, UnrecordedImage)
    files = None if unrecorded else files
    seen = None
    # The page would otherwise show details that the model could not see.
    smaller = 2 * seen_width * seen_height < width * height
    if files is not None and smaller:
        seen = _add_once(files, f"{image.sha256}-{seen_width}x{seen_height}", as_seen(image))
    return {
        "file": None if files is None else _add_once(files, image.sha256, image.pixels),
        "width": width,
        "height": height,
        "seen": seen,
        "seen_size": (seen_width, seen_height),
        "turn": image.turn,
        **({"unrecorded": True} if unrecorded else {}),
    }


def _add_once(files: Files, stem: str, pixels: Image.Image) -> str:
    exact = pixels.width * pixels.height <= EXACT
    name = f"{stem}.{'png' if exact else 'jpg'}"
    if not files.has(f"images/{name}"):
        content = io.BytesIO()
        options = {"format": "PNG", "compress_level": 1} if exact else {"format": "JPEG", "quality": QUALITY}
        pixels.save(content, **options)
        files.add(f"images/{name}", content.getvalue())
    return name


def _numbers(box: Iterable[float]) -> list[float]:
    return [float(value) for value in box]
