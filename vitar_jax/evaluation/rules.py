"""Registered scoring rules, each with a version: a rule decides whether an answer is right.

Accuracy depends on the rule, so it is never printed without the name of its rule, for example `medevalkit-em/2`. A rule gets a
new version whenever its verdict on any answer changes. Rules named after a published scorer correct its defects and document
each correction. Rules whose names end in `-published` keep the defects, for comparison with published numbers.
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
    closest_option,
    denies,
    final_answer,
    plain,
    standing_letter,
    words,
    yes_or_no,
)
from vitar_jax.evaluation.mask_scores import CountedMasks, MatchedObjects
from vitar_jax.runtime.registry import Registry

Kind = Literal["open", "closed"]


@dataclasses.dataclass(frozen=True)
class Item:
    """A question and the model's answer.

    Attributes:
      options: (letter, text) pairs; empty for a question without options.
      gold: The gold answer; a letter if the question has options.
      prediction: The model's answer. An empty answer is wrong under every rule.
      kind: The kind of question according to the data set, or None.
      judged: The judge's verdict on the answer, or None.
      answers: All gold answers, if there are several. Each is passed to the rule as `gold`.
      masks: The sample's objects with the masks of the episode, or None if it has no objects.
    """

    question: str
    options: Options
    gold: str
    prediction: str
    kind: Kind | None = None
    judged: bool | None = None
    answers: tuple[str, ...] = ()
    masks: MatchedObjects | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A rule's verdict on an item.

    Attributes:
      correct: Score from 0 to 1; None if the rule does not score the item.
      parsed: The answer as the rule parsed it.
      kind: The kind of question according to the rule.
      masks: The masks that the rule counts, if it scores masks. Its score is then A-mIoU, pooled over masks, and `correct` is
        the mean of the sample's own.
    """

    correct: float | None
    parsed: str
    kind: Kind
    masks: CountedMasks | None = None


Function = Callable[[Item], Verdict]
JudgeOf = Callable[[Item, Verdict], bool | None]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A named scoring rule: a function from an item to a verdict. A `judged` rule needs a judge for open questions."""

    name: str
    version: int
    function: Function
    judged: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def verdict(self, item: Item, judge: JudgeOf | None = None) -> Verdict:
        """Returns the best verdict over the item's gold answers.

        Args:
          judge: Returns whether an answer is correct, for items that a judged rule cannot score alone.
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

    A function without the decorator has version 1.

    Raises:
      ConfigError: If a rule does not exist, or has a different version.
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
        raise ConfigError(f"scoring rule {name!r}: expected version {rule.version}")
    return rule


def _kind(item: Item) -> Kind:
    """Returns the data set's kind, else "closed" if the question has options or its gold answer is yes or no, else "open"."""
    return item.kind or ("closed" if item.options or _yes_no(item) else "open")


def _yes_no(item: Item) -> bool:
    return item.gold.strip().lower() in ("yes", "no")


@rule("exact", 1)
def exact(item: Item) -> Verdict:
    """Scores exact matches with the gold answer, ignoring case, spaces and underscores.

    This is the accuracy part of ViTAR's reward, as in its published code.
    """
    return Verdict(float(exact_match(item.prediction, item.gold)), item.prediction, _kind(item))


@rule("vitar-letter", 2)
def vitar_letter(item: Item) -> Verdict:
    """Scores answers that begin with the letter of the right option. Scores only questions with options.

    This is ViTAR's evaluation. Its published code takes the first character regardless of the next one, so that "Both" answers
    B. Here the letter must be a word of its own.
    """
    if not item.options:
        return Verdict(None, item.prediction, _kind(item))
    letter = standing_letter(item.prediction, item.options) or ""
    return Verdict(float(letter == item.gold.upper()), letter, "closed")


@rule("closed-mcq", 1)
def closed_mcq(item: Item) -> Verdict:
    """Scores answers that equal the right option's letter, its text, or "letter. text", ignoring case.

    The answer is the content of `<answer>`, or the whole text if there is none. Scores only closed questions; without options,
    the answer must equal the gold answer. This is MedVLThinker's evaluation, and also its reward.
    """
    answer = tagged(item.prediction)
    answer = (item.prediction if answer is None else answer).strip().lower()
    if _kind(item) == "open":
        return Verdict(None, answer, "open")
    right = {item.gold.strip().lower()}
    if text := dict(item.options).get(item.gold):
        right |= {text.strip().lower(), f"{item.gold}. {text}".strip().lower()}
    return Verdict(float(answer in right), answer, "closed")


