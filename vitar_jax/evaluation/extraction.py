"""Extraction of answers from model output. Pure functions of text that never raise; without a match, they return None or ""."""

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
    """Splits text into words as the VQA challenge does (Antol et al., 2015).

    Words are in lower case, without punctuation and articles, and number words become digits. The challenge's table of
    contractions is not applied. A text of articles alone keeps them, because "A" may be an answer.
    """
    found = [_NUMBERS.get(word, word) for word in _split(text)]
    return [word for word in found if word not in _ARTICLES] or found


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def yes_or_no(text: str) -> str | None:
    """Returns "yes" or "no" if exactly one of them occurs as a whole word, else None."""
    found = {"yes", "no"}.intersection(_split(text))
    return found.pop() if len(found) == 1 else None


def denies(text: str, of: str) -> bool:
    """Returns whether the text contains a negation that `of` does not."""
    return bool(_negations(text) - _negations(of))


def _negations(text: str) -> set[str]:
    return {word for word in _split(text) if word in _NEGATIONS or word.endswith("n't")}


def boxed(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{}`, which may contain braces."""
    opening = r"\boxed{"
    start = text.rfind(opening)
    depth = 0
    for place in range(start + len(opening) - 1, len(text) if start >= 0 else 0):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + len(opening) : place]
    return None


def final_answer(text: str) -> str:
    r"""Returns the final answer of a text that may contain reasoning.

    Takes the content of `\boxed{}`, else of `<answer>`, else the whole text, and of that the part after the last "answer is",
    "Answer:" or similar. The result is in lower case, without surrounding white space, full stops, colons and asterisks.
    """
    inside = boxed(text)
    inside = tagged(text) if inside is None else inside
    return _ANNOUNCED.split(text if inside is None else inside)[-1].lower().strip(" \t\r\n.:*")


def standing_letter(text: str, options: Options) -> str | None:
    """Returns the option letter that a text begins with as a word of its own: "B", "b. rows" or "B) rows", not "Both"."""
    letter = text[:1].upper()
    return letter if letter in dict(options) and not text[1:2].isalnum() else None


def chosen_option(text: str, options: Options) -> str | None:
    """Returns the letter of the option that a final answer names by letter or text.

    If it names none, returns the most similarly spelt option (`difflib`; the first of ties), or None if none is similar.
    """
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
