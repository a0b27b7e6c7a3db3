"""What an evaluation is worth under each rule, from the files of its folder: `scores.json`, and `verdicts.jsonl` by sample.

Every number is there twice, with what has no answer as wrong and without it, since published ones are either.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitar_jax.evaluation.calibration import calibration
from vitar_jax.evaluation.confidence import NAME as CONFIDENCE
from vitar_jax.evaluation.judge import Judgements, Question
from vitar_jax.evaluation.looks import score
from vitar_jax.evaluation.outcomes import Outcome, clusters, played, read_outcomes
from vitar_jax.evaluation.rules import RULES, Item, Rule, Verdict
from vitar_jax.evaluation.statistics import score_interval
from vitar_jax.runtime.crash_safe import atomic_replace, read_json_lines

SCORES, VERDICTS, TIMING = "scores.json", "verdicts.jsonl", "timing.jsonl"
MOST_VALUES = 32  # that metadata may have to be broken down by


@dataclasses.dataclass(frozen=True)
class _Scored:
    """An outcome under a rule that scores it."""

    outcome: Outcome
    cluster: str
    verdict: Verdict
    correct: float


def write_scores(directory: Path, rules: Sequence[Rule], judgements: Judgements | None = None) -> dict[str, Any]:
    """Scores a folder's trajectories, writes both files and returns what `scores.json` holds.

    Args:
      judgements: of rules that need a judge; what is not judged is not scored by them.

    Raises:
      DataError: the folder holds nothing to score, or a file is damaged.
    """
    outcomes = read_outcomes(directory)
    what, of = clusters(outcomes)
    verdicts = {rule: [verdict(rule, outcome, judgements) for outcome in outcomes] for rule in rules}
    known = {outcome.sample_id for outcome in outcomes}
    found = score(trajectory for trajectory, _ in played(directory) if trajectory.sample_id in known).to_json()
    statuses = Counter(outcome.status for outcome in outcomes)
    found |= {
        "accuracy_rule": str(RULES["exact"]),
        "failures": statuses["failed"],
        "samples": len(outcomes),
        "truncated": statuses["truncated"],
        "unanswered": statuses["unanswered"],
        "per_sample": _per_sample(directory, outcomes),
        "clusters": {"of": what, "n": len(set(of))},
        "probability": CONFIDENCE,
        "rules": {str(rule): _rule_scores(rule, outcomes, of, verdicts[rule]) for rule in rules},
    }
    lines = [
        {
            "sample_id": outcome.sample_id,
            "cluster": cluster,
            "status": outcome.status,
            "gold": outcome.answer,
            "prediction": outcome.prediction,
            "probability": outcome.probability,
            "rules": {str(rule): dataclasses.asdict(verdicts[rule][i]) for rule in rules},
        }
        for i, (outcome, cluster) in enumerate(zip(outcomes, of, strict=True))
    ]
    with atomic_replace(directory / VERDICTS) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with atomic_replace(directory / SCORES) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n")
    return found


def verdict(rule: Rule, outcome: Outcome, judgements: Judgements | None = None) -> Verdict:
    """What a rule says of an outcome. One without a reference is not scored."""
    item = _item(outcome)
    said = rule.verdict(item)
    if not outcome.answer:
        return dataclasses.replace(said, correct=None)
    if rule.judged and said.correct is None and judgements is not None:
        return rule.verdict(dataclasses.replace(item, judged=judgements[_question(item, said)]))
    return said


def to_be_judged(rules: Iterable[Rule], outcomes: Sequence[Outcome]) -> list[Question]:
    """What a judge has to say for rules to score all that they can."""
    asked = []
    for rule in rules:
        for item in (_item(outcome) for outcome in outcomes if rule.judged and outcome.answer):
            said = rule.verdict(item)
            if said.correct is None:
                asked.append(_question(item, said))
    return asked


def table(found: Mapping[str, Any]) -> str:
    """The scores of `scores.json` as lines to print, rules that score nothing left out."""
    lines = [f"{'rule':24s}{'n':>7s}{'score':>9s}  {'95 % interval':16s}{'without errors':>16s}"]
    for name, scores in found["rules"].items():
        if scores["n"]:
            interval = "{:.1%} to {:.1%}".format(*scores["interval"]) if scores["interval"] else "-"
            answered = scores["answered"]["score"]
            without = "-" if answered is None else f"{answered:.1%}"
            lines.append(f"{name:24s}{scores['n']:7,d}{scores['score']:9.1%}  {interval:16s}{without:>16s}")
        if scores.get("unjudged"):
            lines.append(f"{name}: {scores['unjudged']:,d} answers are not judged, and not scored")
    return "\n".join(lines)


def overview(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of several benchmarks, of what `scores.json` holds of each: a row a benchmark, a column a rule, and the plain mean
    of each rule that scores all of them."""
    rules = [
        rule for rule in next(iter(scores.values()))["rules"] if any(found["rules"][rule]["n"] for found in scores.values())
    ]
    cells = {name: [found["rules"][rule]["score"] for rule in rules] for name, found in scores.items()}
    means = [sum(column) / len(column) if None not in column else None for column in zip(*cells.values(), strict=True)]
    header = ["benchmark", "n", *rules]
    rows = [[name, f"{scores[name]['samples']:,d}", *map(_percent, values)] for name, values in cells.items()]
    lines = [header, *rows, ["mean", "", *map(_percent, means)]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _item(outcome: Outcome) -> Item:
    return Item(outcome.question, outcome.options, outcome.answer, outcome.prediction, outcome.kind)


def _question(item: Item, said: Verdict) -> Question:
    return Question(item.question, item.gold, said.parsed)


def _rule_scores(rule: Rule, outcomes: Sequence[Outcome], of: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, Any]:
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
    if rule.judged:
        found["unjudged"] = sum(said.correct is None and bool(o.answer) for o, said in zip(outcomes, verdicts, strict=True))
    return found


def _share(rows: Sequence[_Scored]) -> dict[str, Any]:
    correct = [row.correct for row in rows]
    interval = score_interval(correct, [row.cluster for row in rows])
    return {
        "n": len(rows),
        "score": sum(correct) / len(rows) if rows else None,
        "interval": list(interval) if interval else None,
    }


def _by(rows: Sequence[_Scored], value: Callable[[_Scored], str]) -> dict[str, Any]:
    groups: dict[str, list[_Scored]] = {}
    for row in rows:
        groups.setdefault(value(row), []).append(row)
    return {name: _share(groups[name]) for name in sorted(groups)}


def _keys(rows: Sequence[_Scored]) -> list[str]:
    """Metadata that all have, and that sorts them into a few."""
    shared = set.intersection(*(set(row.outcome.metadata) for row in rows)) if rows else set()
    values = {key: [row.outcome.metadata[key] for row in rows] for key in shared}
    plain = {key: set(found) for key, found in values.items() if all(isinstance(value, str | int) for value in found)}
    return sorted(key for key, found in plain.items() if 1 < len(found) <= MOST_VALUES)


def _per_sample(directory: Path, outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Means over what was played. Seconds are those that a process spent on all that it played, programs compiled included."""
    stem, suffix = TIMING.split(".")
    spent = [one for path in directory.glob(f"{stem}*.{suffix}") for one in read_json_lines(path, dict)]
    episodes = sum(one["episodes"] for one in spent)
    done = [outcome for outcome in outcomes if outcome.status != "failed"]
    return {
        "seconds": sum(one["seconds"] for one in spent) / episodes if episodes else None,
        "tokens": sum(outcome.tokens for outcome in done) / len(done) if done else None,
        "images": sum(outcome.images_seen for outcome in done) / len(done) if done else None,
    }
