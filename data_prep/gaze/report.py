"""Reports of a run: counts of searches, and a page of some of them that opens from disk."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image, ImageDraw

from data_prep.curation.marked import marked
from vitar_jax.data.traces import Trace
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.tools import OUTLINE
from vitar_jax.episodes.trajectory import GOLD_IMAGE
from vitar_jax.learning.gaze_reward import diversity

SHOWN_PIXELS = 480  # longer side of the images on the page
SHOWN_QUESTIONS, SHOWN_SEARCHES = 8, 3  # questions on the page, and different searches of each


@dataclass
class Report:
    """Counts over the searches of all questions, and what the page shows of the first ones.

    Attributes:
      skipped: Number of questions without searches, by reason.
      failed: Number of questions that the next run tries again, by kind of EndpointError.
    """

    directory: Path
    skipped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    questions: int = 0
    searches: int = 0
    right: int = 0
    equal_worth: int = 0
    different: Counter[int] = field(default_factory=Counter)
    questions_by_right: Counter[int] = field(default_factory=Counter)
    looks: Counter[int] = field(default_factory=Counter)
    steps: Counter[int] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    cards: list[dict[str, Any]] = field(default_factory=list)

    def add(self, sample: Sample, image: Image.Image, traces: Sequence[Trace]) -> None:
        """Counts a question's searches. Writes the pictures of the first questions' searches."""
        unlike = list({(trace.steps, trace.answer): trace for trace in traces}.values())
        if self.questions < SHOWN_QUESTIONS:
            self.cards += [self._card(sample, image, trace) for trace in unlike[:SHOWN_SEARCHES]]
        self.questions += 1
        self.searches += len(traces)
        self.right += sum(trace.right for trace in traces)
        self.equal_worth += len({worth(trace) for trace in traces}) == 1
        self.different[len(unlike)] += 1
        self.questions_by_right[sum(trace.right for trace in traces)] += 1
        self.looks.update(len(trace.looks) for trace in traces)
        self.steps.update(len(trace.steps) for trace in traces)
        self.ends.update(trace.end for trace in traces)

    def counts(self) -> dict[str, Any]:
        """Returns the report. Shares are of the searches, `by_` counts questions."""
        different = sum(number * count for number, count in self.different.items())
        return {
            "questions": self.questions,
            "skipped": dict(sorted(self.skipped.items())),
            "failed": dict(sorted(self.failed.items())),
            "searches": self.searches,
            "different_searches": different,
            "share_right": self.right / max(1, self.searches),
            "by_different_searches": _sorted(self.different),
            "by_right_searches": _sorted(self.questions_by_right),
            "questions_of_equal_worth": self.equal_worth,
            "looks": _sorted(self.looks),
            "steps": _sorted(self.steps),
            "ends": dict(sorted(self.ends.items())),
        }

    def write_sheet(self) -> Path:
        """Writes a page of the first questions' searches. Returns its index.html."""
        self.directory.mkdir(parents=True, exist_ok=True)
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string((files("data_prep.gaze") / "sheet.html.j2").read_text("utf-8"))
        page = self.directory / "index.html"
        page.write_text(template.render(cards=self.cards), "utf-8")
        return page

    def _card(self, sample: Sample, image: Image.Image, trace: Trace) -> dict[str, Any]:
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"{len(self.cards)}-{trace.search}.jpg"
        picture = numbered(image, [step.box for step in trace.looks if step.box])
        picture.save(self.directory / name, quality=90)
        return {"sample": sample, "trace": trace, "image": name, "size": picture.size}


def _sorted(counted: Counter[int]) -> dict[str, int]:
    return {str(number): count for number, count in sorted(counted.items())}


def worth(trace: Trace) -> tuple[bool, bool, float]:
    """Returns the parts of the reward `medeyes` of a search: right answer, at least one look, share of different looks.

    Searches of equal parts have equal rewards.
    """
    places = [(GOLD_IMAGE, step.box) for step in trace.looks if step.box]
    return trace.right, bool(places), diversity(places)


def numbered(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Returns the image with its boxes outlined and numbered, its longer side at most `SHOWN_PIXELS` pixels."""
    picture = marked(image, boxes, SHOWN_PIXELS)
    draw = ImageDraw.Draw(picture)
    scale = picture.width / image.width
    for number, box in enumerate(boxes, start=1):
        draw.text((box.x1 * scale + 4, box.y1 * scale + 2), str(number), fill=OUTLINE, font_size=18)
    return picture


def table(counted: dict[str, Any]) -> str:
    """Formats the counts for printing."""
    lines = []
    for name, value in counted.items():
        if isinstance(value, dict):
            lines.append(f"{name}: " + (", ".join(f"{key}: {number:,}" for key, number in value.items()) or "none"))
        else:
            lines.append(f"{name}: {value:.1%}" if isinstance(value, float) else f"{name}: {value:,}")
    return "\n".join(lines)
