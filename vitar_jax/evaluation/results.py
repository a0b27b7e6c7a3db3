"""Scores of an evaluation folder: `scores.json` by rule and measure, and `verdicts.jsonl` by sample.

Each rule has two scores, because publications use both: over all samples, where a sample without an answer is wrong, and over
answered samples only. The score of a rule for masks is A-mIoU; its other scores, and those of each class of questions (the
metadata `classes`), are beside it.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitar_jax.errors import DataError
from vitar_jax.evaluation.calibration import calibration
from vitar_jax.evaluation.confidence import NAME as CONFIDENCE
from vitar_jax.evaluation.judge import Judgements, Question
from vitar_jax.evaluation.mask_scores import POOLED
from vitar_jax.evaluation.measures import MEASURES, Measure
from vitar_jax.evaluation.medvigil import Probe, audit
from vitar_jax.evaluation.outcomes import SampleOutcome, clusters, played, read_outcomes, read_references
from vitar_jax.evaluation.rules import Item, Rule, Verdict
from vitar_jax.evaluation.statistics import score_interval
from vitar_jax.runtime.crash_safe import atomic_replace, read_json, read_json_lines

SCORES, VERDICTS, TIMING = "scores.json", "verdicts.jsonl", "timing.jsonl"
LEFT_OUT = "left_out.json"  # samples that lack what a control needs, with the reason
MOST_VALUES = 32  # most values of a metadata key that scores are broken down by


@dataclasses.dataclass(frozen=True)
class _Scored:
    """An outcome with a rule's verdict, if the rule scores it."""

    outcome: SampleOutcome
    cluster: str
    verdict: Verdict
    correct: float

    @property
    def values(self) -> Sequence[float]:
        """The values that the rule's score is the mean of: one per sample, or per mask of the answer."""
        return self.verdict.masks.answer if self.verdict.masks else (self.correct,)


def write_scores(
    directory: Path,
    rules: Sequence[Rule],
    judgements: Judgements | None = None,
    *,
    primary: Rule | None = None,
    measures: Sequence[Measure] = (),
) -> dict[str, Any]:
    """Scores a folder's trajectories, writes both files and returns the contents of `scores.json`.

    Args:
      judgements: Verdicts of the judge, for rules that need one; they do not score unjudged answers.
      primary: Rule that marks answers right or wrong in tables and reports (default: the first of `rules`).
      measures: Measures to compute besides the registered ones.

    Raises:
      DataError: If the folder has no samples, or a file is damaged.
    """
    primary = primary or rules[0]
    rules = list(dict.fromkeys([primary, *rules]))
    outcomes = read_outcomes(directory)
    what, of = clusters(outcomes)
    verdicts = {rule: [verdict(rule, outcome, judgements) for outcome in outcomes] for rule in rules}
    statuses = Counter(outcome.status for outcome in outcomes)
    found = {
        "samples": len(outcomes),
        "failures": statuses["failed"],
        "truncated": statuses["truncated"],
        "unanswered": statuses["unanswered"],
        "clusters": {"of": what, "n": len(set(of))},
        "primary": str(primary),
        "rules": {str(rule): _rule_scores(rule, outcomes, of, verdicts[rule]) for rule in rules},
        "measures": _measured(directory, measures, {o.sample_id: cluster for o, cluster in zip(outcomes, of, strict=True)}),
        "per_sample": _per_sample(directory, outcomes),
        "probability": CONFIDENCE,
    }
    if probes := _probes(outcomes, of, verdicts[primary]):
        found["medvigil"] = audit(probes)
    references = read_references(directory)
    if forced := [references[outcome.sample_id] for outcome in outcomes if outcome.sample_id in references]:
        found["reference_logprob"] = {"value": sum(forced) / len(forced), "n": len(forced)}
    if (directory / LEFT_OUT).exists():
        found["left_out"] = len(read_json(directory / LEFT_OUT))
    lines = [
        {
            "sample_id": outcome.sample_id,
            "cluster": cluster,
            "status": outcome.status,
            "gold": outcome.answer,
            **_gold_masks(outcome),
            "prediction": outcome.prediction,
            "probability": outcome.probability,
            **({"reference_logprob": references[outcome.sample_id]} if outcome.sample_id in references else {}),
            "rules": {str(rule): _as_json(verdicts[rule][i]) for rule in rules},
        }
        for i, (outcome, cluster) in enumerate(zip(outcomes, of, strict=True))
    ]
    with atomic_replace(directory / VERDICTS) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with atomic_replace(directory / SCORES) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _probes(outcomes: Sequence[SampleOutcome], of: Sequence[str], said: Sequence[Verdict]) -> list[Probe]:
    """Returns the outcomes that are scored probes of MedVIGIL."""
    return [
        Probe(
            case=str(outcome.metadata.get("patient", cluster)),
            kind=str(outcome.metadata["probe_kind"]),
            tier=str(outcome.metadata.get("risk_tier", "")),
            answer=one.parsed,
            right=one.correct,
        )
        for outcome, cluster, one in zip(outcomes, of, said, strict=True)
        if "probe_kind" in outcome.metadata and one.correct is not None
    ]


