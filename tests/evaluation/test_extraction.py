"""Answers in what a model wrote."""

import time
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitar_jax.evaluation.extraction import boxed, chosen_option, closest_option, final_answer, standing_letter, words


@pytest.mark.parametrize(
    "text, inside",
    [(r"\boxed{a}", "a"), (r"\boxed{a} or \boxed{\text{b}}", r"\text{b}"), (r"\boxed{a", None), ("boxed", None), ("", None)],
)
def test_boxed(text, inside):
    assert boxed(text) == inside


def test_final_answer_and_words():
    assert final_answer("I think.\n**Answer:** Left.") == "left"
    assert final_answer(r"<answer>a</answer> \boxed{B}") == "b"
    assert final_answer("答案：左肺。") == "左肺" and final_answer(r"“\textbf{Left lung}”") == "left lung"
    assert final_answer("<think>The answer is left.</think>right") == "right"
    assert final_answer("<think>left") == "<think>left"  # a thought that was cut off is all there is
    assert final_answer("T2* weighted") == "t2* weighted" and final_answer("-1") == "-1"
    assert [standing_letter(text, [("B", "")]) for text in ("B因为", "Ｂ、", "b) rows", "Both")] == ["B", "B", "B", None]
    assert words("The T2.5, a left-sided  one!") == ["t2.5", "left", "sided", "1"]
    assert words("A") == ["a"]


TEXTS = ("Pleural effusion", "Pneumothorax", "Cardiomegaly", "Normal heart")
NAMED = r"""
{} | {}. | {}, | {}: | {}) | {}] | {}! | ({}) | [{}] | **{}** | **{}.** | `{}` | "{}" | '{}' | “{}” | ‘{}’ | «{}»
「{}」 | 『{}』 | ${}$ | \({}\) | \boxed{{}} | \boxed{ {} } | \boxed{\text{{}}} | \boxed{\mathbf{{}.}}
\boxed{\text{Option {}}} | $\boxed{{}}$ | Option {} | option {}. | Option ({}) shows it. | option '{}'
Option "{}" is correct | Choice {} | Letter {} | Answer {} | Select {} | {} because the edge is seen
{}, because A and C differ | {} since the edge is seen | {} - because | {} – because | {}: the edge
{}) the edge is seen. | {} is correct. | {} is the final answer. | {} seems right. | I think it's {}. | It must be {}.
So {}. | The answer is {} | The answer is ({}). | The correct option is {}. | The correct choice would be {}.
I choose {}. | Hence {} | The best answer is option {}, as there is air. | Final answer: {} | **Answer:** {}
**Answer: {}** | ANSWER： {} | Therefore, {} | {"answer": "{}"} | {'answer': '{}'} | {"answer": "{}", "sure": 0.9}
{"Answer":"({})."} | {"answer": ["{}"]} | {"option": "{}"} | ```json\n{"thought": "A or C?", "answer": "{}"}\n```
{"actions": [{"arguments": {"answer": "{}"}}]} | {"answer": "{}", cut off | <answer>{}</answer>
<answer>Option {}: as the edge is seen</answer> | <think>The answer is A</think>{} | A or C?</think> {}
A and C are alike.\n\n{} | {}\n\nThe heart is big. | - {} | # {} | Option A shows air. So the answer is {} | 答案：{}。
答案是{} | 答案为{}。 | 正确答案：{} | 正确选项是{}。 | 选{} | 选择{}。 | 故选{}。 | 应选：{} | 选项{} | {}选项正确
{}正确 | {}、 | {}。 | （{}） | 【{}】 | {}，因为边缘 | {}因为边缘 | 我认为是{}。 | 答：{}
"""


def forms(table: str) -> list[str]:
    return [form.strip(" ").replace("\\n", "\n") for line in table.strip().splitlines() for form in line.split(" | ")]


@pytest.mark.parametrize("form", forms(NAMED))
def test_a_letter_is_read_in_any_form(form: str) -> None:
    """Also in lower case and full width, whatever the options are called."""
    for texts in permutations(TEXTS):
        options = tuple(zip("ABCD", texts, strict=True))
        for letter, wide in zip("ABCD", "ＡＢＣＤ", strict=True):
            for written in (letter, letter.lower(), wide):
                assert chosen_option(form.replace("{}", written), options) == letter


FINDINGS = tuple(
    zip("ABCDEFGHIJ", ("mass", "nodule", "cyst", "normal", "edema", "scar", "clot", "stone", "stent", "mesh"), strict=True)
)

