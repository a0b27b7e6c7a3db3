"""Rewards of published systems that call tools: DeepEyes, Ophiuchus, PyVision-RL and GEMeX-ThinkVG.

Three follow the systems' public code, and one its paper. Where the systems ask a judge whether an answer is right, these
rewards compare it with the correct answers by exact match. `rewards.py` registers the rewards with the published weights. A
recipe can set any weight.
"""

import re
from typing import get_args

import numpy as np

from vitar_jax.episodes.actions import CallErrorKind
from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.regions import Box, iou
from vitar_jax.episodes.trajectory import GOLD_IMAGE, Trajectory, Turn
from vitar_jax.processing.masks import best_pairs

LONGEST_ANSWER = 1000  # characters; DeepEyes and PyVision-RL count an answer that is as long as wrong
STEPS = ((0.8, 3.0), (0.7, 2.0), (0.5, 1.0))  # Ophiuchus: what an IoU above each bound earns

_CHINESE = re.compile("[\u4e00-\u9fff]")
_CALL_ERRORS = frozenset(get_args(CallErrorKind))


def deepeyes(trajectory: Trajectory) -> dict[str, float]:
    """Returns the parts of DeepEyes' reward.

    `answer` is an exact match. `tool` is 1 if the answer is right and a tool showed an image. `format` is -1 if `<think>` does
    not occur as often as its closing tag, if `<answer>` after the last `</think>` does not, or if the answer has at least
    `LONGEST_ANSWER` characters, and else 0. Without these tags, only the length of the answer matters.

    Source: `compute_score` of verl/utils/reward_score/vl_agent.py in github.com/Visual-Agent/DeepEyes at 6c5e796, which returns
    0.8 answer + 0.2 format + 1.2 tool.
    """
    long = len(trajectory.predicted_answer or "") >= LONGEST_ANSWER
    right = _is_right(trajectory) and not long
    shown = any(turn.image is not None for turn in _calls(trajectory))
    return {"answer": right, "format": -float(long or not _balanced(trajectory)), "tool": right and shown}


def ophiuchus(trajectory: Trajectory) -> dict[str, float]:
    """Returns the parts of Ophiuchus' reward (arXiv 2512.14157), and the number of calls that failed, which is off by default.

    `format` is 1 if each turn has a thought and calls one of the tools or answers, and the last turn answers. `answer` is an
    exact match. For a sample with masks of the answer, it is 3, 2 or 1 instead for an IoU above 0.8, 0.7 or 0.5 of them and the
    episode's last mask. `tool` is 1 if `answer` is positive and a tool ran. `invalid` is the number of turns without a thought
    or with Chinese characters. `failed_calls` is the number of calls of a tool that returned an error.

    For a sample with gold boxes, but no masks and no answer, `answer` compares the episode's last box with the best gold box in
    the same steps. The published code compares masks alone.

    Source: agent_system/environments/env_package/medical_agent/envs.py and projection.py in github.com/SII-zyj/Ophiuchus at
    2560233 with the settings of examples/grpo_trainer/run_ATRL.sh: format + answer + 2 tool - 0.1 invalid. The published code
    trains each turn by itself, and takes 0.1 from the invalid turns alone.
    """
    turns = trajectory.turns
    answered = trajectory.end_reason == "answered"
    well_formed = answered and all(turn.thought is not None for turn in turns) and all(map(_called, turns[:-1]))
    located = _located(trajectory)
    if located is None:
        earned = float(_is_right(trajectory))
    else:
        earned = next((reward for bound, reward in STEPS if located > bound), 0.0)
    ran = any(_called(turn) and turn.error is None for turn in _calls(trajectory))
    return {
        "format": well_formed,
        "answer": earned,
        "tool": earned > 0 and ran,
        "invalid": sum(turn.thought is None or _CHINESE.search(turn.text) is not None for turn in turns),
        "failed_calls": sum(_called(turn) and turn.error is not None for turn in turns),
    }


