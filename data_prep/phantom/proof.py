"""Functions that the quickstarts' recipes name: thoughts and tools of controls, baselines, measures, conclusions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.phantom.pictures import KINDS
from data_prep.phantom.probe import probe_accuracy
from data_prep.phantom.samples import CACHE, LETTERS, region_words
from data_prep.phantom.search import share_right
from vitar_jax.episodes.actions import ActionError
from vitar_jax.episodes.regions import Box, centre
from vitar_jax.episodes.tools import Context, Observation, outline
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.learning.alarms import AlarmConfig, Alarms
from vitar_jax.learning.rewards import REWARDS

GOAL = 0.85  # lowest accuracy of an arm that has learnt the second gaze

MASK_GOALS = (0.90, 0.80, 0.70, 0.90)  # of R-LQ, R-SQ, A-mIoU and answers
LEAD = 0.20  # by which paying for the image should raise the accuracy on held-out samples

WRONG_IMAGE = 0.10  # R-LQ below which a model does not outline what it cannot see

_ONE_RUN = "Intervals are of the test phantoms alone, not of training."
_INTERVALS = (
    "Intervals are of the test phantoms alone, not of training: after SFT, two processors gave 70.5 % and 81.6 % for one seed "
    "and commit."
)


def spot(box: Box) -> str:
    """Returns the thought of a turn that zooms `box`, in the words of the demonstrations."""
    return f"spot {region_words(*centre(box))} zoom close"


def probe(seed: int) -> float:
    """Returns the accuracy of a classifier that sees the first view and knows the lesion's true location."""
    return probe_accuracy(seed=seed, cache_dir=CACHE)


def probe_of_96_px(seed: int) -> float:
    """Returns the accuracy of `probe` on the phantoms of `configs/quickstart_qwen3.py`."""
    return probe_accuracy(seed=seed, cache_dir=CACHE, view=96, period=(4.4, 4.9))


