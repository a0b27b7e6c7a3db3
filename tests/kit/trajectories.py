"""Synthetic trajectories. Only the fields that scoring and reporting read are realistic."""

import dataclasses
import re
from typing import Any

import numpy as np
from PIL import Image

from vitar_jax.episodes.affine import Affine
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import SegmentedObject
from vitar_jax.episodes.trajectory import Sampling, Trajectory, TrajectoryImage, Turn

SIZE = 448
VIEW = 84


def make_trajectory(
    index: int = 0,
    *,
    box: tuple[float, ...] | None = (100.0, 100.0, 200.0, 200.0),
    gold: tuple[float, ...] | None = (120.0, 120.0, 180.0, 180.0),
    answer: str | None = "B",
    error: tuple[str, str] | None = None,
    thought: str = "spot upper left zoom close",
    **changes: Any,
) -> Trajectory:
    """Returns a trajectory of a zoom to `box` (if None, a turn that is not JSON) and an answer (if None, the turn limit)."""
    rng = np.random.default_rng(index)
    picture = Image.fromarray(rng.integers(0, 255, (SIZE, SIZE), np.uint8))
    images = [TrajectoryImage(picture, (1, 6, 6), (VIEW, VIEW))]
    if box is None:
        turns = [Turn(0, 2, "not JSON", error=error or ("bad_json", "The turn is not one JSON object."))]
    else:
        seen = None
        if error is None:
            seen = 1
            zoomed = picture.resize((VIEW, VIEW), box=box)  # type: ignore[arg-type]
            to_source = Affine.crop(Box(*box, frame="original"), (VIEW, VIEW))  # type: ignore[call-arg]
            images.append(TrajectoryImage(zoomed, (1, 6, 6), (VIEW, VIEW), 0, 0, to_source))
        small = tuple(value * VIEW / SIZE for value in box)
        action = {"name": "zoom", "arguments": {"box": [list(small)]}}
        turns = [Turn(0, 2, "{}", thought, action, (small,), (box,), error, seen)]
    if answer is not None:
        action = {"name": "Terminate", "arguments": {"answer": answer}}
        turns.append(Turn(2, 4, "{}", "shows rows", action))
    trajectory = Trajectory(
        sample_id=f"phantom-{index}",
        group_id=f"phantom-{index}",
        member=0,
        stream="on_policy",
        policy_version=3,
        protocol="vitar",
        sampling=Sampling(),
        banned_sha256="0" * 64,
        question="Which texture?",
        options=(("A", "flat"), ("B", "rows"), ("C", "columns"), ("D", "checks")),
        answer="B",
        boxes=(Box(*gold, frame="original"),) if gold else (),  # type: ignore[call-arg]
        token_ids=(1, 2, 3, 4),
        loss_mask=(1, 1, 1, 1),
        logprobs=(-0.5, -0.5, -0.5, -0.5),
        position_ids=((0, 1, 2, 3),) * 3,
        vision_index=(-1,) * 4,
        images=tuple(images),
        turns=tuple(turns),
        predicted_answer=answer,
        end_reason="answered" if answer is not None else "turn_limit",
        rewards={"accuracy": float(answer == "B"), "format": 0.5},
    )
    return dataclasses.replace(trajectory, **changes)


def make_search(*boxes: tuple[float, ...], **changes: Any) -> Trajectory:
    """Returns a trajectory of one gaze at the first image per box and a right answer, under MedEyes' protocol."""
    ended = make_trajectory(0, box=None)
    images, turns = [ended.images[0]], []
    for number, box in enumerate(boxes):
        looked = make_trajectory(0, box=box, thought=f"gaze {number}")
        images.append(dataclasses.replace(looked.images[1], turn=number))
        action = {"name": "Gaze", "arguments": {"coordinate": list(looked.turns[0].boxes_model_input[0])}}
        turns.append(dataclasses.replace(looked.turns[0], action=action, image=number + 1, start=0, end=0))
    turns.append(dataclasses.replace(ended.turns[-1], start=0, end=4))
    return dataclasses.replace(ended, protocol="medeyes", images=tuple(images), turns=tuple(turns), **changes)


WIDE = (300, 200)  # width and height of the image of `make_trace`


def ellipse(x: float, y: float, across: float, down: float, size: tuple[int, int] = WIDE) -> Mask:
    """Returns the mask of an ellipse on an image of this (width, height); empty if it lies outside."""
    rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
    return Mask.of(((columns - x) / across) ** 2 + ((rows - y) / down) ** 2 <= 1, "original")


def make_trace(**changes: Any) -> Trajectory:
    """Returns a trajectory of VRT on an image that is not square.

    Its objects are obj1 (two mentions with different masks), obj2 (a mask without a pixel), obj3 (`[SEG]` without a mask), and
    one without a name. Each character is a token, and so is each `[SEG]`.
    """
    text = (
        "<think>A nodule (<ver><obj1> [SEG]</ver>) beside the aorta (<ver><obj2> [SEG]</ver>) \U0001fac1 and (<ver><obj3>\n"
        "[SEG]</ver>), [SEG].</think>\n\n<answer>The nodule (<vea><obj1> [SEG]</vea>).</answer>"
    )
    tokens = re.findall(r"\[SEG\]|.", text, re.DOTALL)
    seg = [place for place, token in enumerate(tokens) if token == "[SEG]"]
    made = [ellipse(80, 60, 40, 25), ellipse(-90, 0, 9, 9), None, ellipse(220, 150, 30, 30), ellipse(84, 62, 36, 25)]
    names = ("obj1", "obj2", "obj3", None, "obj1")
    masks = tuple(
        ObjectMask(place, name, "reasoning" if place < seg[-1] else "answer", mask, None if mask is None else 0.875)
        for place, name, mask in zip(seg, names, made, strict=True)
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 90, WIDE[::-1]).astype(np.uint8))
    nodule = SegmentedObject("obj1", ellipse(90, 60, 40, 25), "nodule", True, True)
    aorta = SegmentedObject("obj2", ellipse(200, 60, 30, 40), "aorta", True)
    trajectory = dataclasses.replace(
        make_trajectory(0, box=None, gold=None),
        protocol="vrt",
        question="What lies beside the aorta?",
        options=(),
        answer="The nodule.",
        predicted_answer="The nodule.",
        images=(TrajectoryImage(picture, (1, 4, 6), (56, 84)),),
        token_ids=tuple(map(ord, (token[0] for token in tokens))),
        loss_mask=(1,) * len(tokens),
        logprobs=(-0.5,) * len(tokens),
        position_ids=(tuple(range(len(tokens))),) * 3,
        vision_index=(-1,) * len(tokens),
        turns=(Turn(0, len(tokens), text, "A nodule beside the aorta.", masks=masks),),
        objects=(nodule, aorta, SegmentedObject("obj9", ellipse(20, 20, 9, 9))),
    )
    return dataclasses.replace(trajectory, **changes)
