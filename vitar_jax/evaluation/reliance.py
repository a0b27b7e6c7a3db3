"""Reliance: how far answers depend on the image, or on what was erased from it.

A run on the samples as they are and a run under a control (an intervention on the same samples) are paired by sample. Intervals
are of 95 %, clustered by patient or image. These numbers are defined here, and nowhere else:

  added       score on the real images minus score under the control. With `blank`, it is what the image adds to the question.
              With `wrong_image`, it is what the right image adds: the Visual Reliance Score (`vrs`) of `Beyond Accuracy` (arXiv
              2603.03437). A negative one means better scores on mismatched images.
  changed     share of answers that change. With `wrong_image`, it is that paper's Image Sensitivity (`image_sensitivity`).
  stay_right  of the answers that are right on the real images, the share that are still right under the control.
  turn_wrong  1 - stay_right. With `erase_masks`, the share of right answers that depend on what the model outlined.

Where both runs have scored the reference answer by teacher forcing (`evaluation/reference.py`), there is a fifth:

  added_logprob  log-probability of the reference answer on the real images minus that under the control, in nats. 0.69 means
                 that the image makes the reference answer twice as likely. It needs no sampling, and moves before answers do.

The paper's third measure, the rate of hallucinated visual reasoning, is left out: how it finds claims about the image in a
response is not public.

An answer counts as right if its score is 1. The numbers say that an answer depends on the image, not that it does so for a good
reason. Beside `erase_masks` belongs `erase_elsewhere`, which also disturbs the image but takes no evidence away.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitar_jax.episodes.answers import normalise_answer
from vitar_jax.evaluation.results import VERDICTS, percent_interval, primary_rule, read_verdicts
from vitar_jax.evaluation.statistics import Interval, difference_interval, mean_interval, score_interval
from vitar_jax.rollout.offline import SETTINGS
from vitar_jax.runtime.crash_safe import read_json

BEYOND_ACCURACY = {"vrs": "added", "image_sensitivity": "changed"}  # measures of arXiv 2603.03437, by which of our numbers
Share = dict[str, Any]  # value, interval (None if unknown) and n


class Pair(NamedTuple):
    """A sample's scores, from 0 to 1, and answers: on its real images, and under a control.

    `added_logprob` is what the real images add to the log-probability of its reference answer, if both were scored.
    """

    cluster: str
    real: float
    control: float
    real_answer: str = ""
    control_answer: str = ""
    added_logprob: float | None = None


def reliance_values(pairs: Sequence[Pair]) -> dict[str, list[tuple[float, str]]]:
    """Returns the values whose means are the numbers of this module, by name, each with its cluster."""
    changed = [normalise_answer(pair.real_answer) != normalise_answer(pair.control_answer) for pair in pairs]
    right = [pair for pair in pairs if pair.real == 1]
    return {
        "added": [(pair.real - pair.control, pair.cluster) for pair in pairs],
        "changed": [(float(value), pair.cluster) for value, pair in zip(changed, pairs, strict=True)],
        "stay_right": [(float(pair.control == 1), pair.cluster) for pair in right],
        "turn_wrong": [(float(pair.control != 1), pair.cluster) for pair in right],
    }


def reliance(pairs: Sequence[Pair]) -> dict[str, Share]:
    """Returns the numbers of this module by name, each with `value` (None without answers), `interval` and `n`.

    `added_logprob` is left out if no pair has it.
    """
    found = {}
    for name, rows in reliance_values(pairs).items():
        values, clusters = [value for value, _ in rows], [cluster for _, cluster in rows]
        between = difference_interval if name == "added" else score_interval
        found[name] = _share(values, between(values, clusters) if values else None)
    added = [(pair.added_logprob, pair.cluster) for pair in pairs if pair.added_logprob is not None]
    if added:
        values, clusters = zip(*added, strict=True)
        found["added_logprob"] = _share(values, mean_interval(values, clusters))
    return found


def _share(values: Sequence[float], interval: Interval | None) -> Share:
    value = sum(values) / len(values) if values else None
    return {"value": value, "interval": list(interval) if interval else None, "n": len(values)}


def pair_verdicts(
    rule: str, first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> dict[str, Pair]:
    """Returns the pairs of the samples that a rule scores in both evaluations, by sample."""
    pairs = {}
    for name in (name for name in first if name in second):
        one, other = first[name]["rules"].get(rule), second[name]["rules"].get(rule)
        if one and other and None not in (one["correct"], other["correct"]):
            said = one.get("parsed") or "", other.get("parsed") or ""
            on_real, on_control = (line.get("reference_logprob") for line in (first[name], second[name]))
            added = None if on_real is None or on_control is None else on_real - on_control
            pairs[name] = Pair(first[name]["cluster"], one["correct"], other["correct"], *said, added)
    return pairs


def read_settings(directory: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the controls of an evaluation and its other settings; both are empty if the folder has no settings."""
    path = directory / SETTINGS
    settings = dict(read_json(path)) if path.exists() else {}
    return settings.pop("control", {}), settings