def what_grpo_changed(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one sentence each on the boxes' size and location and the answers, before and after GRPO, and on intervals."""
    before, after = results["two_looks_sft"], results["two_looks_grpo"]
    if None in (before["tight_box_share"], after["tight_box_share"], before["centre_error_px"], after["centre_error_px"]):
        return f"No valid boxes to compare. {_INTERVALS}"
    return (
        f"Size: {before['tight_box_share']:.0%} of boxes were tight before GRPO, {after['tight_box_share']:.0%} after. "
        f"Place: the median box was {before['centre_error_px']:.0f} px off before, {after['centre_error_px']:.0f} px after. "
        f"Answers: {before['accuracy']:.1%} right before, {after['accuracy']:.1%} after. {_INTERVALS}"
    )


# --- masks ------------------------------------------------------------------------------------------


def what_masks_showed(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence each on the trained model's targets, on another phantom's picture, and on its own evidence."""
    found, blind = results["grpo"], results["wrong_image"]
    values = {"R-LQ": found["r_lq"], "R-SQ": found["r_sq"], "A-mIoU": found["a_miou"], "answers right": found["accuracy"]}
    said = [
        f"{name} {'none' if value is None else f'{value:.1%}'} (target {goal:.0%}{'' if (value or 0) >= goal else ', missed'})"
        for (name, value), goal in zip(values.items(), MASK_GOALS, strict=True)
    ]
    low = blind["r_lq"] is not None and blind["r_lq"] < WRONG_IMAGE
    evidence = ""
    if "erased" in results:  # the shortened proof has nothing outlined to take away
        erased, elsewhere = (f"{results[row]['accuracy']:.1%}" for row in ("erased", "elsewhere"))
        evidence = f" Answers right without what it outlined: {erased}; with as much blurred elsewhere: {elsewhere}."
    return (
        f"After GRPO: {'; '.join(said)}. With another phantom's picture, R-LQ is {blind['r_lq'] or 0:.1%} "
        f"(target below {WRONG_IMAGE:.0%}{'' if low else ', missed'}).{evidence}"
    )


def _unmarked(context: Context) -> Observation | ActionError:
    made = outline(context)
    return dataclasses.replace(made, image=context.image.convert("RGB")) if isinstance(made, Observation) else made


# Called by the name of the tool `outline`, it shows the image without the outlines, to measure what they are worth.
unmarked = dataclasses.replace(outline, run=_unmarked)


# --- the shortcut -----------------------------------------------------------------------------------


def repeats(trajectory: Trajectory) -> float:
    """Returns whether the answer is the texture that the question names."""
    return trajectory.predicted_answer == LETTERS[KINDS.index(trajectory.metadata["named"])]


def what_the_shortcut_did(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence on each arm's accuracy, reliance and alarm, and whether paying for the image has reached `LEAD`."""
    said = []
    for name in ("sft", "grpo", "counterfactual"):
        row, blank = results[name], results[f"{name}_blank"]
        said.append(
            f"{name}: {row['accuracy']:.1%} right on held-out samples, {blank['accuracy']:.1%} with a blank image; "
            f"{row[f'{__name__}:repeats']:.0%} of answers repeat the question's texture"
        )
        if name != "sft":
            said[-1] += f"; the alarm of reliance was {_reliance_alarm(row['curves'])}"
    lead = results["counterfactual"]["accuracy"] - results["grpo"]["accuracy"]
    verdict = "reached" if lead >= LEAD else "missed"
    return f"{'. '.join(said)}. Lead of counterfactual: {lead:+.1%} (target {LEAD:.0%}, {verdict}). {_ONE_RUN}"


def _reliance_alarm(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Returns at which steps the alarm of reliance was raised, given a stage's curves."""
    steps: dict[int, dict[str, float]] = {}
    for metric, points in curves.items():
        for step, value in points:
            steps.setdefault(step, {})[metric] = value
    alarms = Alarms(AlarmConfig())
    raised = [step for step, scalars in sorted(steps.items()) if any("rely less" in line for line in alarms.check(scalars))]
    return f"raised at step {' and '.join(map(str, raised))}" if raised else "not raised"


# --- windows ----------------------------------------------------------------------------------------


def what_windows_showed(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence on the accuracy, and on how often the window of the organ was chosen, before and after GRPO."""
    chosen = "data_prep.phantom.windows:own_window"
    said = (
        f"{name} {row['accuracy']:.1%} right, {row[chosen]:.1%} through the lesion's window"
        for name, row in results.items()
        if name in ("sft", "grpo")
    )
    return f"One window of four shows the lesion, and without it a quarter of the answers are right. {'; '.join(said)}."


# --- searches ---------------------------------------------------------------------------------------


def gazes(trajectory: Trajectory) -> float:
    """Returns the number of regions that an episode looked at."""
    return sum(turn.carried_out for turn in trajectory.turns)


def found(trajectory: Trajectory) -> float:
    """Returns whether a gaze enlarged the spot that shows the answer."""
    places = [centre(box) for box in trajectory.boxes]
    boxes = [box for turn in trajectory.turns if turn.carried_out for box in trajectory.looked_at(turn)[1]]
    return any(box.x1 < x < box.x2 and box.y1 < y < box.y2 for box in boxes for x, y in places)


def what_the_expert_taught(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence on each arm's accuracy and gazes, after the stairs, and which arms have reached `GOAL`."""
    names = f"{__name__}:gazes", f"{__name__}:found"
    rows = {name: row for name, row in results.items() if "interval" in row}
    stairs = " and ".join(f"{share_right('search', 2, looks):.0%} with {looks}" for looks in (1, 2))
    arms = [
        f"{name} {row['accuracy']:.1%} with {row[names[0]]:.2f} gazes (the right spot in {row[names[1]]:.0%})"
        for name, row in rows.items()
    ]
    reached = [name for name, row in rows.items() if row["accuracy"] >= GOAL]
    verdict = f"At {GOAL:.0%} or more: {', '.join(reached)}" if reached else f"None has reached {GOAL:.0%}"
    return f"Two spots allow {stairs} gaze(s). Reached: {'; '.join(arms)}. {verdict}. Intervals are of the test phantoms alone."


def what_started(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one line per arm: accuracy, gazes, share of episodes in the format, when it started, and entropy.

    An arm has started at the first probe in which half of the greedy held-out episodes are in the format.
    """
    lines = []
    whole = REWARDS["medeyes"].weights["grammar"]
    for name, row in results.items():
        probes, entropy = row["curves"]["probe/reward/grammar"], row["curves"]["actor/entropy"]
        step = next((step for step, value in probes if value >= whole / 2), None)
        most = max(value for _, value in probes) / whole
        (first, before), (last, after) = entropy[0], entropy[-1]
        said = [
            f"{row['accuracy']:.1%} right",
            f"{row[f'{__name__}:gazes']:.2f} gazes",
            f"{row['vitar_jax.learning.gaze_reward:follows_grammar']:.0%} in the format",
            f"not started, at most {most:.0%} of a probe in the format" if step is None else f"started by step {step}",
            f"entropy {before:.2f} at step {first} and {after:.2f} at step {last}",
        ]
        lines.append(f"{name}: {', '.join(said)}")
    return "\n".join(lines)
