"""Questions whose text ends with their options, as trainers' prompts do, and with an instruction behind them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitar_jax.data.option_lists import read_options, split_options
from vitar_jax.errors import DataError


@pytest.mark.parametrize(
    ("written", "question", "options"),
    [
        ("What?\nA) one\nB) two", "What?", ("one", "two")),
        ("What? A) vitamin A) x B) y", "What? A) vitamin", ("x", "y")),
        ("What? A) stage B or C) late B) y", "What?", ("stage B or C) late", "y")),
        ("Grade (A) or (B)?", "Grade (A) or (B)?", ()),
        ("Is it stage (A) early or (B) late?", "Is it stage (A) early or (B) late?", ()),
        ("What? A) one", "What? A) one", ()),
        ("What? B) one C) two", "What? B) one C) two", ()),
        ("Image A: CT. Image B: MRI. What changed?", "Image A: CT. Image B: MRI. What changed?", ()),
        ("What? (A) one (B) two", "What?", ("one", "two")),
        ("What? [A] one [B] two", "What?", ("one", "two")),
        ("What? A. one B. two", "What?", ("one", "two")),
        ("What? A: one B: two", "What?", ("one", "two")),
        ("What?\n(A) one\n(B) two", "What?", ("one", "two")),
        ("What?\nA.one\nB.two", "What?", ("one", "two")),
        ("What?\n- **A.** one\n- **B.** two", "What?", ("one", "two")),
        ("哪个？A. 肺 B. 心", "哪个？", ("肺", "心")),
        ("哪个？\nA、肺\nB、心", "哪个？", ("肺", "心")),
        ("What? Options: (A) one, (B) two, or (C) three.", "What?", ("one", "two", "three")),
        ("What?\nAnswer Choices: (A) one (B) two", "What?", ("one", "two")),
        ("What?\nA) E. coli\nB) S. aureus", "What?", ("E. coli", "S. aureus")),
        ("What? A) 1.5 cm B) 2.5 cm", "What?", ("1.5 cm", "2.5 cm")),
        ("What? A) all of the options B) None of the choices", "What?", ("all of the options", "None of the choices")),
        ("What?\nA. Large. It is red.\nB. Flat. It is red.", "What?", ("Large. It is red.", "Flat. It is red.")),
        ("What? A) one, B) two, C) three?", "What?", ("one", "two", "three")),
        ("What? A) one? B) two?", "What?", ("one?", "two?")),
        ("What?\nA. heart\nB. heart failure with\nmuch fluid", "What?", ("heart", "heart failure with\nmuch fluid")),
    ],
)
def test_options_begin_with_letters_in_order(written: str, question: str, options: tuple[str, ...]) -> None:
    split = split_options(written)
    assert (split.question, split.options, split.instruction, split.problem) == (question, options, "", "")


INSTRUCTIONS = [
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The reasoning "
    "process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \\boxed{}.",
    "Answer with the option's letter from the given choices directly.",
    "Please answer with the letter.",
    "Let's think step by step and output the final answer within \\boxed{}.",
    "Output the thinking process in <think> </think> and final answer (letter) in <answer> </answer> tags.",
    "Please select the correct answer from the options above.",
    "Think step by step. The answer is a letter, such as (A).",
    "Your task:\n1. Think through the question.\n2. Provide the single-letter choice (A, B, C, D) inside <answer> tags.",
    "The final answer is one letter.",
    "Answer:",
    "请直接回答选项字母。",
]
FORMS = [" A) {0} B) {1}", "\nA) {0}\nB) {1}", "\n(A) {0}\n(B) {1}", " (A) {0} (B) {1}", "\nA. {0}\nB. {1}", " A: {0} B: {1}"]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("between", [" ", ". ", "\n", "\n\n"])
def test_an_instruction_is_no_part_of_the_last_option(instruction: str, form: str, between: str) -> None:
    split = split_options("Which organ?" + form.format("Left lung", "Heart") + between + instruction)
    assert (split.question, split.options) == ("Which organ?", ("Left lung", "Heart"))
    assert (split.instruction, split.problem) == (instruction, "")


@pytest.mark.parametrize("last", ["It is clear. You see no mass.", "Clear. No mass.", "with much\nfluid", "clear.\nNo mass."])
def test_an_option_of_several_sentences_or_lines_stays_whole(last: str) -> None:
    first = last.replace("clear", "large").replace("Clear", "Large")
    split = split_options(f"Which?\nA. {first}\nB. {last}\nAnswer with the letter.")
    assert (split.options, split.instruction, split.problem) == ((first, last), "Answer with the letter.", "")


def test_text_behind_an_empty_line_is_an_instruction() -> None:
    assert split_options("Which?\nA. Lung\nB. Heart\n\nKeep it brief.").instruction == "Keep it brief."


@pytest.mark.parametrize(
    "written",
    [
        "Which? A) Lung B) Heart. Keep it brief.",
        "Which?\nA. Lung\nB. Heart\nKeep it brief.",
        "Which? A) Lung B) Heart, answer with the letter only",
        "Which? A) Lung B) Heart First use <think> tags",
        "Which? A) Lung B) Heart. Look at it first. Then output the answer.",
        "Which? A) Lung B) Heart Please be brief. Answer with the letter.",
        "Which?\nA. lung with\nfluid\nB. Heart with\nfluid\nKeep it brief.",
    ],
)
def test_an_unclear_end_is_refused(written: str) -> None:
    with pytest.raises(DataError, match="row 3: cannot tell where the last option ends: 'Heart"):
        read_options(written, "B", "row 3")


@pytest.mark.parametrize(
    "written", ["What? A) one B) two (C) three", "What? A) one B) two D) three", "What?\n(A) one\n(B) two\nC. three"]
)
def test_options_with_several_kinds_of_marks_are_refused(written: str) -> None:
    with pytest.raises(DataError, match="row 3: the options after B are marked in another way, or leave out a letter: 'two"):
        read_options(written, "B", "row 3")


def test_the_answer_decides_whether_weak_marks_are_options() -> None:
    written = "Compare A. the left side B. the right side"
    assert read_options(written, "larger", "here")[1:] == (read_options("What?", "larger", "here")[1], "larger")
    split, options, answer = read_options(written, "the right side", "here")
    assert (split.question, options.pairs[1], answer) == ("Compare", ("B", "the right side"), "B")
    for wrong in ("What? A) one B) two", "What?\nA. one\nB. two"):
        with pytest.raises(DataError, match="here: answer: got 'larger', expected one of the options A .one., B .two."):
            read_options(wrong, "larger", "here")
    with pytest.raises(DataError, match="here: answer: got 'E', expected one of the options"):
        read_options(written, "E", "here")


WORDS = st.text("abcdefgh", min_size=2, max_size=8)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=2, max_size=6), st.sampled_from(FORMS))
def test_any_plain_options_are_found(options: list[str], form: str) -> None:
    mark = form.partition("{0}")[0].replace("A", "{}")
    written = "".join(mark.format(letter) + option for letter, option in zip("ABCDEF", options, strict=False))
    assert split_options("Which is it?" + written).options == tuple(options)
