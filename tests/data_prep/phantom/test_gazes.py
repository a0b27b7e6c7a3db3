"""Searches of phantoms: the expert looks at one spot after another, in words of the tokenizer, and is right if it has seen."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_prep.phantom.gazes import MISSES, SETTINGS, SIDE, dialogues, poor_searches, searches
from data_prep.phantom.proof import found, gazes, what_started, what_the_expert_taught
from data_prep.phantom.search import source
from data_prep.phantom.tokenizer import GAZE_SKELETONS, GAZE_WORDS, build_tokenizer, save_for_gazes
from tests.kit import tiny
from tests.kit.recipes import load_config
from vitar_jax.episodes.actions import Answer, ToolCall
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box, centre

SAMPLES = source("test", seed=0, length=200)


def shows(look: Box, spot: Box) -> bool:
    """Whether a look has the expert's size and shows a spot, nearly all of it."""
    x, y = centre(spot)
    within = min(x - look.x1, look.x2 - x, y - look.y1, look.y2 - y)
    return within > spot.width / 2 - 6 and max(look.width, look.height) == pytest.approx(SIDE, abs=1)


def test_a_search_looks_at_spots_until_one_shows_the_answer():
    for n in range(20):
        sample = SAMPLES[n]
        spots = [Box(*box, "original") for box in sample.metadata["other_boxes"]] + [*sample.boxes]
        for trace in searches(sample):
            boxes = [step.box for step in trace.looks]
            assert trace.right and trace.answer == sample.answer and trace.end == "confident"
            assert all(sum(shows(box, spot) for spot in spots) == 1 for box in boxes)
            assert shows(boxes[-1], sample.boxes[0]) and len(set(boxes)) == len(boxes)
            *before, last = trace.demonstration().looks
            assert [look.thought.startswith("shows flat ") for look in [*before, last][1:]] == [True] * len(before)
            assert trace.demonstration().answer.thought == f"shows {sample.metadata['kind']}"


def test_searches_differ_and_are_the_same_every_time():
    lengths = Counter(len(trace.looks) for n in range(60) for trace in searches(SAMPLES[n]))
    assert lengths[1] / lengths.total() == pytest.approx(0.5, abs=0.1) and set(lengths) == {1, 2}
    assert searches(SAMPLES[3]) == searches(SAMPLES[3])
    assert sum(len({trace.looks for trace in searches(SAMPLES[n])}) > 1 for n in range(30)) > 25
    assert all(len(searches(SAMPLES[n])) == SETTINGS.searches for n in range(2))


def test_a_poor_expert_guesses_where_it_misses_the_right_spot():
    """A scan misses a spot, so all searches of a sample miss it."""
    right, missed = [], []
    for n in range(100):
        traces = poor_searches(SAMPLES[n])
        seen = [any(shows(step.box, SAMPLES[n].boxes[0]) for step in trace.looks) for trace in traces]
        assert len(set(seen)) == 1
        missed.append(not seen[0])
        right += [trace.right for trace in traces]
        assert seen[0] <= all(trace.right for trace in traces)
    assert np.mean(missed) == pytest.approx(MISSES, abs=0.12)
    assert np.mean(right) == pytest.approx(1 - MISSES * 2 / 3, abs=0.1)


