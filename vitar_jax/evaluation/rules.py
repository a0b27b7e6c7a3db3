"""Scoring rules by name and version: when an answer counts as right.

A model's accuracy differs from rule to rule, so it is never printed without its rule, such as `medevalkit-em/1`. A rule whose
verdict on any answer changes gets a new version. Where a published scorer has a defect, the rule of its name corrects it and
says so; a rule whose name ends in `-published` keeps it, for comparison with published numbers.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from vitar_jax.episodes.answers import exact_match, tagged
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.extraction import (
    Options,
    chosen_option,
    denies,
    final_answer,
    standing_letter,
    words,
    yes_or_no,
)
from vitar_jax.runtime.registry import Registry

Kind = Literal["open", "closed"]


@dataclasses.dataclass(frozen=True)
class Item:
    """A question and what was answered to it.

    Attributes:
      options: (letter, text) pairs; empty where there are none.
      gold: The gold answer to compare with: a letter where there are options.
      prediction: The answer's text; empty where there is none, which is wrong under every rule.
      kind: What the data set says of the question; None where it says nothing.
      judged: What a judge says of the answer; None where none was asked, or it could not say.
      answers: All gold answers, where several count; a rule is called with each of them as `gold`.
    """

    question: str
    options: Options
    gold: str
    prediction: str
    kind: Kind | None = None
    judged: bool | None = None
    answers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rule says of an item.

    Attributes:
      correct: from 0 to 1; None where the rule does not score such items.
      parsed: the answer as the rule read it.
      kind: as the rule counts it.
    """

    correct: float | None
    parsed: str
    kind: Kind


