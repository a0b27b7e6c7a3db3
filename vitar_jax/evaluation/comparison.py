"""Two evaluations of the same samples, side by side: by how much they differ under each rule, and whether by chance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitar_jax.errors import DataError
from vitar_jax.evaluation.results import VERDICTS
from vitar_jax.evaluation.statistics import bootstrap_interval, mcnemar_p_value, sign_flip_p_value
from vitar_jax.runtime.crash_safe import read_json_lines


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Compares the verdicts of two folders, by rules that both were scored under and samples that both had.

    A rule's row has: `n` samples that it scores in both; `first` and `second`, their scores on those; `difference`, second less
    first, and `interval` of 95 % by clustered bootstrap; how many are worth more in one than in the other; `p_value` of `test`,
    which is McNemar's where all verdicts are right or wrong, else sign flips by cluster; and `p_value_clustered`, of sign flips
    by cluster always, which is the one to go by where several samples share an image.

    Raises:
      DataError: a folder holds no verdicts, they share no sample or no rule, or the same sample has two references.
    """
    ours, theirs = _read(first), _read(second)
    both = [sample for sample in ours if sample in theirs]
    for sample in both:
        if ours[sample]["gold"] != theirs[sample]["gold"]:
            raise DataError(f"{first} and {second}: the reference of {sample!r} is not the same")
    pairs = [(ours[sample], theirs[sample]) for sample in both]
    rules = dict.fromkeys(rule for one, other in pairs for rule in one["rules"] if rule in other["rules"])
    rows = {rule: row for rule in rules if (row := _row(rule, pairs))}
    if not rows:
        raise DataError(f"{first} and {second}: have no sample in common that is scored by the same rule")
    return {
        "first": str(first),
        "second": str(second),
        "samples": len(both),
        "only_in_first": len(ours) - len(both),
        "only_in_second": len(theirs) - len(both),
        "rules": rows,
    }


def _row(rule: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any] | None:
    """None where the rule scores nothing in both."""
    scored = [
        (one["cluster"], one["rules"][rule]["correct"], other["rules"][rule]["correct"])
        for one, other in pairs
        if rule in one["rules"] and rule in other["rules"]
    ]
    scored = [row for row in scored if None not in row]
    if not scored:
        return None
    clusters, first, second = zip(*scored, strict=True)
    differences = [after - before for _, before, after in scored]
    less, more = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    interval, clustered = bootstrap_interval(differences, clusters), sign_flip_p_value(differences, clusters)
    binary = {*first, *second} <= {0, 1}
    n = len(scored)
    return {
        "n": n,
        "clusters": len(set(clusters)),
        "first": sum(first) / n,
        "second": sum(second) / n,
        "difference": sum(differences) / n,
        "interval": list(interval) if interval else None,
        "better_in_first": less,
        "better_in_second": more,
        "test": "mcnemar" if binary else "sign_flip",
        "p_value": mcnemar_p_value(less, more) if binary else clustered,
        "p_value_clustered": clustered,
    }


def _read(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / VERDICTS
    try:
        return dict(read_json_lines(path, lambda record: (record["sample_id"], record)))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; python -m vitar_jax.evaluate --phase=score makes it") from None
