"""Finding an answer in what a model wrote. Pure functions of text that never raise; what is not there is None or empty."""

import difflib
import re
from collections.abc import Sequence

from vitar_jax.episodes.answers import tagged

Options = Sequence[tuple[str, str]]  # (letter, text)

_ANNOUNCED = re.compile(r"\*+answer:?\*+:?|final answer(?: is)?|answer is|answer:|答案[:：]", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+|(?<=\d)\.\d+)*")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_NEGATIONS = {"no", "not", "without", "never", "neither", "nor", "cannot", "absent", "negative"}


def words(text: str) -> list[str]:
    """Words as the VQA challenge counts them (Antol et al., 2015): lower case, no punctuation, no articles, numbers as digits.

    Its table of contractions is left out. A text of articles alone keeps them: "A" may be an answer.
    """
    found = [_NUMBERS.get(word, word) for word in _split(text)]
    return [word for word in found if word not in _ARTICLES] or found


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def yes_or_no(text: str) -> str | None:
    """The one of the two words that occurs, as a word of its own; None if neither or both do."""
    found = {"yes", "no"}.intersection(_split(text))
    return found.pop() if len(found) == 1 else None


def denies(text: str, of: str) -> bool:
    """Whether a text holds a negation that `of` does not."""
    return bool(_negations(text) - _negations(of))


def _negations(text: str) -> set[str]:
    return {word for word in _split(text) if word in _NEGATIONS or word.endswith("n't")}


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{}` holds, braces in it included."""
    opening = r"\boxed{"
    start = text.rfind(opening)
    depth = 0
    for place in range(start + len(opening) - 1, len(text) if start >= 0 else 0):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + len(opening) : place]
    return None


def final_answer(text: str) -> str:
    r"""The answer in a text that may reason before it: `\boxed{}`, else `<answer>`, else all; of that, what follows the last
    "answer is", "Answer:" or the like. In lower case, without white space, full stops, colons and asterisks around it."""
    inside = boxed(text)
    inside = tagged(text) if inside is None else inside
    return _ANNOUNCED.split(text if inside is None else inside)[-1].lower().strip(" \t\r\n.:*")


def standing_letter(text: str, options: Options) -> str | None:
    """The option's letter that begins a text and stands by itself: "B", "b. rows" or "B) rows", but not "Both"."""
    letter = text[:1].upper()
    return letter if letter in dict(options) and not text[1:2].isalnum() else None


def chosen_option(text: str, options: Options) -> str | None:
    """The letter of the option that a final answer means: named by its letter or its text, else the one that is spelt most
    alike (`difflib`, the first of equal ones); None where nothing is alike."""
    letters = {letter.lower(): letter for letter, _ in options}
    by_text = {option.lower().strip(): letter for letter, option in reversed(options)}
    blocks = text.split("\n\n")
    for part in (blocks[0], blocks[-1].split(".")[0], text.split(".")[0].split(":")[-1]):
        if (bare := part.strip(" \n()[]*")) in letters:
            return letters[bare]
    for part in (text, text.split(".")[0].split(":")[-1].strip()):
        if part in by_text:
            return by_text[part]
    alike = {letter: difflib.SequenceMatcher(None, option.lower(), text).ratio() for letter, option in options}
    best = max(alike, key=alike.__getitem__, default=None)
    return best if best is not None and alike[best] > 0 else None
