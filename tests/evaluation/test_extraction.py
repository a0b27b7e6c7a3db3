"""Answers in what a model wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitar_jax.evaluation.extraction import boxed, chosen_option, final_answer, words


@pytest.mark.parametrize(
    "text, inside",
    [(r"\boxed{a}", "a"), (r"\boxed{a} or \boxed{\text{b}}", r"\text{b}"), (r"\boxed{a", None), ("boxed", None), ("", None)],
)
def test_boxed(text, inside):
    assert boxed(text) == inside


def test_final_answer_and_words():
    assert final_answer("I think.\n**Answer:** Left.") == "left"
    assert final_answer(r"<answer>a</answer> \boxed{B}") == "b"
    assert words("The T2.5, a left-sided  one!") == ["t2.5", "left", "sided", "1"]
    assert words("A") == ["a"]


def test_an_option_is_named_by_its_letter_or_text_or_is_the_most_alike():
    options = (("A", "left: upper"), ("B", "left. lower"), ("C", "right"))
    for text, letter in (
        ("c", "C"),
        ("left: upper", "A"),
        ("left. lower", "B"),
        ("so: c. right", "C"),
        ("rihgt", "C"),
        ("", None),
    ):
        assert chosen_option(text, options) == letter
    assert chosen_option("anything", ()) is None


@given(st.text(st.characters(exclude_characters="\\{}")))
def test_whatever_is_boxed_is_found(text):
    assert boxed(rf"So \boxed{{{text}}} {text}") == text
    assert all(word == word.lower() and word for word in words(text))
