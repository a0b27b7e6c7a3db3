"""Questions and thoughts from templates, and the rule that checks them. All depend only on the boxes and a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from data_prep.curation.candidates import COUNTS, PARTS, QUADRANTS, SIDES, YES_NO, Candidate, Draft, Rejected, seeded
from vitar_jax.episodes.regions import centre

DISTRACTORS = 3

QUESTIONS = {
    "finding": (
        "Which finding is at ({x:.2f}, {y:.2f})? The upper left corner of the image is (0, 0), the lower right is (1, 1).",
        "What does the image show at {x:.2f} of its width from the left and {y:.2f} of its height from the top?",
    ),
    "quadrant": ("In which quadrant of the image can {finding} be seen?", "Which quadrant of the image shows {finding}?"),
    "side": ("In which half of the image can {finding} be seen?", "Which half of the image shows {finding}?"),
    "presence": ("Does the image show {finding}?", "Can {finding} be seen in the image?"),
    "part": ("Does {where} show {finding}?", "Can {finding} be seen in {where}?"),
    "count": ("How many {finding} does {where} show?", "How many {finding} can be seen in {where}?"),
}
BEFORE = {
    "finding": "I mark what is at ({x:.2f}, {y:.2f}).",
    "quadrant": "I look for {finding} and mark it.",
    "side": "I look for {finding} and mark it.",
    "presence": "I look for {finding} and mark what could be it.",
    "part": "I look for {finding} and mark {where}.",
    "count": "I count {finding} and mark {where}.",
}
AFTER = {
    "finding": "The marked region shows {finding}.",
    "quadrant": "The marked region shows {finding}; it is in the {answer} quadrant.",
    "side": "The marked region shows {finding}; it is in the {answer} half.",
    "presence": "The marked region shows {finding}.",
    "part": "The marked region shows {finding}.",
    "count": "The marked region shows {answer} {finding}.",
}
AFTER_NONE = "The marked region shows no {finding}."
AFTER_OTHERS = "The marked region shows {others}, not {finding}."
AFTER_NOTHING = "I looked at all of the image; it does not show {finding}."


@dataclass(frozen=True)
class TemplateWriter:
    """A writer that uses templates. `classes` are all classes of the data set."""

    classes: Sequence[str]
    seed: int

    def question(self, candidate: Candidate) -> Draft:
        """Draws the template, the order of the options and, for kind "finding", up to three other classes as distractors."""
        random = seeded(self.seed, f"{candidate.key}:words")
        size = candidate.detection.size
        if candidate.kind == "finding":
            others = [name for name in self.classes if not candidate.holds(name) and name != candidate.finding]
            if not others:
                raise Rejected("no other class")
            answer, options = candidate.finding, random.sample(others, min(DISTRACTORS, len(others)))
            options.append(answer)
        elif candidate.kind == "presence":
            answer, options = YES_NO[not candidate.boxes], [*YES_NO]
        elif candidate.kind in PARTS:
            answer, options = candidate.answer, [*(YES_NO if candidate.kind == "part" else COUNTS)]
            if answer not in options:
                raise Rejected("more to count than the options allow" if answer else "no option fits")
        else:
            x, y = centre(candidate.boxes[0])
            side = SIDES[x > size[0] / 2]
            answer = side if candidate.kind == "side" else f"{'lower' if y > size[1] / 2 else 'upper'} {side}"
            options = [*(SIDES if candidate.kind == "side" else QUADRANTS)]
        random.shuffle(options)
        question = _fill(random.choice(QUESTIONS[candidate.kind]), candidate)
        return Draft(question, tuple(options), ascii_uppercase[options.index(answer)])

    def verify(self, candidate: Candidate, draft: Draft) -> None:
        """Checks that, according to the boxes, the answer is the only correct option."""
        right = [option for option in draft.options if candidate.holds(option)]
        if right != [draft.answer_text]:
            raise Rejected("several options fit" if len(right) > 1 else "another option fits" if right else "no option fits")

    def thoughts(self, candidate: Candidate, draft: Draft) -> tuple[str, str]:
        after = AFTER[candidate.kind]
        others = ", ".join(candidate.detection.boxes)
        if not candidate.boxes:
            after = AFTER_OTHERS if others else AFTER_NOTHING
        if candidate.kind in PARTS and draft.answer_text in ("No", "0"):
            after = AFTER_NONE
        return _fill(BEFORE[candidate.kind], candidate), _fill(after, candidate, answer=draft.answer_text, others=others)


def _fill(template: str, candidate: Candidate, **further: str) -> str:
    x, y = candidate.point
    return template.format(finding=candidate.finding, where=candidate.where, x=x, y=y, **further)
