"""The options of a question, and the letter of its gold answer. Every reader of data takes both from here."""

import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vitar_jax.data.tables import Row, as_literal, is_missing, text
from vitar_jax.episodes.sample import letters
from vitar_jax.errors import DataError

Convention = Literal["", "letter", "text"]

_LABEL = re.compile(r"[(\[（]?([A-ZＡ-Ｚ])(?:[)\]）]\s*[.:．：]?|[.:、．：])\s*(?=\S)")  # "B. rows", "(B) rows", "B: rows"
_LETTER = re.compile(r"(?:option|choice|answer)?\s*[(\[]?([A-Z])[)\]]?\s*[.:,;。、]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(_LABEL.pattern + r"(.*)", re.IGNORECASE | re.DOTALL)
_INDEX = re.compile(r"[(\[]?(\d+)(?:\.0+)?[)\]]?[.:]?")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
      pairs: (letter, text) of each option; empty for an open question.
      typed_numbers: Whether the file has the options as numbers instead of texts.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    typed_numbers: bool = False

    @classmethod
    def of(cls, value: Any, where: str) -> "Options":
        """Reads options from a value of a file: a list, or an object by letter, which may be written as text; or text with |.

        Letters that the options of a list begin with, as in "A. Lung", are removed.

        Raises:
          DataError: If the value has another form, holds a single option, or if options begin with letters in another order.
        """
        value = as_literal(value, where)
        by_letter = isinstance(value, Mapping)
        if by_letter:
            value = _by_letter(value, where)
        elif isinstance(value, str):
            value = value.split("|")
        elif not isinstance(value, list | tuple):
            raise DataError(f"{where}: got {value!r}, expected a list, an object by letter, or text separated by |")
        texts = [text(one, where) for one in value]
        if len(texts) == 1:
            raise DataError(f"{where}: got one option, {texts[0]!r}, expected several, as a list or as text separated by |")
        typed_numbers = bool(value) and not any(isinstance(one, str) for one in value)
        return cls(letters(texts if by_letter else _without_labels(texts, where), where), typed_numbers)

    @classmethod
    def published(cls, row: Row) -> "Options":
        """Reads the list `options` of a published set as it stands: blank texts and letters before texts stay.

        Raises:
          DataError: If there is no list, or it holds something other than texts and numbers.
        """
        where = f"{row.where}: options"
        texts = [one.strip() if isinstance(one, str) else text(one, where) for one in row.list("options")]
        return cls(letters(texts, where))

    def letter(self, gold: Any, where: str, convention: Convention = "") -> str:
        """Returns the letter of the option that a gold answer stands for. Without options, returns the answer as text.

        A gold answer is a letter ("B", "b", "(B)", "B."), the text of an option ("rows"), both ("B. rows"), or an index, which
        counts from 0 or from 1. Letter case, white space and a full stop at the end are ignored. If several readings fit
        different options, the answer is refused. So an index is only understood if it is outside one of its two ranges.

        Args:
          gold: Text or a number.
          where: Start of the error message: file, record and column.
          convention: What the data set declares its gold answers to be. That reading is taken where it fits.

        Raises:
          DataError: If the gold answer is neither text nor a number, or does not fit exactly one option.
        """
        written = text(gold, where)
        if not self.pairs:
            return written
        by_letter, by_text = self._by_letter(written), self._by_text(written)
        if convention == "letter" and by_letter:
            return by_letter.pop()
        if convention == "text" and len(by_text) == 1:
            return by_text.pop()
        found = by_letter | by_text | self._by_both(written)
        numbers = all(_NUMBER.fullmatch(_plain(option)) for _, option in self.pairs)
        # Among options that are numbers, a number is an option's text, unless only one of the two is text in the file.
        if (not numbers and not found) or (numbers and not self.typed_numbers and not isinstance(gold, str)):
            found |= self._by_index(written)
        if len(found) == 1:
            return found.pop()
        shown = ", ".join(f"{letter} ({option})" for letter, option in self.pairs)
        if not found:
            raise DataError(f"{where}: got {written!r}, expected one of the options {shown}, by letter or text")
        fits = " and ".join(sorted(found))
        raise DataError(f"{where}: got {written!r}, which fits the options {fits}, expected exactly one of {shown}")

    def equal_to(self, *answers: str) -> tuple[str, ...]:
        """Returns the letters of all options whose text is that of an answer, if they are several: each of them is right."""
        texts = {_compared(option) for letter, option in self.pairs if letter in answers and option}
        same = tuple(letter for letter, option in self.pairs if letter in answers or _compared(option) in texts)
        found = tuple(dict.fromkeys((*answers, *same)))
        return found if len(found) > 1 else ()

    def _by_letter(self, gold: str) -> set[str]:
        found = _LETTER.fullmatch(_plain(gold))
        return {found[1].upper()} & dict(self.pairs).keys() if found else set()

    def _by_text(self, gold: str) -> set[str]:
        exact = {letter for letter, option in self.pairs if option == gold}
        return exact or {letter for letter, option in self.pairs if _compared(option) == _compared(gold)}

    def _by_both(self, gold: str) -> set[str]:
        found = _LETTER_AND_TEXT.fullmatch(_plain(gold))
        return {found[1].upper()} & self._by_text(found[2]) if found else set()

    def _by_index(self, gold: str) -> set[str]:
        found = _INDEX.fullmatch(_plain(gold))
        if not found:
            return set()
        index = int(found[1])
        return {self.pairs[place][0] for place in (index, index - 1) if 0 <= place < len(self.pairs)}


def _plain(written: str) -> str:
    """Returns text without the marks around it: white space, quotes and asterisks. Full-width letters become plain ones."""
    return unicodedata.normalize("NFKC", written).strip(" \t\r\n*\"'`$")


def _compared(written: str) -> str:
    """Returns the form in which texts of options are compared."""
    plain = " ".join(_plain(written).casefold().split())
    return repr(float(plain)) if _NUMBER.fullmatch(plain) else plain.rstrip(" .。") or plain


def _by_letter(value: Mapping[Any, Any], where: str) -> list[Any]:
    """Returns the values of an object whose keys are A, B, ... Ignores missing ones at the end, as tables fill columns up."""
    given = {str(key).strip().upper(): one for key, one in value.items() if not is_missing(one)}
    if not given or sorted(given) != list(string.ascii_uppercase[: len(given)]):
        raise DataError(f"{where}: got the options {', '.join(map(str, value))}, expected the letters from A on")
    return [given[letter] for letter in sorted(given)]


def _without_labels(options: list[str], where: str) -> list[str]:
    found = [match for option in options if (match := _LABEL.match(option))]
    labels = [unicodedata.normalize("NFKC", match[1]) for match in found]
    expected = list(string.ascii_uppercase[: len(options)])
    if len(options) < 2 or sorted(labels) != expected:
        return options
    if labels != expected:
        raise DataError(f"{where}: got options that begin with {', '.join(labels)}, expected A, B, ... in order")
    return [match.string[match.end() :] for match in found]