def read_scores(directory: Path) -> dict[str, Any]:
    """Reads `scores.json`.

    Raises:
      DataError: If it does not exist, is damaged, or an earlier version of the package wrote it.
    """
    path = directory / SCORES
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: file does not exist; --phase=score writes it") from None
    if "primary" not in found:
        raise DataError(f"{path}: written by an earlier version; --phase=score rewrites it")
    return found


def read_verdicts(directory: Path) -> dict[str, dict[str, Any]]:
    """Reads `verdicts.jsonl`: the record of each sample by its id.

    Raises:
      DataError: If the file does not exist or is damaged.
    """
    path = directory / VERDICTS
    try:
        return dict(read_json_lines(path, lambda record: (record["sample_id"], record)))
    except FileNotFoundError:
        raise DataError(f"{path}: file does not exist; python -m vitar_jax.evaluate --phase=score writes it") from None


def primary_rule(directory: Path) -> str | None:
    """Returns the primary rule of a folder; None if it has no scores, or if an early version of the package wrote them."""
    path = directory / SCORES
    return read_json(path).get("primary") if path.exists() else None


def read_marks(directory: Path) -> tuple[str, dict[str, float | None]]:
    """Returns a folder's primary rule and the score of each sample under it (None: the rule does not score it)."""
    rule = read_scores(directory)["primary"]
    return rule, dict(read_json_lines(directory / VERDICTS, lambda line: (line["sample_id"], line["rules"][rule]["correct"])))


def verdict(rule: Rule, outcome: SampleOutcome, judgements: Judgements | None = None) -> Verdict:
    """Returns a rule's verdict on an outcome. Outcomes without a gold answer are not scored, except their masks."""
    judge = None if judgements is None else lambda item, said: judgements[_question(item, said)]
    said = rule.verdict(_item(outcome), judge)
    return said if outcome.has_gold or said.masks else dataclasses.replace(said, correct=None)


def _gold_masks(outcome: SampleOutcome) -> dict[str, Any]:
    """Returns the numbers of gold masks in the reasoning and the answer, by which `compare` knows equal samples."""
    masks = outcome.masks
    return {"gold_masks": [len(part.ious) for part in (masks.reasoning, masks.answer)]} if masks else {}


def _as_json(said: Verdict) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(said).items() if key != "masks" or value}


def to_be_judged(rules: Iterable[Rule], outcomes: Sequence[SampleOutcome]) -> list[Question]:
    """Returns the questions that a judge must answer before the rules can score all outcomes."""
    asked: list[Question] = []
    for rule in rules:
        for outcome in outcomes:
            if rule.judged and outcome.has_gold:
                rule.verdict(_item(outcome), lambda item, said: asked.append(_question(item, said)))
    return asked