@rule("medevalkit-em", 2)
def medevalkit_em(item: Item) -> Verdict:
    r"""Applies MedEvalKit's rules without a judge. Scores every question.

    An answer is right in these cases:

      question with options   `chosen_option` returns the gold letter
      yes/no question         `final_answer` contains exactly one of the two words, and it is the gold answer
      other question          `final_answer` equals the gold answer, ignoring case, white space and surrounding punctuation

    Questions are closed if they have options or are answered by yes or no, as in the toolkit's VQA-RAD and PathVQA. Its SLAKE
    uses the data set's kind instead, which does not change the total.

    Differences from the published code: an answer that names no option by letter or text is wrong. The published code takes the
    most similarly spelt option (`medevalkit-difflib`). A letter is found in more forms of answers. An answer that names several
    options is wrong. "yes" and "no" match whole words only, not parts of "normal" or "not". Reasoning in `<think>` and the case
    of SLAKE's gold answers are ignored. White space, punctuation and full-width characters are normalised.
    """
    return _medevalkit(item, chosen_option)


@rule("medevalkit-difflib", 1)
def medevalkit_difflib(item: Item) -> Verdict:
    """Applies `medevalkit-em`, and guesses the most similarly spelt option for an answer that names none, as MedEvalKit does.

    The guess depends on the spelling of all options, so that it also credits answers by chance. Difference from the published
    code: an answer that names another letter, or is empty, gets no guess.
    """
    return _medevalkit(item, closest_option)


def _medevalkit(item: Item, choose: Callable[[str, Options], str | None]) -> Verdict:
    if item.options:
        letter = choose(item.prediction, item.options) or ""
        return Verdict(float(letter == item.gold.upper()), letter, "closed")
    answer = final_answer(item.prediction)
    if _yes_no(item):
        said = yes_or_no(answer) or ""
        return Verdict(float(said == item.gold.strip().lower()), said, "closed")
    return Verdict(float(plain(answer) == plain(item.gold)) if answer else 0.0, answer, "open")


@rule("medevalkit-judge", 2, judged=True)
def medevalkit_judge(item: Item) -> Verdict:
    """Scores closed questions by `medevalkit-em` and open ones by a judge, as in Lingshu's table.

    Does not score open questions without a judgement. Difference from the published code: closed questions count exactly once,
    and no judge is asked about them.
    """
    by_rule = medevalkit_em(item)
    if by_rule.kind == "closed":
        return by_rule
    # An empty answer is wrong, whatever the judge's verdict.
    judged = False if not by_rule.parsed else item.judged
    return Verdict(None if judged is None else float(judged), by_rule.parsed, "open")


@rule("llava-med", 1)
def llava_med(item: Item) -> Verdict:
    """Applies LLaVA-Med's evaluation: accuracy for closed questions, recall of the gold answer's words for open ones.

    Does not score questions with options. An answer to a yes/no question is right if it contains only the right one of the two
    words. An answer to another closed question is right if it contains the gold answer's words consecutively. Words are those
    of `extraction.words`.

    Differences from the published code (`llava-med-published`): "yes" and "no" match whole words only, and an answer with both
    is wrong. Closed questions with other gold answers can be right. A repeated word counts at most as often as in the gold
    answer. An answer with a negation that the gold answer lacks ("no pneumonia") scores 0.
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
    """Applies LLaVA-Med's evaluation as in version 1.0 of its code, for comparison with published numbers.

    A closed answer is right if it contains the gold answer and also "yes" or "no", even within "normal" or "not". Most closed
    questions with other gold answers are therefore wrong. Open answers score the recall of words, where each repetition in
    the answer counts. Words are split as in `llava-med`.
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
    """Scores the harmonic mean of precision and recall over words (`extraction.words`), counting repetitions.

    This is the F1 of SQuAD (Rajpurkar et al., 2016), which MedGemma's card reports for VQA-RAD and SLAKE. A negation counts as
    much as any other word. Does not score questions with options.
    """
    said, gold = words(item.prediction), words(item.gold)
    shared = _shared(said, gold)
    score = 2 * shared / (len(said) + len(gold)) if shared else 0.0
    return Verdict(None if item.options else score, " ".join(said), _kind(item))


def _shared(said: Sequence[str], gold: Sequence[str]) -> int:
    return (Counter(said) & Counter(gold)).total()


@rule("vrt", 1)
def vrt(item: Item) -> Verdict:
    """Scores the masks of a sample's objects by R-LQ, R-SQ and A-mIoU, as in VRT's published evaluation (`mask_scores`).

    Does not score samples without objects. Reads no words. Masks that no one asked for cost nothing.

    Difference from the published code: without masks to score, it has no score instead of 0.
    """
    return _masks(item, unasked=False)


@rule("vrt-strict", 1)
def vrt_strict(item: Item) -> Verdict:
    """Scores masks as `vrt` does, and counts each mask that no one asked for as a gold mask of IoU 0."""
    return _masks(item, unasked=True)


def _masks(item: Item, *, unasked: bool) -> Verdict:
    if item.masks is None:
        return Verdict(None, item.prediction, _kind(item))
    counted = item.masks.counted(unasked=unasked)
    score = sum(counted.answer) / len(counted.answer) if counted.answer else None
    return Verdict(score, item.prediction, _kind(item), counted)