def pyvision(trajectory: Trajectory) -> dict[str, float]:
    """Returns the parts of PyVision-RL's reward (arXiv 2602.20739), whose right answers also earn something for each call.

    `answer` is an exact match, but 0 if the answer has at least `LONGEST_ANSWER` characters. `calls` is the number of turns
    that call a tool if the answer is right, and else 0. A call counts even if the tool returns an error, as the published code
    counts a program that raises one. A call that cannot be read does not count. A right answer that is too long keeps its
    calls, also as published. Both parts are 0 if tags are not closed (see `deepeyes`), or if the answer contains `<answer>`,
    `<interpreter>` or `\\boxed`.

    Source: verl_agents/verl/utils/reward_score/multi_task_verifier.py, workers/reward_manager/naive.py and
    workers/agent/envs/agents_x in github.com/agents-x-project/PyVision-RL at 62ca599: answer + 0.1 calls.
    """
    answer = trajectory.predicted_answer or ""
    markup = any(tag in answer for tag in ("<answer>", "<interpreter>", "\\boxed"))
    right = _is_right(trajectory) and _balanced(trajectory) and not markup
    return {
        "answer": right and len(answer) < LONGEST_ANSWER,
        "calls": right * sum(map(_called, trajectory.turns)),
    }


def gemex(trajectory: Trajectory) -> dict[str, float]:
    """Returns the parts of GEMeX-ThinkVG's reward (arXiv 2506.17939): the answer, and the boxes that it rests on.

    `answer` is an exact match; the paper asks a judge to grade answer and reference, whose grades must differ by less than 2.
    `grounding` is the mean IoU of the model's boxes and the gold boxes on the same image. It is 0 if their numbers differ, or
    without gold boxes.

    The code of the reward is not public: github.com/Awenbocc/GEMeX-Project at 835101c does not contain it. What the paper
    leaves open is our choice. The boxes are those that tools ran on, in place of boxes in a thought. Boxes are paired for the
    largest sum of IoUs. Both parts have the same weight.
    """
    return {"answer": _is_right(trajectory), "grounding": _grounding(trajectory)}


def _is_right(trajectory: Trajectory) -> bool:
    return exact_match(trajectory.predicted_answer, *filter(None, trajectory.gold_answers))


def _calls(trajectory: Trajectory) -> list[Turn]:
    """Returns one turn for each call, also of turns with several."""
    return [one for turn in trajectory.turns for one in turn.per_call]


def _called(turn: Turn) -> bool:
    """Returns whether a turn calls one of the tools, whether the tool ran or refused its arguments."""
    return turn.call is not None and turn.error is None or turn.error is not None and turn.error[0] in _CALL_ERRORS


def _balanced(trajectory: Trajectory) -> bool:
    """Returns whether the tags of the turns are closed as often as they are opened, as DeepEyes' code counts them."""
    text = "".join(turn.text for turn in trajectory.turns)
    return _same_count(text, "think") and _same_count(text.rpartition("</think>")[2], "answer")


def _same_count(text: str, tag: str) -> bool:
    return text.count(f"<{tag}>") == text.count(f"</{tag}>")


def _located(trajectory: Trajectory) -> float | None:
    """Returns the IoU of the last mask or box with the gold ones; None if the sample is a question."""
    gold = [one.mask.array for one in trajectory.objects if one.in_answer]
    if gold:
        made = [one.mask.array for turn in trajectory.turns for one in turn.masks if one.mask is not None]
        if not made:
            return 0.0
        whole = np.any(gold, axis=0)
        union = np.count_nonzero(made[-1] | whole)
        return np.count_nonzero(made[-1] & whole) / union if union else 0.0
    if not trajectory.boxes or any(trajectory.gold_answers):
        return None
    boxes = _boxes(trajectory)
    return max((iou(boxes[-1], box) for box in trajectory.boxes), default=0.0) if boxes else 0.0


def _boxes(trajectory: Trajectory) -> list[Box]:
    """Returns the boxes that tools ran on, in order, on the gold boxes' image."""
    looked = (trajectory.looked_at(turn) for turn in _calls(trajectory) if turn.carried_out)
    return [box for image, boxes in looked if image == GOLD_IMAGE for box in boxes]


def _grounding(trajectory: Trajectory) -> float:
    boxes, gold = _boxes(trajectory), trajectory.boxes
    if not gold or len(boxes) != len(gold):
        return 0.0
    ious = np.array([[iou(box, other) for other in gold] for box in boxes])
    return float(ious[best_pairs(ious)].mean())