def table(found: Mapping[str, Any]) -> str:
    """Formats scores and measures as a table to print. Omits rules that score no sample.

    A * marks the primary rule. Below it are its scores of closed and of open questions, if there are both. A rule for masks has
    a line for each of its scores, and for those of each class of questions. Their n counts masks.
    """
    shown = set()
    lines = [f"{'rule':24s}{'n':>7s}{'score':>9s}  {'95 % interval':16s}{'without errors':>16s}"]

    def add(label: str, share: Mapping[str, Any], without: str = "") -> None:
        interval = percent_interval(share["interval"])
        lines.append(f"{label:24s}{share['n']:7,d}{percent(share['score']):>9s}  {interval:16s}{without:>16s}".rstrip())

    for name, scores in found["rules"].items():
        is_primary = name == found["primary"]
        if "masks" in scores:
            shown |= scores["masks"].keys()
            for title, pooled in {"": scores["masks"], **scores["classes"]}.items():
                for key, share in pooled.items():
                    label = f"  {title} {MEASURES[key].title}" if title else f"{name} {MEASURES[key].title}{' *' * is_primary}"
                    add(label, {**share, "score": share["value"]})
        elif scores["n"]:
            add(f"{name} *" if is_primary else name, scores, percent(scores["answered"]["score"]))
        if is_primary and len(scores["kinds"]) > 1 and "masks" not in scores:
            for kind, share in scores["kinds"].items():
                add(f"  {kind} questions", share)
        if scores.get("unjudged"):
            lines.append(f"{name}: {scores['unjudged']:,d} answers are unjudged and not scored")
    if forced := found.get("reference_logprob"):
        lines.append(f"{'reference_logprob':24s}{forced['n']:7,d}{forced['value']:9.3f}  (nats per reference answer, mean)")
    if left_out := found.get("left_out"):
        lines.append(f"{left_out:,d} samples lack what the control needs and are left out")
    for name, share in found.get("medvigil", {}).items():
        if share["value"] is not None:
            add(f"medvigil {name}", {**share, "score": share["value"]})
    for name, measured in found["measures"].items():
        if measured["n"] and name not in shown:
            lines.append(f"{name:24s}{measured['n']:7,d}{measured['value']:9.3g}  ({measured['pooling']})")
    return "\n".join(lines)


