"""Rules on the real questions of VQA-RAD and SLAKE: what the references and constant answers score."""

import json
from collections import Counter

import pytest

from data_prep.sets.vqa_rad import source
from vitar_jax.evaluation.rules import RULES, Item

PUBLISHED = ["llava-med-published"]


HONEST = [name for name in RULES if name not in PUBLISHED]


def kind(answer_type: str):
    return answer_type.strip().lower()


@pytest.fixture(scope="module")
def vqa_rad(test_data):
    """(question, gold, kind) of the test split."""
    samples = source("test", directory=str(test_data / "vqa_rad"))
    return [(sample.question, sample.answer, kind(sample.metadata["answer_type"])) for sample in samples]


@pytest.fixture(scope="module")
def slake(test_data):
    """The same of SLAKE's test split in both languages, by language."""
    rows = json.loads((test_data / "slake_text" / "test.json").read_text())
    return {
        language: [(row["question"], row["answer"], kind(row["answer_type"])) for row in rows if row["q_lang"] == language]
        for language in ("en", "zh")
    }


def scores(name, questions, answer=None):
    """Per kind, and in "all": (questions scored, percent right), where the answer is a constant or the reference."""
    verdicts = [
        RULES[name].verdict(Item(question, (), gold, gold if answer is None else answer, kind, judged=answer is None))
        for question, gold, kind in questions
    ]
    kinds = {"all": ("open", "closed"), "open": ("open",), "closed": ("closed",)}
    found = {}
    for key, included in kinds.items():
        right = [verdict.correct for verdict in verdicts if verdict.correct is not None and verdict.kind in included]
        found[key] = (len(right), round(100 * sum(right) / len(right), 2) if right else None)
    return found


def counts(open, closed):
    return {"all": (open + closed, 100.0), "open": (open, 100.0), "closed": (closed, 100.0)}


ONLY_CLOSED = {"open": (0, None)}


@pytest.mark.parametrize("name", HONEST)
def test_the_reference_is_right(name, vqa_rad, slake):
    by_data_set = scores(name, vqa_rad), scores(name, slake["en"]), scores(name, slake["en"] + slake["zh"])
    if name in ("vitar-letter", "vrt", "vrt-strict"):  # none of these has options or masks
        assert all(found["all"] == (0, None) for found in by_data_set)
    elif name == "closed-mcq":
        for found, n in zip(by_data_set, (272, 416, 836), strict=True):
            assert found == {"all": (n, 100.0), "open": (0, None), "closed": (n, 100.0)}
    elif name.startswith("medevalkit"):  # closed is yes or no
        assert by_data_set == (counts(200, 251), counts(706, 355), counts(2094 - 355, 355))
    else:
        assert by_data_set == (counts(179, 272), counts(645, 416), counts(1258, 836))


@pytest.mark.parametrize("name", ["closed-mcq", "llava-med", "exact", "token-f1"])
def test_constant_answers_to_closed_questions(name, vqa_rad, slake):
    assert scores(name, vqa_rad, "No")["closed"] == (272, 48.90)
    assert scores(name, vqa_rad, "Yes")["closed"] == (272, 43.38)
    assert scores(name, slake["en"], "no")["closed"] == (416, 43.27)
    assert scores(name, slake["en"], "yes")["closed"] == (416, 42.07)


@pytest.mark.parametrize("name", ["medevalkit-em", "medevalkit-judge"])
def test_constant_answers_to_questions_of_yes_or_no(name, vqa_rad):
    assert scores(name, vqa_rad, "No.")["closed"] == (251, 52.99)
    assert scores(name, vqa_rad, "Answer: yes")["closed"] == (251, 47.01)


def test_what_was_published_denies_references_that_are_neither_yes_nor_no(slake, vqa_rad):
    """`llava-med-published` is as wrong as its model: 61 of SLAKE's closed references are words without yes or no in them."""
    assert scores("llava-med-published", slake["en"])["closed"] == (416, round(100 * 355 / 416, 2))
    others = Counter(gold.lower() for _, gold, kind in vqa_rad if kind == "closed" and gold.lower() not in ("yes", "no"))
    assert others.total() == 21 and others["abnormal"] == 3
    assert scores("llava-med-published", vqa_rad)["closed"] == (272, round(100 * (251 + 3) / 272, 2))


def test_a_full_stop_around_a_chinese_reference_does_not_count(slake):
    questions = slake["zh"]
    assert len(questions) == 1033
    for form in ("{}。", "答案：{}。", "“{}”", r"\boxed{{\text{{{}}}}}", '{{"answer": "{}"}}', "**{}**", "<answer>{}</answer>"):
        for name in ("medevalkit-em", "medevalkit-difflib"):
            right = [RULES[name].verdict(Item(q, (), gold, form.format(gold), kind)).correct for q, gold, kind in questions]
            assert right.count(1.0) == 1033, (name, form)
