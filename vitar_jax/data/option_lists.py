"""Options that are written behind a question in the same text, and the instruction that prompts often have behind them."""

import re
from dataclasses import dataclass

from vitar_jax.data.options import Options
from vitar_jax.episodes.sample import letters
from vitar_jax.errors import DataError

# Ways to mark options. A mark begins a line or follows white space or a punctuation mark of Chinese.
_BEGIN = r"(?:^|(?<=\s)|(?<=[，。？！：；]))(?:[-*•]\s+)?\**"
_STYLES = tuple(
    re.compile(_BEGIN + mark + r"\**\s*", re.MULTILINE)
    for mark in (r"[(（]([A-Z])[)）]\s*[.:：]?", r"\[([A-Z])\]", r"([A-Z])[)）]", r"([A-Z])[.．、]", r"([A-Z])[:：]")
)
_SURE = _STYLES[:3]  # marks that prose hardly has
_HEADING = re.compile(r"(?:^|(?<=[\s?.]))(?:the )?(?:answer )?(?:options|choices)(?: are)?\s*:\s*$", re.IGNORECASE)

# Words that hardly occur within an option, and words of a sentence that tells how to answer.
_OPENING = (
    r"(?:Answer|Please|You|Your|Select|Choose|Think|Let's|Let us|Output|Respond|Reply|Provide|Do not|Don't|Put|Return|Write"
    r"|Solve|Directly|Explain|Enclose|Remember|Make sure|Kindly"
    r"|The\s(?:final\s|correct\s|right\s|best\s)?(?:answer|option|choice))(?!\w)"
    r"|[请选回用]"
)
_ANSWERING = re.compile(
    r"\b(?:answer|options?|choices?|letter|boxed|think|thinking|reason|reasoning|explain|explanation|step by step|task|JSON)\b"
    r"|</?\w+>|####|选项|答案|字母|回答",
    re.IGNORECASE,
)
_OPENED = re.compile(rf"(?<=[\s。；！？])(?:{_OPENING})")
_SENTENCE = re.compile(rf"(?:(?<=[\s。；！？])(?={_OPENING})|(?<=[.!?:]\s)|(?<=[。；！？]))\w[^.!?。\n]*")
_LINE = re.compile(r"\n\s*(\S.*)")
_STOP = re.compile(r"[.!?。]\s+\S")
_ABOUT_OPTIONS = re.compile(
    r"\b(?:all|none|both|any|neither|either)(?: of)?(?: the| these)?(?: above| other)? (?:options|choices|answers)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class OptionList:
    """A question and the options that its text ends with.

    Attributes:
      question: The text before the options; the whole text if it has none.
      options: Texts of the options, or none.
      instruction: The text behind the options, which tells how to answer.
      sure: Whether the marks of the options are unlikely in prose.
      problem: Why the end of the last option is unclear, or an empty string.
    """

    question: str
    options: tuple[str, ...] = ()
    instruction: str = ""
    sure: bool = True
    problem: str = ""


def split_options(question: str) -> OptionList:
    """Splits a question from options such as "A) ... B) ...", "(A) ...", "A. ..." or "A: ...", in one line or one per line.

    Their letters start with A and are in alphabetical order. Of several runs of such marks, the longest counts.
    """
    found: list[OptionList] = []
    for style in _STYLES:
        marks = list(style.finditer(question))
        # The last of equally long runs counts, as in "... vitamin A) is it? A) x B) y".
        for start in reversed([number for number, mark in enumerate(marks) if mark[1] == "A"]):
            run = [marks[start]]
            for mark in marks[start + 1 :]:
                if ord(mark[1]) == ord(run[-1][1]) + 1:
                    run.append(mark)
            if made := _options(question, run, style in _SURE):
                found.append(made)
    return max(found, key=lambda made: len(made.options), default=OptionList(question))


def read_options(written: str, gold: str, where: str) -> tuple[OptionList, Options, str]:
    """Splits a question from its options and returns both, and the gold answer, which is a letter if there are options.

    Marks that may be prose, as in "Image A: ...", are options only if the gold answer fits one of them.

    Raises:
      DataError: If the question has options whose end is unclear, or none or several of which the gold answer fits.
    """
    split = split_options(written)
    if not split.options or not split.question:
        return OptionList(written), Options(), gold
    options = Options(letters(split.options, where))
    try:
        if split.problem:
            raise DataError(f"{where}: {split.problem}")
        return split, options, options.letter(gold, f"{where}: answer", "letter")
    except DataError:
        if split.sure or re.fullmatch(r"\W*[A-Z]\W*", gold):
            raise
        return OptionList(written), Options(), gold


def _options(text: str, run: list[re.Match[str]], sure: bool) -> OptionList | None:
    """Returns the options that a run of marks makes, or None if it makes none."""
    if len(run) < 2:
        return None
    ends = [*(mark.start() for mark in run[1:]), len(text)]
    *others, last = [text[mark.end() : end].strip() for mark, end in zip(run, ends, strict=True)]
    by_line = all(not text[: mark.start()].rpartition("\n")[2].strip() for mark in run)
    last, instruction, problem = _without_instruction(last, others)
    question = _HEADING.sub("", text[: run[0].start()].strip()).strip()
    if last.endswith("?") and question and question[-1] not in ".?!:。？！：" and not by_line:
        return None  # prose: "Is it (A) early or (B) late?"
    if _holds_mark(last, run[-1]):
        problem = f"the options after {run[-1][1]} are marked in another way, or leave out a letter: {last[:80]!r}"
    options = _without_separators([*others, last])
    if not all(re.search(r"\w", option) for option in options):
        return None
    return OptionList(question, tuple(options), instruction, sure or by_line, problem)


def _holds_mark(last: str, mark: re.Match[str]) -> bool:
    """Returns whether the last option holds a later mark of its style, or the next letter in another style."""
    found = [(style, other) for style in _STYLES for other in style.finditer(last) if other.start() and other[1] > mark[1]]
    return any(style is mark.re or ord(other[1]) == ord(mark[1]) + 1 for style, other in found)


def _without_instruction(last: str, others: list[str]) -> tuple[str, str, str]:
    """Splits the last option from the instruction behind it. Returns both, and why their border is unclear, if it is."""
    start = _instruction_start(last, others)
    option, instruction = last[:start].strip(), last[start:].strip()
    problem = f"cannot tell where the last option ends: {last[:80]!r}" if _may_hold_more(option, others) else ""
    return option, instruction, problem


def _instruction_start(last: str, others: list[str]) -> int:
    """Returns the index at which an instruction begins, or the length of the text."""
    several_lines = any("\n" in option for option in others)
    starts = [len(last)]
    for line in _LINE.finditer(last):
        opens = re.match(_OPENING, line[1]) if several_lines else not line[1][0].islower()
        blank = "\n\n" in line[0] and not any("\n\n" in option for option in others)
        if blank or (opens and _ANSWERING.search(last, line.start())):
            starts.append(line.start())
    starts += [match.start() for match in _SENTENCE.finditer(last) if match.start() and _ANSWERING.search(match[0])]
    return min(starts)


def _may_hold_more(last: str, others: list[str]) -> bool:
    """Returns whether the last option looks unlike the others, as if it held more than an option."""
    continued, lines = ([line[1] for option in options for line in _LINE.finditer(option)] for options in ([last], others))
    if not all(line[0].islower() for line in continued) and all(line[0].islower() for line in lines):
        return True
    plain = [_ABOUT_OPTIONS.sub("", option) for option in (last, *others)]
    for pattern in (_STOP, _OPENED, _ANSWERING):
        first, *rest = (bool(pattern.search(option)) for option in plain)
        if first and not any(rest):
            return True
    return False


def _without_separators(options: list[str]) -> list[str]:
    """Removes commas and an "or" between options, and the mark that ends the sentence of all of them."""
    *others, last = options
    if all(re.search(r"[,;，；](?:\s*(?:or|and|或))?$|\s(?:or|and)$", option) for option in others):
        others = [re.sub(r"[,;，；]?(?:\s*\b(?:or|and|或))?$", "", option).strip() for option in others]
    ends = (".", "。", "?", "？")
    if last.endswith(ends) and not any(option.endswith(ends) for option in others):
        last = last[:-1].strip()
    return [*others, last]