Function = Callable[[Item], Verdict]
JudgeOf = Callable[[Item, Verdict], bool | None]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A scoring rule by name: a function from an item to a verdict. `judged` ones need a judge for open questions."""

    name: str
    version: int
    function: Function
    judged: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def verdict(self, item: Item, judge: JudgeOf | None = None) -> Verdict:
        """Returns the best verdict over the item's gold answers.

        Args:
          judge: Says of an item that the rule alone cannot score whether its answer is correct.
        """
        verdicts = []
        for gold in item.answers or (item.gold,):
            one = dataclasses.replace(item, gold=gold)
            said = self._call(one)
            if self.judged and said.correct is None and judge is not None:
                said = self._call(dataclasses.replace(one, judged=judge(one, said)))
            verdicts.append(said)
        open_ones = [said for said in verdicts if said.correct is None]
        best = max((said for said in verdicts if said.correct is not None), key=lambda said: said.correct, default=None)
        if best is None or (open_ones and self.judged and best.correct != 1):
            return open_ones[0]
        return best

    def _call(self, item: Item) -> Verdict:
        said = self.function(item)
        if not isinstance(said, Verdict):
            raise ConfigError(f"scoring rule {self.name}: expected a Verdict, got {said!r}")
        return said


RULES: Registry[Rule] = Registry("scoring rule")


def rule(name: str, version: int = 1, *, judged: bool = False) -> Callable[[Function], Function]:
    """Returns a decorator that registers a function as the rule `name`."""

    def register(function: Function) -> Function:
        RULES[name] = Rule(name, version, function, judged)
        return function

    return register


def find_rules(names: Sequence[str]) -> list[Rule]:
    """Returns rules by name, `package.module:name` or `path/to/file.py:name`, with or without their version (`exact/1`).

    A function that is not decorated has version 1.

    Raises:
      ConfigError: If a name names no rule, or not in this version.
    """
    return list(dict.fromkeys(map(_find, names)))


def _find(name: str) -> Rule:
    versioned = re.fullmatch(r"(.+)/(\d+)", name)
    plain = versioned[1] if versioned else name
    found: Any = RULES.find(plain)
    if isinstance(found, Rule):
        rule = found
    elif callable(found):
        rule = next((known for known in RULES.values() if known.function is found), Rule(plain, 1, cast(Function, found)))
    else:
        raise ConfigError(f"scoring rule {name!r}: expected a function, got {found!r}")
    if versioned and int(versioned[2]) != rule.version:
        raise ConfigError(f"scoring rule {name!r}: its version is {rule.version}")
    return rule


def _kind(item: Item) -> Kind:
    """What the data set says, else closed where there are options or the answer is yes or no."""
    return item.kind or ("closed" if item.options or _yes_no(item) else "open")


def _yes_no(item: Item) -> bool:
    return item.gold.strip().lower() in ("yes", "no")


@rule("exact", 1)
def exact(item: Item) -> Verdict:
    """The answer is the reference but for case, spaces and underscores.

    The accuracy part of ViTAR's reward, as its published code computes it.
    """
    return Verdict(float(exact_match(item.prediction, item.gold)), item.prediction, _kind(item))


@rule("vitar-letter", 1)
def vitar_letter(item: Item) -> Verdict:
    """The answer begins with the letter of the right option. Scores questions with options.

    ViTAR's evaluation. Its published code takes the first character whatever follows, so that "Both" answers B; here the
    letter has to stand by itself.
    """
    if not item.options:
        return Verdict(None, item.prediction, _kind(item))
    letter = standing_letter(item.prediction, item.options) or ""
    return Verdict(float(letter == item.gold.upper()), letter, "closed")


@rule("closed-mcq", 1)
def closed_mcq(item: Item) -> Verdict:
    """The answer is the right option's letter, its text, or "letter. text", but for case; else it is wrong.

    What stands in `<answer>` is the answer, without it all is. Scores closed questions; one without options is answered by
    the reference's text. MedVLThinker's evaluation, which is its reward too.
    """
    answer = tagged(item.prediction)
    answer = (item.prediction if answer is None else answer).strip().lower()
    if _kind(item) == "open":
        return Verdict(None, answer, "open")
    right = {item.gold.strip().lower()}
    if text := dict(item.options).get(item.gold):
        right |= {text.strip().lower(), f"{item.gold}. {text}".strip().lower()}
    return Verdict(float(answer in right), answer, "closed")


@rule("medevalkit-em", 1)
def medevalkit_em(item: Item) -> Verdict:
    r"""MedEvalKit's rules without a judge. Scores every question.

    The answer is what `final_answer` finds. With options it means one of them (`chosen_option`). To a question of yes or no
    just one of these words occurs in it, and is right. Any other is the reference but for case and white space and full stops
    around it.

    Closed are questions with options and those answered by yes or no, as for the toolkit's VQA-RAD and PathVQA; its SLAKE goes
    by what the data set says, which makes the total no other.

    Not as published: "yes" and "no" are words, not parts of "normal" or "not"; an empty answer to a question with options is
    not A, but wrong; a letter may stand in brackets; capitals in SLAKE's references do not matter; white space is dropped.
    """
    answer = final_answer(item.prediction)
    if item.options:
        letter = chosen_option(answer, item.options) or ""
        return Verdict(float(letter == item.gold.upper()), letter, "closed")
    if _yes_no(item):
        said = yes_or_no(answer) or ""
        return Verdict(float(said == item.gold.strip().lower()), said, "closed")
    return Verdict(float(_plain(answer) == _plain(item.gold)), answer, "open")


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .*")


@rule("medevalkit-judge", 1, judged=True)
def medevalkit_judge(item: Item) -> Verdict:
    """`medevalkit-em` for closed questions, and what a judge says for open ones, as Lingshu's table was made.

    An open question without a judgement is not scored. Not as published: closed questions are counted once, and by rule alone.
    """
    by_rule = medevalkit_em(item)
    if by_rule.kind == "closed":
        return by_rule
    # What is nothing cannot be right, whatever a judge says.
    judged = False if not by_rule.parsed else item.judged
    return Verdict(None if judged is None else float(judged), by_rule.parsed, "open")


@rule("llava-med", 1)
def llava_med(item: Item) -> Verdict:
    """LLaVA-Med's evaluation: closed questions are right or wrong, open ones are worth the share of the reference's words that
    the answer has (recall). Does not score questions with options.

    A question of yes or no is right where just the right word occurs; another closed one where the reference's words occur
    one after another. Words are those of `extraction.words`.

    Not as published (`llava-med-published`): "yes" and "no" are words of their own, and both together are neither; closed
    questions of other words can be right; a word that is said twice counts as often as the reference has it; an answer with a
    negation that the reference does not have ("no pneumonia") has none of its words.
    """
    said, gold = words(item.prediction), words(item.gold)
    kind = _kind(item)
    if item.options:
        return Verdict(None, " ".join(said), kind)
    if kind == "closed" and _yes_no(item):
        word = yes_or_no(item.prediction) or ""
        return Verdict(float(word == item.gold.strip().lower()), word, kind)
    if denies(item.prediction, of=item.gold):
        return Verdict(0.0, " ".join(said), kind)
    if kind == "closed":
        return Verdict(float(f" {' '.join(gold)} " in f" {' '.join(said)} "), " ".join(said), kind)
    return Verdict(_shared(said, gold) / len(gold) if gold else 0.0, " ".join(said), kind)


@rule("llava-med-published", 1)
def llava_med_published(item: Item) -> Verdict:
    """LLaVA-Med's evaluation as its code of version 1.0 computes it, to compare with published numbers.

    Closed: "yes" or "no" occurs anywhere, also in "normal" or "not", and so does the reference; hence most of what is neither
    yes nor no is wrong. Open: recall of words, where every time that the answer says one counts. Words as in `llava-med`.
    """
    said, gold = words(item.prediction), words(item.gold)
    text, kind = " ".join(said), _kind(item)
    if item.options:
        return Verdict(None, text, kind)
    if kind == "closed":
        return Verdict(float(("yes" in text or "no" in text) and " ".join(gold) in text), text, kind)
    hits, missed = sum(word in gold for word in said), sum(word not in said for word in gold)
    return Verdict(hits / (hits + missed) if hits else 0.0, text, kind)


@rule("token-f1", 1)
def token_f1(item: Item) -> Verdict:
    """The harmonic mean of the precision and recall of words (`extraction.words`), each counted as often as it is said.

    The F1 of SQuAD (Rajpurkar et al., 2016), as MedGemma's card reports it for VQA-RAD and SLAKE. A negation costs no more than
    any other word. Does not score questions with options.
    """
    said, gold = words(item.prediction), words(item.gold)
    shared = _shared(said, gold)
    score = 2 * shared / (len(said) + len(gold)) if shared else 0.0
    return Verdict(None if item.options else score, " ".join(said), _kind(item))


def _shared(said: Sequence[str], gold: Sequence[str]) -> int:
    return (Counter(said) & Counter(gold)).total()