def reliance_of(real: Path, control: Path) -> dict[str, Any] | None:
    """Returns the reliance of an evaluation from its folder and the folder of a control, under the first rule for answers.

    Returns:
      `control`, `rule`, the numbers of `reliance`, and with `wrong_image` those of `BEYOND_ACCURACY`. None if these are not an
      evaluation and the same under a control, or if no rule for answers scores both.
    """
    (plain, others), (changed, same) = read_settings(real), read_settings(control)
    alike = others == same and plain.get("look") == changed.get("look")
    if not alike or "control" in plain or "control" not in changed:
        return None
    rule, pairs = _pairs(real, control)
    if not pairs:
        return None
    found = reliance([*pairs.values()])
    if changed["control"] == "wrong_image":
        found |= {name: found[number] for name, number in BEYOND_ACCURACY.items()}
    return {"control": changed["control"], "rule": rule, **found}


def dependence(real: Path, evaluations: Iterable[Path]) -> dict[str, Any]:
    """Returns how many right answers of an evaluation turn wrong under the controls on masks that were made of it.

    Args:
      real: Folder of the evaluation.
      evaluations: Folders of evaluations, of which those under such a control count.

    Returns:
      `controls` (`turn_wrong` by control) and `own_evidence`: the share under `erase_masks` minus that under `erase_elsewhere`,
      of the samples in both, if both were played.
    """
    _, settings = read_settings(real)
    found: dict[str, dict[str, Pair]] = {}
    for directory in evaluations:
        control, others = read_settings(directory)
        made_of_it = control.get("of") == _name(real, directory) or control.get("control") == "erase_gold"
        if made_of_it and others == settings and (directory / VERDICTS).exists():
            found[control["control"]] = _pairs(real, directory)[1]
    rows = {name: reliance([*pairs.values()])["turn_wrong"] for name, pairs in sorted(found.items())}
    own, elsewhere = (found.get(name, {}) for name in ("erase_masks", "erase_elsewhere"))
    both = [(pair, elsewhere[name]) for name, pair in own.items() if name in elsewhere and pair.real == 1]
    more = [float(beside.control == 1) - float(pair.control == 1) for pair, beside in both]
    interval = difference_interval(more, [pair.cluster for pair, _ in both]) if both else None
    return {"controls": rows, "own_evidence": _share(more, interval)}


def reliance_lines(found: Mapping[str, Any]) -> str:
    """Formats the result of `reliance_of` as lines to print."""
    titles = {
        "added": "score, real images minus control",
        "changed": "answers that change",
        "stay_right": "right answers that stay right",
        "vrs": "Visual Reliance Score",
        "image_sensitivity": "Image Sensitivity",
    }
    lines = [f"reliance on what {found['control']} takes away ({found['rule']})"]
    lines += [_line(title, found[name], 36) for name, title in titles.items() if found.get(name, {}).get("n")]
    if added := found.get("added_logprob"):
        interval = "{:+.3f} to {:+.3f}".format(*added["interval"]) if added["interval"] else "-"
        lines.append(f"{'log-probability that it adds':36s}{added['n']:7,d}{added['value']:+9.3f}  {interval} nats")
    return "\n".join(lines)


def _line(title: str, share: Share, width: int) -> str:
    return f"{title:{width}s}{share['n']:7,d}{share['value']:9.1%}  {percent_interval(share['interval'])}"


def dependence_table(found: Mapping[str, Any]) -> str:
    """Formats the result of `dependence` as lines to print."""
    lines = [f"{'right answers':24s}{'n':>7s}{'wrong':>9s}  95 % interval"]
    rows = {**found["controls"], "own evidence": found["own_evidence"]}
    lines += [_line(name, share, 24) for name, share in rows.items() if share["n"]]
    if found["own_evidence"]["n"]:
        lines.append("own evidence: erase_masks minus erase_elsewhere, of the samples in both")
    return "\n".join(lines)


def _name(real: Path, directory: Path) -> str:
    """Returns the name of an evaluation beside which another one lies: WORKDIR/evaluation/NAME, or a benchmark in it."""
    return real.name if real.parent == directory.parent else real.parent.name


def _pairs(real: Path, control: Path) -> tuple[str, dict[str, Pair]]:
    """Returns the first rule that scores answers in both evaluations, the primary one first, and its pairs by sample."""
    first, second = read_verdicts(real), read_verdicts(control)
    primary = primary_rule(real)
    rules = dict.fromkeys(rule for line in first.values() for rule in line["rules"])
    for rule in sorted(rules, key=lambda rule: rule != primary):
        pairs = pair_verdicts(rule, first, second)
        if pairs := {name: pair for name, pair in pairs.items() if not first[name]["rules"][rule].get("masks")}:
            return rule, pairs
    return "", {}
