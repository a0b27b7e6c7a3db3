"""Extraction of answers from model output. Pure functions of text that never raise; without a match, they return None or ""."""

import difflib
import json
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress

from vitar_jax.episodes.answers import tagged
from vitar_jax.evaluation.letters import bare, behind_letter, named_letters
from vitar_jax.runtime.replies import without_reasoning

Options = Sequence[tuple[str, str]]  # (letter, text)

_ANNOUNCED = re.compile(
    r"\*{1,3}answer:?\*{1,3}:?|final answer(?: is)?|answer is|answer\s*:|答案应?[是为]?\s*:|答案应?[是为]|\b答\s*:",
    re.IGNORECASE,
)
_ANSWER_KEYS = ("answer", "final_answer", "final answer", "correct_answer", "option", "choice", "letter", "答案", "选项")
_QUOTED_ANSWER = re.compile(
    rf"""(?P<q>['"])(?:{"|".join(_ANSWER_KEYS)})(?P=q)\s*:\s*(?P<mark>['"])(?P<text>.{{0,1000}}?)(?P=mark)\s?[,}}\n]""",
    re.IGNORECASE,
)
_NESTED = 5  # levels of LaTeX commands
_LATEX = re.compile(
    r"\\(?:text|math|mbox|boldsymbol|bm|emph|fbox|boxed|operatorname)[a-z]*\s*\{(?P<text>[^{}]*)\}|\\[()\[\],;! ]"
)
_MARKED = re.compile(r"(?P<mark>\*{1,3}|__|`{1,3}|\${1,2})(?P<text>[^*_`$\n]+)(?P=mark)")
_HALF_WIDTH = {0xFF01 + place: 0x21 + place for place in range(94)} | {0x3000: " ", 0xFF61: "。"}
_AROUND = " \t\r\n.:*,;!?、。…\"'“”‘’`「」『』【】《》〈〉$"
_DENIED = re.compile("[不非未无]|没有|排除")
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

    Ignores `<think>` and its variants. Takes the content of `\boxed{}`, else of `<answer>`, else the whole text. Within that,
    takes the value of "answer" in a JSON object, else the part after the last "answer is", "Answer:" or similar.

    The result is in lower case and half-width characters, without markup (`\text{}`, `$`, `**`), and without surrounding white
    space, punctuation and quotes.
    """
    return _stated(text).lower().strip(_AROUND)


def _stated(text: str) -> str:
    """Returns the final answer in its own case and with its punctuation."""
    text = without_reasoning(text) or text
    inside = boxed(text)
    inside = tagged(text) if inside is None else inside
    text = (text if inside is None else inside).translate(_HALF_WIDTH)
    said = _in_json(text)
    if said is None:
        said = next((part for part in reversed(_ANNOUNCED.split(text)) if part.strip(_AROUND)), "")
    for _ in range(_NESTED):
        said = _LATEX.sub(r"\g<text>", said)
    return _MARKED.sub(r"\g<text>", said)


def _in_json(text: str) -> str | None:
    """Returns the value of "answer" in the JSON object or Python dictionary of a text, also in a code fence, or None."""
    with suppress(ValueError, RecursionError):
        values = json.loads(text[text.find("{") : text.rfind("}") + 1])
        by_key = {key.lower(): value for key, value in values.items()} if isinstance(values, dict) else {}
        for key in _ANSWER_KEYS:
            if (value := by_key.get(key)) is not None:
                return " or ".join(map(str, value)) if isinstance(value, list) else str(value)
    found = _QUOTED_ANSWER.search(text)
    return found["text"] if found else None


def standing_letter(text: str, options: Options) -> str | None:
    """Returns the option letter that a text begins with as a word of its own: "B", "b. rows" or "B因为", not "Both"."""
    text = unicodedata.normalize("NFKC", text)
    letter = text[:1].upper()
    continued = text[1:2].isascii() and text[1:2].isalnum()  # Chinese is written without spaces
    return letter if letter in dict(options) and not continued else None


def chosen_option(text: str, options: Options) -> str | None:
    """Returns the letter of the option that an answer names by letter or text; None if it names none, or several.

    The answer is read by `_stated`, as in `final_answer`. It names an option in these cases, the first of which counts:

      it consists of the letter     "B", "(b)", "B。"
      it is the option's text       "rows", "Rows."
      it names the letter           "Option B", "B. rows", "B because ...", "选B" (`letters.named_letters`)
      it contains the text          "Rows are seen.", without a negation, and without the text of another option

    An answer that continues its letter by the text of another option names several.
    """
    said = _stated(text)
    known = dict(options)
    if letter := bare(said):
        return letter if letter in known else None
    if (letter := _equal(said, options)) is not None:
        return letter
    letters = named_letters(said)
    if letters:
        (letter,) = letters if len(letters) == 1 else ("",)
        other = _equal(behind_letter(said), options)
        return letter if letter in known and other in (None, letter) else None
    contained = _contained(said, options)
    return contained.pop() if len(contained) == 1 else None


def closest_option(text: str, options: Options) -> str | None:
    """Returns the option that an answer names, else the most similarly spelt one (`difflib`; the first of ties).

    Returns None if the answer names another letter, several letters, or if no option is similar.
    """
    if chosen := chosen_option(text, options):
        return chosen
    said = final_answer(text)
    if bare(said) or named_letters(_stated(text)):
        return None
    alike = {letter: difflib.SequenceMatcher(None, option.lower(), said).ratio() for letter, option in options}
    best = max(alike, key=alike.__getitem__, default=None)
    return best if best is not None and alike[best] > 0 else None


def plain(text: str) -> str:
    """Returns text in lower case with half-width characters and single spaces, without surrounding punctuation and quotes."""
    return " ".join(text.translate(_HALF_WIDTH).lower().split()).strip(_AROUND)


def _equal(text: str, options: Options) -> str | None:
    """Returns the first option whose text is `text`, exactly if there is one, else apart from case and what is around it."""
    for form in (str.strip, plain):
        for letter, option in options:
            if form(text) and form(option) == form(text):
                return letter
    return None


def _contained(text: str, options: Options) -> set[str]:
    """Returns the options whose texts a text contains as whole words, except within longer ones, and if it has no negation.

    Returns only the option that makes the first clause, if there is one: "Yes, there is no doubt."
    """
    found: set[str] = set()
    rest = text = plain(text)
    for letter, option in sorted(options, key=lambda pair: -len(pair[1])):
        words = re.escape(plain(option))
        if words and re.match(rf"{words}[.,;:!?。、](?!\d)", text):
            return {letter}
        rest, count = re.subn(rf"(?<![a-z0-9]){words}(?![a-z0-9]|\.\d)", "\n", rest) if words else (rest, 0)
        if count:
            found.add(letter)
            if denies(text, of=option) or (_DENIED.search(text) and not _DENIED.search(option)):
                return set()
    return found
