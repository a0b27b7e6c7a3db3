"""An expert's searches of phantoms with several spots: traces by function, and the same as dialogues for SFT.

The expert is `annotations`. It looks at one spot after another, in an order that differs between its searches, until it finds
the one that shows the answer. Its words are those of `data_prep.phantom.search`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from data_prep.gaze.annotated import Annotated, Rates
from data_prep.gaze.navigator import Rules
from data_prep.gaze.sampler import Sampler
from data_prep.gaze.search import Settings
from data_prep.gaze.search import searches as search
from data_prep.gaze.words import Words
from data_prep.phantom.pictures import SIZE, Split
from data_prep.phantom.samples import square_inside
from data_prep.phantom.search import Searches
from data_prep.phantom.search import source as open_searches
from vitar_jax.data.traces import Trace
from vitar_jax.episodes.regions import Box, centre
from vitar_jax.episodes.sample import Sample

MISSES = 0.3
# The expert's boxes are the medium ones of the demonstrations, which show a spot and its surroundings. A close box would have
# to meet the spot to within 5 pixels of the model's view: trained on close boxes, the small model gazed twice and missed.
SIDE = Searches.sizes[1]

WORDS = Words(none="", one="", several="", again="", spot="spot {place} zoom medium", closer="closer", random="zoom", last="")
# The published nucleus would keep one of two regions, so that all searches of a sample would be one.
SETTINGS = Settings(rules=Rules(words=WORDS, sampler=Sampler(nucleus="top_p")))
PERFECT = Rates()


def searches(sample: Sample, rates: Rates = PERFECT, settings: Settings = SETTINGS) -> tuple[Trace, ...]:
    """Returns searches of a sample of `data_prep.phantom.search`: by default six, by an expert that makes no mistakes."""
    kinds, spot = sample.metadata["kinds"], sample.metadata["spot"]
    names = [kinds[spot], *(kind for n, kind in enumerate(kinds) if n != spot)]  # in the order of the expert's boxes
    shows = "shows {name}"
    around = _with_surroundings(sample)
    expert = Annotated(around, rates, names=names, shows=shows, shows_other=shows, shows_nothing="shows flat")
    return search(sample, expert, settings)


def _with_surroundings(sample: Sample) -> Sample:
    """Returns a sample whose boxes are squares of `SIDE` around its spots."""
    others = [Box(*box, frame="original") for box in sample.metadata["other_boxes"]]
    squares = [square_inside(*centre(box), SIDE, step=SIZE / Searches.view) for box in (*sample.boxes, *others)]
    count = len(sample.boxes)
    metadata = {**sample.metadata, "other_boxes": [square.xyxy for square in squares[count:]]}
    return replace(sample, boxes=tuple(squares[:count]), metadata=metadata)


def poor_searches(sample: Sample) -> tuple[Trace, ...]:
    """Returns searches by an expert whose scans miss `MISSES` of the spots. Without the right spot, it guesses."""
    return searches(sample, Rates(misses=MISSES))


@dataclass(frozen=True)
class Dialogues:
    """The searches of a source's samples, one demonstration per item: item i is search i % N of sample i // N."""

    samples: Searches
    each: int = SETTINGS.searches
    # Not in the repr, which grain checkpoints, so that older runs can still resume. A recipe with another rate is refused.
    rates: Rates = field(default=PERFECT, repr=False)

    def __len__(self) -> int:
        return len(self.samples) * self.each

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index // self.each]
        trace = searches(sample, self.rates)[index % self.each]
        return replace(sample, sample_id=f"{sample.sample_id}-{trace.search}", demonstration=trace.demonstration())


def dialogues(
    split: Split, *, task: Literal["search", "odd"] = "search", misses: float = 0.0, **options: Any
) -> Dialogues:
    """Opens dialogues for recipes, with an expert whose scans miss a share of the spots.

    Other options are those of `data_prep.phantom.search:source`.
    """
    return Dialogues(open_searches(split, task=task, **options), rates=Rates(misses=misses))
