"""Comparison of two evaluations of the same samples: difference, interval and p-value under each rule."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vitar_jax.data.sides import swap_sides
from vitar_jax.errors import DataError
from vitar_jax.evaluation.mask_scores import POOLED, CountedMasks
from vitar_jax.evaluation.measures import MEASURES
from vitar_jax.evaluation.reliance import pair_verdicts, read_settings, reliance_of
from vitar_jax.evaluation.results import primary_rule, read_verdicts
from vitar_jax.evaluation.statistics import (
    Interval,
    difference_interval,
    mcnemar_p_value,
    mean_interval,
    pooled_influence,
    sign_flip_p_value,
)

SWAPPED = "flip:swap"  # the control under which the gold answers name the other side


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Compares the verdicts of two folders on their common samples, under their common rules.

    `primary` is the rule that marks right and wrong in both folders, or None if they differ. Its row comes first.

    The row of a rule has:

      n                  number of samples that the rule scores in both
      first, second      scores on these samples
      difference         second - first, with its 95 % `interval` (`difference_interval`, by cluster)
      better_in_first, better_in_second    number of samples that score higher in one than in the other
      p_value            p-value of `test`: McNemar's if all verdicts are 0 or 1, else sign flips by cluster
      p_value_clustered  p-value of sign flips by cluster. Use this one if several samples share an image.

    A rule for masks has a row for each of its scores, which are pooled over masks, for example "vrt/1 R-LQ". Where both runs
    count the same masks, masks are paired, and n counts them. Otherwise (R-SQ, and masks that no one asked for) samples are
    paired, and n counts those with masks; the interval is Student's, from the linearised scores.

    `reliance` holds the numbers of `evaluation/reliance.py` if one run is the other under a control, else None.

    Raises:
      DataError: If a folder has no verdicts, if the two share no sample or no rule, or if the gold answers of a sample, or the
        numbers of its gold masks, differ.
    """
    ours, theirs = read_verdicts(first), read_verdicts(second)
    both = [sample for sample in ours if sample in theirs]
    swapped = SWAPPED in (read_settings(first)[0].get("control"), read_settings(second)[0].get("control"))
    for sample in both:
        golds = ours[sample]["gold"], theirs[sample]["gold"]
        if golds[0] != golds[1] and not (swapped and swap_sides(golds[0]) == golds[1]):
            raise DataError(f"{first} and {second}: the gold answers of {sample!r} differ")
        if ours[sample].get("gold_masks") != theirs[sample].get("gold_masks"):
            raise DataError(f"{first} and {second}: the gold masks of {sample!r} differ")
    pairs = [(ours[sample], theirs[sample]) for sample in both]
    rules = dict.fromkeys(rule for one, other in pairs for rule in one["rules"] if rule in other["rules"])
    rows: dict[str, dict[str, Any]] = {}
    for rule in rules:
        if masked := _masked(rule, pairs):
            rows |= {f"{rule} {MEASURES[name].title}": row for name in POOLED if (row := _mask_row(name, masked))}
        elif scored := pair_verdicts(rule, ours, theirs):
            rows[rule] = _paired([(pair.cluster, pair.real, pair.control) for pair in scored.values()])
    primary = primary_rule(first) if primary_rule(first) == primary_rule(second) else None
    if not rows:
        raise DataError(f"{first} and {second}: have no sample in common that the same rule scores")
    return {
        "first": str(first),
        "second": str(second),
        "samples": len(both),
        "only_in_first": len(ours) - len(both),
        "only_in_second": len(theirs) - len(both),
        "primary": primary,
        "reliance": reliance_of(first, second) or reliance_of(second, first),
        "rules": dict(sorted(rows.items(), key=lambda item: item[0].split(" ")[0] != primary)),
    }


def comparison_lines(found: Mapping[str, Any]) -> str:
    """Formats a comparison to print: one line per rule, with a * at the primary one."""
    lines = []
    for rule, row in found["rules"].items():
        label = f"{rule} *" if rule == found["primary"] else rule
        interval = "{:+.1%} to {:+.1%}".format(*row["interval"]) if row["interval"] else "-"
        lines.append(
            f"{label:24s}{row['first']:8.1%}{row['second']:8.1%}{row['difference']:+8.1%} ({interval})"
            f"  p = {row['p_value']:.3g} ({row['test']}), by cluster {row['p_value_clustered']:.3g}"
        )
    return "\n".join(lines)


def _paired(scored: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Returns the row of pairs, each with its cluster and both scores."""
    clusters, first, second = zip(*scored, strict=True)
    differences = [after - before for _, before, after in scored]
    scores = sum(first) / len(scored), sum(second) / len(scored)
    interval = difference_interval(differences, clusters)
    return _row(scores, differences, clusters, interval, binary={*first, *second} <= {0, 1})


def _row(
    scores: tuple[float, float],
    differences: Sequence[float],
    clusters: Sequence[str],
    interval: Interval | None,
    *,
    binary: bool = False,
) -> dict[str, Any]:
    """Returns the row of two scores, given one difference per pair, whose mean is the difference of the scores."""
    less, more = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    clustered = sign_flip_p_value(differences, clusters)
    return {
        "n": len(differences),
        "clusters": len(set(clusters)),
        "first": scores[0],
        "second": scores[1],
        "difference": sum(differences) / len(differences),
        "interval": list(interval) if interval else None,
        "better_in_first": less,
        "better_in_second": more,
        "test": "mcnemar" if binary else "sign_flip",
        "p_value": mcnemar_p_value(less, more) if binary else clustered,
        "p_value_clustered": clustered,
    }


def _masked(
    rule: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> list[tuple[str, CountedMasks, CountedMasks]]:
    """Returns the cluster of each sample, and the masks that the rule counts in both of its episodes."""
    both = [(one["cluster"], one["rules"].get(rule, {}), other["rules"].get(rule, {})) for one, other in pairs]
    return [
        (cluster, CountedMasks(**one["masks"]), CountedMasks(**other["masks"]))
        for cluster, one, other in both
        if "masks" in one and "masks" in other
    ]


def _mask_row(name: str, masked: Sequence[tuple[str, CountedMasks, CountedMasks]]) -> dict[str, Any] | None:
    """Returns the row of one score of a rule for masks, or None if a run has no masks to score."""
    samples = [(cluster, POOLED[name](one), POOLED[name](other)) for cluster, one, other in masked]
    samples = [sample for sample in samples if sample[1] or sample[2]]
    if not any(one for _, one, _ in samples) or not any(other for _, _, other in samples):
        return None
    clusters, first, second = zip(*samples, strict=True)
    if name != "r_sq" and all(len(one) == len(other) for _, one, other in samples):
        return _paired([(cluster, *pair) for cluster, one, other in samples for pair in zip(one, other, strict=True)])
    before, after = (sum(chain(*values)) / sum(map(len, values)) for values in (first, second))
    differences = (pooled_influence(second) - pooled_influence(first)).tolist()
    return _row((before, after), differences, clusters, mean_interval(differences, clusters, low=-1, high=1))