def overview(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats a table of several benchmarks, from the `scores.json` of each.

    Has one row per benchmark: its score under its primary rule, that rule, and its scores under the rules that all benchmarks
    have. The last row has unweighted means.
    """
    common = [rule for rule in next(iter(scores.values()))["rules"] if all(rule in found["rules"] for found in scores.values())]
    rules = [rule for rule in common if any(found["rules"][rule]["n"] for found in scores.values())]
    cells = {name: [found["rules"][rule]["score"] for rule in (found["primary"], *rules)] for name, found in scores.items()}
    means = [sum(column) / len(column) if None not in column else None for column in zip(*cells.values(), strict=True)]
    header = ["benchmark", "n", "score", "primary rule", *rules]
    rows = [
        [name, f"{scores[name]['samples']:,d}", percent(values[0]), scores[name]["primary"], *map(percent, values[1:])]
        for name, values in cells.items()
    ]
    lines = [header, *rows, ["mean", "", percent(means[0]), "", *map(percent, means[1:])]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def percent(share: float | None) -> str:
    """Formats a share to print; "-" if there is none."""
    return "-" if share is None else f"{share:.1%}"


def percent_interval(interval: Sequence[float] | None) -> str:
    """Formats an interval of shares to print; "-" if it is unknown."""
    return "{:.1%} to {:.1%}".format(*interval) if interval else "-"


def _item(outcome: SampleOutcome) -> Item:
    return Item(
        outcome.question,
        outcome.options,
        outcome.answer,
        outcome.prediction,
        outcome.kind,
        answers=outcome.answers,
        masks=outcome.masks,
    )


def _question(item: Item, said: Verdict) -> Question:
    return Question(item.question, item.gold, said.parsed)


def _rule_scores(
    rule: Rule, outcomes: Sequence[SampleOutcome], of: Sequence[str], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    rows = [
        _Scored(outcome, cluster, said, said.correct)
        for outcome, cluster, said in zip(outcomes, of, verdicts, strict=True)
        if said.correct is not None
    ]
    answered = [row for row in rows if row.outcome.status == "answered"]
    sure = [(row.outcome.probability, row.correct) for row in answered if row.outcome.probability is not None]
    found = _share(rows) | {
        "answered": _share(answered),
        "kinds": _by(rows, lambda row: row.verdict.kind),
        "breakdowns": {key: _by(rows, lambda row, key=key: str(row.outcome.metadata[key])) for key in _keys(rows)},
        "calibration": calibration(*zip(*sure, strict=True)) if sure else None,
    }
    if masked := [row for row in zip(outcomes, of, verdicts, strict=True) if row[2].masks]:
        found["masks"] = _mask_scores(masked)
        classes = sorted({name for outcome, _, _ in masked for name in _classes(outcome)})
        found["classes"] = {name: _mask_scores([row for row in masked if name in _classes(row[0])]) for name in classes}
    if rule.judged:
        found["unjudged"] = sum(said.correct is None and o.has_gold for o, said in zip(outcomes, verdicts, strict=True))
    return found


def _mask_scores(rows: Sequence[tuple[SampleOutcome, str, Verdict]]) -> dict[str, Any]:
    """Pools the masks of samples, by score."""
    of = [cluster for _, cluster, _ in rows]
    counted = [said.masks for _, _, said in rows if said.masks]
    return {name: MEASURES[name].pool([values(masks) for masks in counted], of) for name, values in POOLED.items()}


def _classes(outcome: SampleOutcome) -> list[str]:
    """Returns the classes of a question, in each of which it counts."""
    classes = outcome.metadata.get("classes", ())
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else []


def _measured(directory: Path, measures: Sequence[Measure], cluster_of: Mapping[str, str]) -> dict[str, Any]:
    """Pools the registered measures and `measures` over the samples that were played."""
    measures = list(dict.fromkeys([*MEASURES.values(), *measures]))
    values: dict[str, list[list[float]]] = {measure.name: [] for measure in measures}
    of = []
    for trajectory in played(directory):
        if trajectory.sample_id in cluster_of:
            of.append(cluster_of[trajectory.sample_id])
            for measure in measures:
                values[measure.name].append(measure.values(trajectory))
    return {measure.name: measure.pool(values[measure.name], of) for measure in measures}


def _share(rows: Sequence[_Scored]) -> dict[str, Any]:
    values = [value for row in rows for value in row.values]
    interval = score_interval(values, [row.cluster for row in rows for _ in row.values])
    return {
        "n": len(rows),
        "score": sum(values) / len(values) if rows else None,
        "interval": list(interval) if interval else None,
    }


def _by(rows: Sequence[_Scored], value: Callable[[_Scored], str]) -> dict[str, Any]:
    groups: dict[str, list[_Scored]] = {}
    for row in rows:
        groups.setdefault(value(row), []).append(row)
    return {name: _share(groups[name]) for name in sorted(groups)}


def _keys(rows: Sequence[_Scored]) -> list[str]:
    """Returns the metadata keys that all rows have, with 2 to `MOST_VALUES` values."""
    shared = set.intersection(*(set(row.outcome.metadata) for row in rows)) if rows else set()
    values = {key: [row.outcome.metadata[key] for row in rows] for key in shared}
    plain = {key: set(found) for key, found in values.items() if all(isinstance(value, str | int) for value in found)}
    return sorted(key for key, found in plain.items() if 1 < len(found) <= MOST_VALUES)


def _per_sample(directory: Path, outcomes: Sequence[SampleOutcome]) -> dict[str, float | None]:
    """Returns means per played sample. Seconds are the wall-clock time of a process per episode, including compilation."""
    stem, suffix = TIMING.split(".")
    spent = [one for path in directory.glob(f"{stem}*.{suffix}") for one in read_json_lines(path, dict)]
    episodes = sum(one["episodes"] for one in spent)
    done = [outcome for outcome in outcomes if outcome.status != "failed"]
    return {
        "seconds": sum(one["seconds"] for one in spent) / episodes if episodes else None,
        "tokens": sum(outcome.tokens for outcome in done) / len(done) if done else None,
        "images": sum(outcome.images_seen for outcome in done) / len(done) if done else None,
    }
