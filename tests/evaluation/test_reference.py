"""Log-probabilities of reference answers, against Hugging Face's; and what the image adds to them, by pairs of runs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.data.interventions import find_change
from vitar_jax.episodes.actions import Answer
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError
from vitar_jax.evaluation.outcomes import read_references
from vitar_jax.evaluation.reference import ReferenceScorer, reference_example, score_references
from vitar_jax.evaluation.reliance import Pair, pair_verdicts, reliance, reliance_lines
from vitar_jax.evaluation.statistics import mean_interval
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.processing.banned import banned_tokens

PROCESSOR = tiny.processor(4)
LIMITS = Limits(tokens=900, turn_tokens=60)
BANNED = banned_tokens(PROCESSOR.chat, tiny.VOCAB)


def sample(name: str = "s", answer: str = "lower left", **changes: object) -> Sample:
    return dataclasses.replace(Sample(name, "Where?", (noise(56, 84),), answer), **changes)


def begin(one: Sample, protocol: str = "direct") -> Episode:
    return Episode(one, PROTOCOLS[protocol], PROCESSOR, LIMITS)


@pytest.fixture(scope="module")
def scorer() -> ReferenceScorer:
    _, model = tiny.pretrained()
    return ReferenceScorer(model, make_mesh(devices=jax.devices()[:1]), PROCESSOR, BANNED)


def of_hugging_face(token_ids: list[int], image: Image.Image, span: range) -> float:
    """The sum of the log-probabilities of a span, among the tokens that are not banned."""
    theirs, _ = tiny.pretrained()
    with torch.no_grad():
        logits = theirs(**tiny.hf_inputs(token_ids, [PROCESSOR.process(image)])).logits[0].double()
    logprobs = torch.log_softmax(logits.masked_fill(torch.tensor(BANNED), -torch.inf), dim=-1)
    return sum(float(logprobs[place - 1, token_ids[place]]) for place in span)


@pytest.mark.slow
def test_the_log_probability_is_hugging_faces(scorer: ReferenceScorer) -> None:
    one = sample()
    for changed in (one, find_change("blank")(one)):
        episode = begin(changed)
        turn = PROCESSOR.chat.turn(PROTOCOLS["direct"].write("", Answer("lower left")))
        ids = [*episode.token_ids, *turn]
        answer = list(PROCESSOR.chat.text("lower left"))
        starts = [n for n in range(len(ids)) if ids[n : n + len(answer)] == answer]
        expected = of_hugging_face(ids, changed.images[0], range(starts[-1], starts[-1] + len(answer)))  # type: ignore[arg-type]
        assert expected < -1
        assert scorer([reference_example(episode)]) == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize("protocol", ["direct", "vitar", "medeyes", "plain"])
def test_the_reference_answer_alone_is_scored_in_the_words_of_a_protocol(protocol: str) -> None:
    episode = begin(sample(answer="lower left"), protocol)
    example = reference_example(episode)
    scored = PROCESSOR.chat.decode(example.token_ids[example.loss_mask].tolist())
    assert scored.strip(' "') == "lower left" and not episode.turns
    assert example.token_ids[: len(episode.token_ids)].tolist() == episode.token_ids
    blank = reference_example(begin(find_change("blank")(sample(answer="lower left")), protocol))
    assert np.array_equal(example.token_ids, blank.token_ids) and np.array_equal(example.loss_mask, blank.loss_mask)


def test_what_cannot_be_scored_is_named() -> None:
    for answer, message in (("", "has no reference answer"), ('a "b"', "spells its reference answer differently")):
        with pytest.raises(DataError, match=f"sample s: .*{message}"):
            reference_example(begin(sample(answer=answer)))


def test_a_folder_is_scored_once(scorer: ReferenceScorer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [sample("a"), sample("b", "upper right"), sample("c", "")]
    loads: list[int] = []

    def load() -> ReferenceScorer:
        loads.append(1)
        return scorer

    score_references(load, begin, samples[:1], tmp_path)
    first = read_references(tmp_path)
    with (tmp_path / "reference.jsonl").open("a") as file:
        file.write('{"sample_id": "b", "logp')  # a kill
    score_references(load, begin, samples, tmp_path)
    found = read_references(tmp_path)
    assert list(found) == ["a", "b"] and found["a"] == first["a"] and "sample c: has no reference answer" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "reference.jsonl").open()]
    assert [line["tokens"] for line in lines] == [2, 2] and found["b"] == lines[1]["logprob"] < 0
    blank = tmp_path / "blank"
    blank.mkdir()
    score_references(load, begin, samples[:1], blank, change=find_change("blank"))
    assert read_references(blank)["a"] != found["a"]
    score_references(load, begin, samples, blank, change=find_change("region_erased"))  # which they lack
    assert list(read_references(blank)) == ["a"] and "sample b: has no box or mask" in caplog.text
    count = len(loads)
    score_references(load, begin, samples[:2], tmp_path)
    assert len(loads) == count  # nothing is left to load a model for


def verdicts(logprobs: Callable[[int], float | None], right: float) -> dict[str, dict]:
    lines = {str(n): {"cluster": "pq"[n % 2], "rules": {"exact/1": {"correct": right, "parsed": "x"}}} for n in range(6)}
    values = {n: logprobs(int(n)) for n in lines}
    return {n: line | ({} if values[n] is None else {"reference_logprob": values[n]}) for n, line in lines.items()}


def test_what_the_image_adds_is_paired_by_sample_and_clustered() -> None:
    real = verdicts(lambda n: -0.1 * n, 1.0)
    control = verdicts(lambda n: None if n == 3 else -0.1 * n - (1 + n % 2), 0.0)
    pairs = [*pair_verdicts("exact/1", real, control).values()]
    found = reliance(pairs)["added_logprob"]
    differences, clusters = [1.0, 2.0, 1.0, 1.0, 2.0], [*"pqppq"]
    assert (found["value"], found["n"]) == (pytest.approx(1.4), 5)
    assert found["interval"] == pytest.approx(mean_interval(differences, clusters))
    said = reliance_lines({"control": "blank", "rule": "exact/1", **reliance(pairs)})
    assert "log-probability that it adds" in said and "+1.400" in said
    without = pair_verdicts("exact/1", real, verdicts(lambda n: None, 0.0))
    assert "added_logprob" not in reliance([*without.values()]) and Pair("a", 1, 0).added_logprob is None