NONE_NAMED = r"""
A or B | A and B | A/B | A, B | A+B | A & B | A vs B | A? B? | AB | A、B | A和B | A 或者 B | 选A或B | 选项A和选项B
(B) or (C) | Either A or B | Option A or option B | The answer is A or B | It is A or B. | \boxed{A, B} | B, C, and D
B\nA | A. Mass\nB. Nodule | not B | Not B. | The answer is not B | B is wrong | Option B is wrong. | (A) is wrong
Option (A) isn't right | B is less likely | It cannot be B. | It is not A but B. | 不选B | 不是B | B不正确 | B错误
Hepatitis B | B cell lymphoma | Kerley B lines | B超 | 选B超 | I think... | I am not sure | I, as a reader,
So I, as a reader, | Vitamin C deficiency | T cell | C-shaped | Best seen | Both lungs | A. Nodule | B: Mass | No nodule
mass or cyst | abnormal | Nodulee | K | Option K | ??? | {"answer": null} | {"answer": ["A", "B"]}
"""


@pytest.mark.parametrize("text", ["", *forms(NONE_NAMED)])
def test_an_answer_that_names_no_option_or_several(text: str) -> None:
    assert chosen_option(text, FINDINGS) is None


@pytest.mark.parametrize("text", ["A or B", "K", "Option K", "Option K: nodule", r"\boxed{\text{K}}", "K。", ""])
def test_no_option_is_guessed_where_another_letter_is_named(text: str) -> None:
    assert closest_option(text, FINDINGS) is None


@pytest.mark.parametrize(
    "text, letter",
    [
        ("A nodule", "B"),
        ("A nodule is seen.", "B"),
        ("a cyst", "C"),
        ("it is a (small) nodule", "B"),
        ("I think it is a nodule", "B"),
        ("I", "I"),
        ("I.", "I"),
        ("Option I", "I"),
        ("I because of the edge", "I"),
        ("The answer is J", "J"),
        ("B nodule", "B"),
        ("B. Nodule", "B"),
        ("B (nodule), not a mass", "B"),
        ("A. mass\nB. nodule\nThe answer is C", "C"),
        ("as follows: C. cyst", "C"),
        (r"\boxed{\text{Nodule}}", "B"),
        ('{"answer": "Nodule."}', "B"),
        ("“Nodule”。", "B"),
        ("答案：ｎｏｄｕｌｅ。", "B"),
        ("Nodule, because the edge is sharp", "B"),
        ("Normal. There is no mass.", "D"),
        ("𝐁", "B"),
        ("Ⓑ", "B"),
    ],
)
def test_an_article_is_no_letter_and_a_text_names_its_option(text: str, letter: str) -> None:
    assert chosen_option(text, FINDINGS) == letter


def test_an_option_is_named_by_its_letter_or_text() -> None:
    options = (("A", "left: upper"), ("B", "left. lower"), ("C", "right"))
    for text, letter in (
        ("c", "C"),
        ("left: upper", "A"),
        ("left. lower", "B"),
        ("so: c. right", "C"),
        ("rihgt", None),
        ("", None),
    ):
        assert chosen_option(text, options) == letter
    assert closest_option("rihgt", options) == "C" and closest_option("c", options) == "C"
    assert chosen_option("anything", ()) is None and closest_option("anything", ()) is None
    # Options may differ in punctuation alone. If one option contains another, the longer one counts.
    assert chosen_option("T2*", (("A", "T2"), ("B", "T2*"))) == "B"
    assert chosen_option("It is 10⁵.", (("A", "105"), ("B", "10⁵"))) == "B" and final_answer("10⁵/ml.") == "10⁵/ml"
    assert chosen_option("It is the left lung.", (("A", "lung"), ("B", "left lung"))) == "B"


@pytest.mark.parametrize(
    "text", ["answer ", "A or ", "is: ", "it is B ", "option is ", "not B. ", "'answer': '", "**a", "\\text{", "(", "选项"]
)
def test_reading_takes_time_in_proportion_to_the_text(text: str) -> None:
    """Some patterns took minutes."""
    start = time.process_time()
    closest_option((text * 20_000)[:40_000], FINDINGS[:1])
    assert time.process_time() - start < 3


@given(st.text(st.characters(exclude_characters="\\{}")))
def test_whatever_is_boxed_is_found(text):
    assert boxed(rf"So \boxed{{{text}}} {text}") == text
    assert all(word == word.lower() and word for word in words(text))
