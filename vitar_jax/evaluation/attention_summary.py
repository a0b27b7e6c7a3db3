"""Attention before and after the look: means of the records of `measure_attention` over trajectories, and their table."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vitar_jax.errors import DataError
from vitar_jax.evaluation.outcomes import choose_clusters
from vitar_jax.evaluation.statistics import Interval, mean_interval, score_interval

TURN_NAMES = {1: "think", 2: "rethink"}  # by turn
DIFFERENCE = "difference"
FEW_CLUSTERS = 20
_OF_BOX = ("mass", "enrichment", "pointing", "random_enrichment", "random_pointing")

_SHARE = {"share": "attention on {}", "same_length_text": "control: on equally many text tokens"}
_BOX = {
    "enrichment": "enrichment in {}",
    "random_enrichment": "control: in random boxes of the same shape",
    "pointing": "pointing at {}",
    "random_pointing": "control: at random boxes of the same shape",
}


def summarise(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Averages measures over trajectories.

    A trajectory's value is the mean over layers and heads. Over several images of a kind, shares are summed and measures of
    boxes are averaged.

    Args:
      records: One per turn. The records of a trajectory are consecutive and in the order of turns.

    Returns:
      {measure: {which: {"mean", "interval", "n", "clusters", "layers": mean of each layer}}}, where which is "think" (turn 1),
      "rethink" (turn 2) or "difference" (within trajectories that have both). The 95 % interval counts clusters, like those of
      scores: patients if all trajectories have one, else images. It is None for a single cluster. Omits entries without values.

    Raises:
      DataError: If there are no records.
    """
    found: dict[str, dict[str, list[tuple[int, np.ndarray]]]] = defaultdict(lambda: defaultdict(list))
    before: dict[str, np.ndarray] = {}
    keys: list[Mapping[str, str]] = []
    for number, record in enumerate(records):
        turn, now = record["turn"], _measures(record)
        keys.append(record["clusters"])
        if turn == 1:
            before = now
        for name, values in now.items() if turn in TURN_NAMES else ():
            found[name][TURN_NAMES[turn]].append((number, _mean(values, axis=1)))
            if turn == 2 and name in before:
                found[name][DIFFERENCE].append((number, _mean(values, axis=1) - _mean(before[name], axis=1)))
    if not keys:
        raise DataError("attention: no turns to summarise")
    _, clusters = choose_clusters(keys)
    cells = {
        name: {
            which: _cell(
                np.array([each for _, each in values]),
                [clusters[number] for number, _ in values],
                limits=_limits(name, which),
            )
            for which, values in by_turn.items()
        }
        for name, by_turn in found.items()
    }
    return {name: {which: cell for which, cell in by_turn.items() if cell["n"]} for name, by_turn in sorted(cells.items())}


def _limits(name: str, which: str) -> tuple[float, float]:
    """Returns the limits of a measure's values. Enrichments are ratios, all others are shares."""
    highest = math.inf if name.endswith("enrichment") else 1.0
    return (-highest, highest) if which == DIFFERENCE else (0.0, highest)


def _cell(
    values: Float[np.ndarray, "trajectories L"], clusters: Sequence[str], limits: tuple[float, float]
) -> dict[str, Any]:
    """Summarises a measure over trajectories. NaN marks layers without a value."""
    each = _mean(values, axis=1)
    known = np.isfinite(each)
    each, of = each[known].tolist(), [cluster for cluster, here in zip(clusters, known, strict=True) if here]
    return {
        "mean": float(np.mean(each)) if each else None,
        "interval": _interval(each, of, limits),
        "n": len(each),
        "clusters": len(set(of)),
        "layers": [float(value) if np.isfinite(value) else None for value in _mean(values, axis=0)],
    }


def _interval(values: Sequence[float], clusters: Sequence[str], limits: tuple[float, float]) -> Interval | None:
    low, high = limits
    if limits == (0.0, 1.0):
        most = max(values, default=0.0)
        if most < 1 + 1e-6:  # a sum over images may exceed 1 by rounding
            return score_interval(np.clip(values, low, high).tolist(), clusters)
        high = math.inf  # the control of several images can exceed 1, because its windows of text overlap
    return mean_interval(values, clusters, low=low, high=high)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns the mean of the finite values, or NaN if there are none."""
    return np.ma.masked_invalid(values).mean(axis=axis).filled(np.nan)


def _measures(record: Mapping[str, Any]) -> dict[str, Float[np.ndarray, "L H"]]:
    """Returns a record's measures by name, for example "original/gold/enrichment"."""
    named = {"text/share": np.array(record["text"], float)}
    for which in ("original", "edited"):
        images = [image for image in record["images"] if image["edited"] == (which == "edited")]
        for measure in ("share", "same_length_text"):
            if images:
                named[f"{which}/{measure}"] = np.sum([np.array(image[measure], float) for image in images], axis=0)
        for kind in ("gold", "model"):
            boxes = [image["boxes"][kind] for image in images if kind in image["boxes"]]
            for measure in _OF_BOX if boxes else ():
                each = [np.array(box[measure], float) for box in boxes]
                named[f"{which}/{kind}/{measure}"] = np.mean(each, axis=0)
    for measure in ("share", "same_length_text"):
        parts = [named[name] for which in ("original", "edited") if (name := f"{which}/{measure}") in named]
        if parts:
            named[f"all images/{measure}"] = np.sum(parts, axis=0)
    return named


def table(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Formats the summary's means and intervals as a Markdown table.

    A * marks Student's intervals of few clusters, and a line below the table explains it.
    """
    lines = ["| | think | rethink | rethink - think |", "|---|---|---|---|"]
    for name, words in _rows():
        if by_turn := summary.get(name):
            columns = (*TURN_NAMES.values(), DIFFERENCE)
            cells = [_text(by_turn[which], name, which) if which in by_turn else "" for which in columns]
            lines.append(f"| {words} | {' | '.join(cells)} |")
    if any("*" in line for line in lines):
        lines += ["", f"\\* of fewer than {FEW_CLUSTERS} images or patients; the interval is too narrow if values are skewed"]
    return "\n".join(lines)


def _rows() -> Iterator[tuple[str, str]]:
    """Yields the name and title of each measure, in the order of the table."""
    images = {"original": "the original image", "edited": "the edited image", "all images": "all images"}
    for which, image in images.items():
        for measure, words in _SHARE.items():
            yield f"{which}/{measure}", words.format(image)
    for which in ("original", "edited"):
        for kind, box in (("gold", "the gold box"), ("model", "the model's box")):
            for measure, words in _BOX.items():
                yield f"{which}/{kind}/{measure}", words.format(f"{box} on {images[which]}")


def _text(cell: Mapping[str, Any], name: str, which: str) -> str:
    """Formats a cell, for example "18.2 % (17.9 to 18.4)" or "2.80 (2.65 to 2.95)*"."""
    percent = not name.endswith("enrichment")
    mean, *interval = (f"{100 * x:.1f}" if percent else f"{x:.2f}" for x in (cell["mean"], *(cell["interval"] or ())))
    mark = "*" if _limits(name, which) != (0.0, 1.0) and cell["clusters"] < FEW_CLUSTERS else ""
    return mean + " %" * percent + (f" ({' to '.join(interval)}){mark}" if interval else "")
