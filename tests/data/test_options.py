"""Options in every form of a file, and the one letter that a gold answer stands for."""

import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitar_jax.data.options import Options
from vitar_jax.errors import DataError

FOUR = ["Left lung", "Right lung", "Heart", "Liver"]


@pytest.mark.parametrize(
    ("options", "gold", "letter"),
    [
        (FOUR, "Heart", "C"),
        (FOUR, " heart. ", "C"),
        (FOUR, "c", "C"),
        (FOUR, "(C)", "C"),
        (FOUR, "[C]", "C"),
        (FOUR, "C)", "C"),
        (FOUR, "C:", "C"),
        (FOUR, "**C**", "C"),
        (FOUR, "Option C", "C"),
        (FOUR, "（Ｃ）", "C"),
        (FOUR, "C。", "C"),
        (FOUR, "(c) heart", "C"),
        (FOUR, 0, "A"),
        (FOUR, "0", "A"),
        (FOUR, 4, "D"),
        (FOUR, 4.0, "D"),
        ([1, 2.0, 3], 2, "B"),
        ([1, 2.0, 3], "2", "B"),
        (["1", "2", "3"], "2", "B"),
        (["10", "20", "30"], 20, "B"),
        (["1", "2", "3"], 3, "C"),
        (["A", "B", "AB", "O"], "A", "A"),
        (["A", "B", "AB", "O"], "AB", "C"),
        (["E. coli", "S. aureus"], "S. aureus", "B"),
        (["Lung", "Lung", "Heart"], "Heart", "C"),
        (["Ca", "CA"], "CA", "B"),
        ({"A": "Lung", "B": "Heart", "C": None}, "Heart", "B"),
        ({"b": "Heart", "a": "Lung"}, "Heart", "B"),
        (["Yes", "No"], "no", "B"),
        (["None", "One"], "None", "A"),
        ([], "Heart", "Heart"),
        ([], 2, "2"),
    ],
)
def test_one_option_fits(options: Any, gold: Any, letter: str) -> None:
    assert Options.of(options, "here").letter(gold, "here") == letter


@pytest.mark.parametrize(
    ("options", "gold", "words"),
    [
        (FOUR, 1, "fits the options A and B"),
        (FOUR, "3", "fits the options C and D"),
        (FOUR, 5, "expected one of the options"),
        (FOUR, -1, "expected one of the options"),
        (FOUR, 1.5, "expected one of the options"),
        (FOUR, "E", "expected one of the options"),
        (FOUR, "AC", "expected one of the options"),
        (FOUR, "C. Liver", "expected one of the options"),
        (FOUR, True, "expected text"),
        (FOUR, ["C"], "expected text"),
        (["B", "A", "AB", "O"], "A", "fits the options A and B"),
        (["Lung", "Lung", "Heart"], "Lung", "fits the options A and B"),
        (["Lung", "lung."], "LUNG", "fits the options A and B"),
        (["1", "2", "3"], 1, "fits the options A and B"),
        ([2, 4], 1, "expected one of the options"),
    ],
)
def test_what_fits_no_single_option_is_refused(options: Any, gold: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"^here: got .*{words}"):
        Options.of(options, "options").letter(gold, "here")


def test_a_declared_convention_is_taken_where_it_fits() -> None:
    blood = Options.of(["B", "A"], "options")
    assert blood.letter("A", "here", "letter") == "A" and blood.letter("A", "here", "text") == "B"
    assert Options.of(FOUR, "options").letter("Heart", "here", "letter") == "C"
    assert Options.of(FOUR, "options").letter("(C)", "here", "text") == "C"


def test_each_option_with_the_text_of_the_answer_is_right() -> None:
    options = Options.of(["Lung", "heart", "Heart.", "Liver"], "options")
    assert options.equal_to("C") == ("C", "B") and options.equal_to("A", "B") == ("A", "B", "C")
    assert options.equal_to("A") == options.equal_to() == ()
    assert Options((("A", "x"), ("B", ""), ("C", ""))).equal_to("B") == ()
    assert Options().equal_to("left", "right") == ("left", "right")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["A. Lung", "B. Heart"], ["Lung", "Heart"]),
        (["(A) Lung", "(B) Heart"], ["Lung", "Heart"]),
        (["A: Lung", "B:Heart"], ["Lung", "Heart"]),
        (["A) Lung", "B) Heart"], ["Lung", "Heart"]),
        (["Ａ．肺", "Ｂ．心"], ["肺", "心"]),
        (["A. Lung", "Heart"], ["A. Lung", "Heart"]),
        (["E. coli", "S. aureus"], ["E. coli", "S. aureus"]),
        ("A. Lung|B. Heart", ["Lung", "Heart"]),
        ("['10 cm²', 'None']", ["10 cm²", "None"]),
        ('{"A": "Lung", "B": "Heart"}', ["Lung", "Heart"]),
        ("{'A': 'Lung', 'B': 'Heart'}", ["Lung", "Heart"]),
        ([1, 2.5], ["1", "2.5"]),
        ((), []),
    ],
)
def test_options_in_every_form(value: Any, texts: list[str]) -> None:
    assert Options.of(value, "here").pairs == tuple(zip(string.ascii_uppercase, texts, strict=False))


@pytest.mark.parametrize(
    "value",
    [
        ["B. Lung", "A. Heart"],
        {"A": "Lung", "C": "Heart"},
        {"x": "Lung", "y": "Heart"},
        {"A": None},
        ["Lung", None],
        ["Lung"],
        "Lung",
        "Lung; Heart",
        "A. Lung\nB. Heart",
        "('Lung', 'Heart'",
        ["Lung", float("nan")],
        ["Lung", ""],
        ["Lung", ["Heart"]],
        [True, False],
        "['Lung', 'Heart'",
        "['Lung', 'Heart' 'Liver']",
        "['Lung', nan]",
        "['Lung' 'Heart' ... 'Liver']",
        3,
    ],
)
def test_other_forms_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="^here: got"):
        Options.of(value, "here")


TEXT = st.text("abcdef ", min_size=1, max_size=6).map("x{}y".format)


@settings(max_examples=40)
@given(st.lists(TEXT, min_size=2, max_size=8, unique_by=lambda text: " ".join(text.split())), st.data())
def test_letter_and_text_of_each_option_are_understood(options: list[str], data: st.DataObject) -> None:
    letter, option = data.draw(st.sampled_from(list(zip(string.ascii_uppercase, options, strict=False))))
    form = data.draw(st.sampled_from(["{0}", "({0})", "{0}.", "{0})", "{1}", "{0}. {1}", "({0}) {1}"]))
    assert Options.of(options, "here").letter(form.format(letter, option), "here") == letter
