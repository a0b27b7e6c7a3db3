"""Judges the answers of an evaluation folder with a language model, by an endpoint or by batch files, and says what it did."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from vitar_jax.evaluation.judge import ChatJudge, Judgements
from vitar_jax.evaluation.outcomes import read_outcomes
from vitar_jax.evaluation.results import to_be_judged
from vitar_jax.evaluation.rules import Rule
from vitar_jax.runtime.endpoint import ChatClient


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """Settings of the judge: its model, its endpoint, fields of its requests, and the files of batch requests and responses."""

    model: str
    url: str
    key_variable: str
    request: Mapping[str, Any]
    requests: str
    responses: str


def judgements(directory: Path, rules: Sequence[Rule], judge: JudgeSettings) -> Judgements:
    """Returns the judge's verdicts, updated as the settings say; exports requests for unjudged answers."""
    asked = to_be_judged(rules, read_outcomes(directory))
    kept = Judgements(directory / "judgements.jsonl", judge.model)
    if judge.responses:
        silent = kept.import_responses(asked, Path(judge.responses))
        print(f"judge: {silent} responses without a verdict")
        for reason in kept.reasons:
            print(f"judge: {reason}")
    if judge.url:
        key = os.environ.get(judge.key_variable, "")
        client = ChatClient(judge.url, judge.model, directory / "judge_replies.jsonl", judge.request, key=key)
        with closing(client):
            kept.ask(ChatJudge(client), asked)
        print(f"judge: {', '.join(f'{what} {n}' for what, n in client.counts.most_common()) or 'nothing to ask'}")
        for reason in client.reasons.values():
            print(f"judge: {reason}")
    if judge.requests:
        requests = kept.export_requests(asked, Path(judge.requests), judge.request)
        print(f"judge: wrote {requests} requests to {judge.requests}")
    return kept
