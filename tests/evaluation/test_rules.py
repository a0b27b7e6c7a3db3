"""Scoring rules on the real question files, and on answers that scorers are known to trip over.

Counts and the scores of constant answers were computed from the published files with other code.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.vqa_rad import source
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.rules import RULES, Item, find_rules

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


# --- the real question files ----------------------------------------------------------------------


def counts(open, closed):
    return {"all": (open + closed, 100.0), "open": (open, 100.0), "closed": (closed, 100.0)}


ONLY_CLOSED = {"open": (0, None)}


@pytest.mark.parametrize("name", HONEST)
def test_the_reference_is_right(name, vqa_rad, slake):
    by_data_set = scores(name, vqa_rad), scores(name, slake["en"]), scores(name, slake["en"] + slake["zh"])
    if name == "vitar-letter":  # none of these has options
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


# --- answers that scorers trip over ---------------------------------------------------------------

LETTERS = (("A", "flat"), ("B", "rows"), ("C", "both lungs"), ("D", "no finding"))
YES_NO = ("exact", "closed-mcq", "medevalkit-em", "medevalkit-judge", "llava-med", "llava-med-published", "token-f1")
OPEN = ("exact", "medevalkit-em", "llava-med", "llava-med-published", "token-f1")
CHOICE = ("exact", "vitar-letter", "closed-mcq", "medevalkit-em")

# gold, answer -> expected verdicts in the order of YES_NO
CLOSED_ANSWERS = [
    ("No", "no", (1, 1, 1, 1, 1, 1, 1)),
    ("Yes", "YES", (1, 1, 1, 1, 1, 1, 1)),
    ("No", "No.", (0, 0, 1, 1, 1, 1, 1)),
    ("yes", "Yes, it is enlarged.", (0, 0, 1, 1, 1, 1, 0.4)),
    ("no", "normal", (0, 0, 0, 0, 0, 1, 0)),
    ("no", "It is not enlarged", (0, 0, 0, 0, 0, 1, 0)),
    ("no", "not yes", (0, 0, 0, 0, 0, 1, 0)),
    ("yes", "not yes", (0, 0, 1, 1, 1, 1, 2 / 3)),
    ("no", "yes and no", (0, 0, 0, 0, 0, 1, 0.5)),
    ("yes", "yes and no", (0, 0, 0, 0, 0, 1, 0.5)),
    ("yes", "There is no fracture", (0, 0, 0, 0, 0, 0, 0)),
    ("no", "There is no fracture", (0, 0, 1, 1, 1, 1, 0.4)),
    ("yes", "eyes", (0, 0, 0, 0, 0, 1, 0)),
    ("no", "", (0, 0, 0, 0, 0, 0, 0)),
    ("yes", "<answer>Yes</answer>", (0, 1, 1, 1, 1, 1, 0.5)),
    ("no", r"No lesion in the mask, yet \boxed{yes}", (0, 0, 0, 0, 0, 1, 0.25)),
    ("yes", "There is no doubt. The answer is yes", (0, 0, 1, 1, 0, 1, 0.25)),
]

# gold, answer -> expected verdicts in the order of OPEN
OPEN_ANSWERS = [
    ("pneumonia", "Pneumonia", (1, 1, 1, 1, 1)),
    ("pneumonia", "no pneumonia", (0, 0, 0, 1, 2 / 3)),
    ("pneumonia", "There isn't any pneumonia", (0, 0, 0, 1, 0.4)),
    ("no pneumonia", "pneumonia", (0, 0, 0.5, 0.5, 2 / 3)),
    ("not seen here", "Not seen here.", (0, 1, 1, 1, 1)),
    ("right lung", "right lung lobe", (0, 0, 1, 1, 0.8)),
    ("right lung", "The lung, lung, lung", (0, 0, 0.5, 0.75, 0.4)),
    ("on the right shoulder.", "On the right shoulder", (0, 1, 1, 1, 1)),
    ("x-ray", "X ray", (0, 0, 1, 1, 1)),
    ("one", "1", (0, 0, 1, 1, 1)),
    ("left", "<answer>left</answer>", (0, 1, 1, 1, 0.5)),
    ("left", "So the final answer is left.", (0, 1, 1, 1, 1 / 3)),
    ("left", "", (0, 0, 0, 0, 0)),
    ("left", "...", (0, 0, 0, 0, 0)),
]

# answer -> expected verdicts in the order of CHOICE, where B (rows) is right
CHOICES = [
    ("B", (1, 1, 1, 1)),
    ("b", (1, 1, 1, 1)),
    (" B", (1, 0, 1, 1)),
    ("B.", (0, 1, 0, 1)),
    ("B. rows", (0, 1, 1, 1)),
    ("B: rows", (0, 1, 0, 1)),
    ("B) rows", (0, 1, 0, 1)),
    ("(B)", (0, 0, 0, 1)),
    ("rows", (0, 0, 1, 1)),
    ("Rows.", (0, 0, 0, 1)),
    ("The answer is B", (0, 0, 0, 1)),
    ("<answer>B</answer>", (0, 0, 1, 1)),
    ("B\n\nThe texture is made of rows.", (0, 1, 0, 1)),
    ("Both lungs", (0, 0, 0, 0)),  # begins with a B
    ("A", (0, 0, 0, 0)),
    ("A and B", (0, 0, 0, 0)),
    ("", (0, 0, 0, 0)),
    ("???", (0, 0, 0, 0)),
]


def check(names, item, expected):
    found = [RULES[name].verdict(item).correct for name in names]
    assert found == pytest.approx(expected), dict(zip(names, found, strict=True))


@pytest.mark.parametrize("gold, answer, expected", CLOSED_ANSWERS)
def test_yes_and_no(gold, answer, expected):
    check(YES_NO, Item("Is it?", (), gold, answer, "closed"), expected)


@pytest.mark.parametrize("gold, answer, expected", OPEN_ANSWERS)
def test_open_questions(gold, answer, expected):
    check(OPEN, Item("What is it?", (), gold, answer, "open"), expected)
    assert RULES["closed-mcq"].verdict(Item("What is it?", (), gold, answer, "open")).correct is None


@pytest.mark.parametrize("answer, expected", CHOICES)
def test_options(answer, expected):
    item = Item("Which texture?", LETTERS, "B", answer)
    check(CHOICE, item, expected)
    for name in ("llava-med", "llava-med-published", "token-f1"):
        assert RULES[name].verdict(item).correct is None


def test_nothing_is_not_the_first_option():
    """The published toolkit counts it as the option A."""
    for answer in ("", ".", "???"):
        assert RULES["medevalkit-em"].verdict(Item("Which?", LETTERS, "A", answer)).correct == 0


def test_a_closed_question_of_other_words():
    for answer, right in (("The coronal plane", 1), ("coronal", 0), ("not the coronal plane", 0), ("coronal planes", 0)):
        assert RULES["llava-med"].verdict(Item("Which plane?", (), "Coronal Plane", answer, "closed")).correct == right


def test_a_judge_decides_open_questions_alone():
    judge = RULES["medevalkit-judge"].verdict
    for judged, correct in ((True, 1.0), (False, 0.0), (None, None)):
        assert judge(Item("What?", (), "left", "on the left", "open", judged)).correct == correct
        assert judge(Item("Is it?", (), "yes", "yes", "closed", judged)).correct == 1.0
        assert judge(Item("Which?", LETTERS, "B", "rows", "closed", judged)).correct == 1.0
    assert judge(Item("What?", (), "left", "", "open", True)).correct == 0.0


# --- any text -------------------------------------------------------------------------------------


@given(st.text(), st.text(min_size=1), st.booleans(), st.sampled_from([None, "open", "closed"]))
def test_any_text_is_an_answer(prediction, gold, with_options, kind):
    options = LETTERS if with_options else ()
    for rule in RULES.values():
        verdict = rule.verdict(Item("Which?", options, "B" if options else gold, prediction, kind))
        assert verdict.correct is None or 0 <= verdict.correct <= 1
        json.dumps(verdict.parsed)


def test_rules_are_found_by_name_and_version():
    assert [str(rule) for rule in find_rules(["exact", "token-f1/1", "exact"])] == ["exact/1", "token-f1/1"]
    for name in ("exakt", "exact/2"):
        with pytest.raises(ConfigError, match=name):
            find_rules([name])
    with pytest.raises(ConfigError, match="did you mean exact"):
        find_rules(["exakt"])
    assert all(rule.function.__doc__ for rule in RULES.values())


def test_rules_of_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from vitar_jax.evaluation.rules import Verdict, rule\n"
        "def plain(item):\n    return Verdict(float(item.gold in item.prediction), item.prediction, 'open')\n"
        "@rule('mine', 3)\ndef decorated(item):\n    return Verdict(None, '', 'open')\n"
        "def wrong(item):\n    return True\n"
        "number = 3\n"
    )
    item = Item("What?", (), "left", "on the left")
    with patch.dict(RULES):
        plain, decorated, wrong = find_rules([f"{path}:plain", f"{path}:decorated/3", f"{path}:wrong"])
        assert (str(plain), plain.verdict(item).correct) == (f"{path}:plain/1", 1)
        assert str(decorated) == "mine/3"
        with pytest.raises(ConfigError, match="expected a Verdict, got True"):
            wrong.verdict(item)
        for name, words in ((":plian", "did you mean plain"), (":number", "got 3"), (":decorated/2", "version is 3")):
            with pytest.raises(ConfigError, match=words):
                find_rules([f"{path}{name}"])


def test_any_rule_credits_any_gold_answer() -> None:
    item = Item("What?", (), "left", "right", answers=("left", "right"))
    for name in ("exact", "medevalkit-em", "llava-med", "token-f1"):
        assert RULES[name].verdict(item).correct == 1
        assert RULES[name].verdict(dataclasses.replace(item, answers=())).correct == 0
