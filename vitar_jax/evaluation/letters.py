"""Option letters that an answer names: "(B)", "Option B", "B because ...", "选B". Not the article of "A nodule".

A letter counts only where it names an option: alone in a line, or at the start of a line or behind a cue such as "option" and
"it is", where a clause ends or a reason begins. Other letters belong to words: "hepatitis B", "a B cell".
"""

import re
import unicodedata

WRAPPERS = " \t\"'“”‘’`«»「」『』【】《》〈〉()[]{}<>$*_"
_EDGES = WRAPPERS + "\r\n.,;:!?、。…·#|~-–—"  # around a letter that is alone in its line

# Repetitions are bounded, so that a pattern takes time proportional to the text.
_WRAP = rf"[{re.escape(WRAPPERS)}]{{0,9}}"
_LETTER = r"(?<![A-Za-z0-9])(?P<letter>[A-Za-z])(?![A-Za-z0-9]|['’][A-Za-z])"
_VERB = r"(?:is|was|seems|appears|looks)\b"
_END = re.compile(
    rf"(?!{_WRAP}(?:{_VERB} )?(?:(?:not|wrong|incorrect|false|ruled|excluded|unlikely|less|impossible|cannot|\w+n't)\b|[不错]))"
    rf"(?:[)\]}}】」』》”\"]|(?<![AaIi])\s?\(|{_WRAP}(?:$|[\n.;:!?、。…/|]|(?<![Ii]),|[–—→=]|-\s"
    rf"|\b(?:because|since|as (?:the|it|there|this)|due to|based on|for the|{_VERB})\b|因为|由于|是?正确|是?对|选?项))",
    re.IGNORECASE,
)
_STRONG = r"(?:\b(?:options?|choices?|answers?|letters?|select(?:ed)?|choos(?:e|ing)|chose|pick(?:ed)?)\b|选项?|选择|答案|应为)"
_FILLER = r"(?:\s{0,3}(?:is|be|would|should|must|option|choice|answer|letter|the|[:=为是的应选项])){0,5}"
_WEAK = r"(?:\b(?:is|be|it's|say|think|with|so|therefore|thus|hence)\b|→|=>|[是为即])[\s,:]{0,5}"

_AT_START = re.compile(rf"^{_WRAP}{_LETTER}", re.IGNORECASE)
_BEHIND_CUE = re.compile(rf"{_STRONG}{_FILLER}{_WRAP}{_LETTER}", re.IGNORECASE)
_BEHIND_VERB = re.compile(rf"(?i:{_WEAK}){_WRAP}(?![iI]){_LETTER}")  # "so I, ..." names no option
_NEXT_LETTER = re.compile(
    rf"{_WRAP}(?:[,/&+、?|]|\b(?:or|and|vs)\b|[和与或及])(?:[\s,.者]|\b(?:or|and|options?|choices?)\b|选项?){{0,7}}{_WRAP}"
    rf"{_LETTER}(?![\w-])",
    re.IGNORECASE,
)
_LONGEST_CLAUSE = 100  # characters that are searched for a negation in front of a letter
_CLAUSE = re.compile(r"[.,;:!?、。\n]")
_NEGATED = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|except|excluding|excluded?s?|rule[sd]? out|wrong|incorrect)\b|n't\b|[不非未]|排除",
    re.IGNORECASE,
)


def bare(text: str) -> str:
    """Returns the upper-case letter that a text consists of, ignoring quotes, brackets and punctuation around it, or ""."""
    letter = _plain_letters(text).strip(_EDGES)
    return letter.upper() if re.fullmatch("[A-Za-z]", letter) else ""


def behind_letter(text: str) -> str:
    """Returns a text without the letter that it begins with: "rows" for "B. rows"."""
    text = _plain_letters(text)
    found = _AT_START.match(text)
    return text[found.end() :].strip(_EDGES) if found and _END.match(text, found.end()) else text


def named_letters(text: str) -> frozenset[str]:
    """Returns the upper-case letters that a text names as options: none, one, or several if it leaves the choice open.

    A first or last line that consists of a letter goes before all others.
    """
    text = _plain_letters(text)
    lines = [line for line in text.splitlines() if line.strip(_EDGES)] or [""]
    if alone := frozenset(filter(None, map(bare, (lines[0], lines[-1])))):
        return alone
    starts = {line.strip() for line in (lines[0], lines[-1], text.rpartition(":")[2])}
    found: set[str] = set()
    for place, pattern in [(start, _AT_START) for start in starts] + [(text, _BEHIND_CUE), (text, _BEHIND_VERB)]:
        for match in pattern.finditer(place):
            others = _listed(place, match.end())
            clause = _CLAUSE.split(place[max(0, match.end() - _LONGEST_CLAUSE) : match.end()])[-1]
            if (others or _END.match(place, match.end())) and not _NEGATED.search(clause):
                found |= {match["letter"].upper(), *others}
    return frozenset(found)


def _plain_letters(text: str) -> str:
    """Returns text with plain letters and marks in place of full-width, bold, circled and other ones."""
    return unicodedata.normalize("NFKC", text)


def _listed(text: str, place: int) -> set[str]:
    """Returns the letters that continue a list behind a letter: {"B", "C"} for " or B, C"."""
    found: set[str] = set()
    while following := _NEXT_LETTER.match(text, place):
        found.add(following["letter"].upper())
        place = following.end()
    return found