def test_dialogues_are_the_searches_one_by_one():
    items = dialogues("test", seed=0, length=4)
    assert len(items) == 4 * SETTINGS.searches
    for n in (0, 7, 23):
        sample, trace = SAMPLES[n // 6], searches(SAMPLES[n // 6])[n % 6]
        assert items[n].demonstration == trace.demonstration() and items[n].answer == sample.answer
    assert len({items[n].sample_id for n in range(len(items))}) == len(items)


def test_dialogues_of_a_poor_expert_are_its_searches():
    items = dialogues("test", seed=0, length=20, misses=MISSES)
    for n in range(0, 120, 5):
        assert items[n].demonstration == poor_searches(SAMPLES[n // 6])[n % 6].demonstration()
    assert any(items[n].demonstration != dialogues("test", seed=0, length=20)[n].demonstration for n in range(0, 120, 5))


# --- tokens -------------------------------------------------------------------------------------------


def test_turns_are_short_and_of_known_words():
    """Only digits and letters of options are bytes."""
    tokenizer = build_tokenizer(GAZE_SKELETONS, GAZE_WORDS)
    for n in range(12):
        for sample in (SAMPLES[n], dialogues("test", seed=0, length=30)[n]):
            shown = sample.demonstration
            looks = [(look.thought, ToolCall(look.tool, ((10, 11, 20, 21),), 0, {})) for look in shown.looks]
            for thought, outcome in [*looks, (shown.answer.thought, Answer(shown.answer.text))]:
                ids = tokenizer.encode(PROTOCOLS["medeyes"].write(thought, outcome))
                assert all(token >= 256 or tokenizer.decode([token]) in "0123456789BCD" for token in ids)
                assert len(ids) <= (21 if isinstance(outcome, ToolCall) else 6)


def test_the_other_tasks_keep_their_ids():
    plain, more = build_tokenizer(), build_tokenizer(GAZE_SKELETONS, GAZE_WORDS)
    text = '{"thought": "spot upper left zoom close", "actions": [{"name": "zoom", "arguments": {"box": [[1, 2, 3, 4]]}}]}'
    assert more.encode(text) == plain.encode(text) and len(more) > len(plain)
    assert max(plain.encode(text)) < min(plain.added_tokens_decoder)


def test_its_files_are_those_that_a_recipe_asks_for(tmp_path):
    save_for_gazes(tmp_path, ["Search."])
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == build_tokenizer((*GAZE_SKELETONS, "Search."), GAZE_WORDS).get_vocab()
    assert len(loaded.encode("<feedback>")) == len(loaded.encode("</feedback>")) == len(loaded.encode("Search.")) == 1


# --- the proof ----------------------------------------------------------------------------------------


def test_gazes_are_counted_and_found_is_the_right_spot():
    protocol = replace(PROTOCOLS["medeyes"], max_turns=3)
    processor = tiny.processor(9, max_pixels=84 * 84)
    for n in range(6):
        sample = source("test", seed=0, length=20, looks=2)[n]
        looks = [demonstrate(each, protocol, processor, Limits(1000, 200, 3)) for each in (sample, SAMPLES[n])]
        made = dict(stream="expert", policy_version=0, banned_sha256="")
        both, one = (episode.trajectory(**made) for episode in looks)
        assert gazes(both) == len(sample.demonstration.looks) and found(both) == 1.0
        assert gazes(one) == 1 and found(one) == (SAMPLES[n].demonstration.answer.thought != "shows flat")


def test_the_conclusion_says_who_has_learnt_the_second_gaze():
    names = "data_prep.phantom.proof:gazes", "data_prep.phantom.proof:found"
    start = {"accuracy": 0.66, "interval": [0.6, 0.7], names[0]: 1.0, names[1]: 0.5}
    arm = start | {"accuracy": 0.9, names[0]: 1.8, names[1]: 0.93}
    said = what_the_expert_taught({"one_gaze": start, "mixed": arm})
    assert "67% with 1" in said and "100% with 2" in said and "mixed 90.0% with 1.80 gazes (the right spot in 93%)" in said
    assert "At 85% or more: mixed." in said
    assert "None has reached 85%" in what_the_expert_taught({"one_gaze": start})


def test_an_arm_has_started_once_half_of_a_probe_is_in_the_format():
    measures = {"data_prep.phantom.proof:gazes": 0.5, "vitar_jax.learning.gaze_reward:follows_grammar": 0.25}
    entropy = [(10, 1.82), (20, 0.75)]
    rows = {
        name: {"accuracy": 0.125, **measures, "curves": {"probe/reward/grammar": grammar, "actor/entropy": entropy}}
        for name, grammar in {"grpo": [(10, 0.0), (20, 0.09)], "mixed": [(10, 0.0), (20, 0.1), (30, 0.2)]}.items()
    }
    shared, fell = "12.5% right, 0.50 gazes, 25% in the format", "entropy 1.82 at step 10 and 0.75 at step 20"
    assert what_started(rows).splitlines() == [
        f"grpo: {shared}, not started, at most 45% of a probe in the format, {fell}",
        f"mixed: {shared}, started by step 20, {fell}",
    ]


def test_arms_from_a_cold_start_differ_in_what_they_learn_from_the_expert_alone():
    config = load_config("medeyes_cold_start")
    arms = {name: config.stages[name] for name in config.schedule if name != "warmup"}
    assert set(config.stages) == {"warmup", *arms} == {"warmup", *config.proof.rows}
    for key in ("start", "steps", "probe_every", "protocol", "optimizer"):
        assert len({str(stage[key]) for stage in arms.values()}) == 1
    assert arms["grpo"].start == "warmup"
    assert all(stage.objective.rewards.to_dict() == {"medeyes": {"function": "medeyes"}} for stage in arms.values())
    dialogues = arms.pop("dialogues")
    experts = {name: stage.objective.experts for name, stage in arms.items()}
    for stage in arms.values():
        del stage.objective["experts"]
    assert len({str(stage) for stage in arms.values()}) == 1
    assert experts["grpo"] is None and experts["published"].get("mu_peak", 0.0) == 0.0
    assert experts["mixed"].supervise == "right" and experts["mixed"].mu_decay == dialogues.steps // 2
    assert dialogues.sources.search.options.misses == MISSES
    assert dialogues.batch_size == arms["mixed"].batch_size * experts["mixed"].searches
