"""Scoring rules on the real question files, and on answers that scorers are known to trip over.

Counts and the scores of constant answers were computed from the published files with other code.
"""

import dataclasses
import json
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.benchmarks import DEFAULT_RULES
from vitar_jax.evaluation.rules import RULES, Item, find_rules

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


def test_only_the_rule_that_says_so_guesses_by_spelling():
    for prediction, strict, guessed in (("rowss", 0, 1), ("ro", 0, 1), ("A or B", 0, 0), ("E. row", 0, 0), ("", 0, 0)):
        item = Item("Which texture?", LETTERS, "B", prediction)
        check(("medevalkit-em", "medevalkit-judge", "medevalkit-difflib"), item, (strict, strict, guessed))
    assert "medevalkit-em" in DEFAULT_RULES and "medevalkit-difflib" not in DEFAULT_RULES


def test_marks_around_an_open_answer_do_not_count():
    for gold, prediction in (
        ("左肺", "左肺。"),
        ("左肺", "答案：“左肺”。"),
        ("左肺，右肺", "左肺,右肺"),
        ("CT", "ＣＴ。"),
        ("left lung", r"\boxed{\text{Left lung}}"),
        ("left lung", '```json\n{"answer": "left lung."}\n```'),
        ("left lung", "<think>right lung?</think>**left lung**"),
    ):
        for name in ("medevalkit-em", "medevalkit-difflib"):
            assert RULES[name].verdict(Item("Where?", (), gold, prediction)).correct == 1
    assert RULES["medevalkit-em"].verdict(Item("Where?", (), "。", "。")).correct == 0  # an empty answer


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
    assert find_rules(["vrt", "vrt-strict/1"]) == [RULES["vrt"], RULES["vrt-strict"]]
    with pytest.raises(ConfigError, match="did you mean vrt-strict"):
        find_rules(["vrt-strct"])
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
        for name, words in ((":plian", "did you mean plain"), (":number", "got 3"), (":decorated/2", "expected version 3")):
            with pytest.raises(ConfigError, match=words):
                find_rules([f"{path}{name}"])


def test_any_rule_credits_any_gold_answer() -> None:
    item = Item("What?", (), "left", "right", answers=("left", "right"))
    for name in ("exact", "medevalkit-em", "llava-med", "token-f1"):
        assert RULES[name].verdict(item).correct == 1
        assert RULES[name].verdict(dataclasses.replace(item, answers=())).correct == 0
