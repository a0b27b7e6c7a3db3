"""Two streams without a model: samples, an expert's searches, and a player whose episodes are scripted."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.data.traces import Step, Trace
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.learning.experts import ExpertsConfig, ExpertStream
from vitar_jax.learning.grpo import GRPO, GRPOBatches
from vitar_jax.learning.replay import Replay
from vitar_jax.learning.rewards import RewardConfig, Rewards
from vitar_jax.processing.files import pixels_sha256
from vitar_jax.processing.packing import Batch, BatchShape
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.player import Player
from vitar_jax.rollout.stats import RolloutStats

PROCESSOR = tiny.processor(4, 12)
PROTOCOL = dataclasses.replace(
    PROTOCOLS["vitar"], system="Look.", tools=("Gaze",), max_turns=3, observation="Closer."
)
IMAGE = noise(112, 84)
GROUPS, MEMBERS, SEARCHES = 3, 2, 3
ADDRESS = f"{__name__}:searches"


def trace(sample_id: str, search: int, answer: str, *boxes: Box) -> Trace:
    """A search that scans, then drills into each box."""
    drills = [Step("drill", box, 0.1 * number, 0.1 * number + 0.1, f"Spot {number}.") for number, box in enumerate(boxes)]
    steps = (Step("scan", None, 0.0, 0.4, "I scan."), *drills)
    return Trace(sample_id, pixels_sha256(IMAGE), search, steps, "So it is.", answer, answer == "B", "confident")


def box(x: float, y: float = 0.0, side: float = 40.0) -> Box:
    return Box(x, y, x + side, y + side, frame="original")


def searches(sample: Sample) -> list[Trace]:
    """Five searches: right after two looks, wrong, right after one, the same as the first, wrong."""
    return [
        trace(sample.sample_id, 0, "B", box(4), box(30, 30)),
        trace(sample.sample_id, 1, "A", box(60)),
        trace(sample.sample_id, 2, "B", box(8, 20)),
        trace(sample.sample_id, 3, "B", box(4), box(30, 30)),
        trace(sample.sample_id, 4, "A", box(40, 40)),
    ]


class Samples:
    """Numbered samples without end. The last letter of an id tells a scripted player what to play."""

    def __init__(self, pattern: str, image: Image.Image):
        self.pattern, self.image = pattern, image

    def __getitem__(self, number: int) -> Sample:
        kind = self.pattern[number % len(self.pattern)]
        return Sample(f"{number}-{kind}", "Which?", (self.image,), "B", (("A", "flat"), ("B", "rows")))


class Scripted(Player):
    """A player whose episodes look once and answer. A sample's letter says how many of its group are right."""

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        chat = PROCESSOR.chat
        for episode in (episode for group in groups for episode in group):
            answer = "B" if episode.member < int(episode.sample.sample_id[-1]) else "A"
            for text in (write_turn("spot", "Gaze", box=[[2, 2, 60, 60]]), write_turn("So.", "Terminate", answer=answer)):
                token_ids = [*chat.text(text), chat.im_end]
                episode.add_turn(token_ids, [-0.5] * len(token_ids))
            assert episode.finished
            yield episode


LIMITS = Limits(tokens=500, turn_tokens=100)
FIRST: Any = SimpleNamespace(step=0, model=None)
COUNTED: dict[str, Any] = {"config": RolloutConfig(1, (1,)), "stats": RolloutStats()}  # of a stand-in for an engine


def make_batches(
    pattern: str,
    kept: list[Trajectory],
    limits: Limits = LIMITS,
    *,
    replay: Callable[[ExpertsConfig], Replay] | None = None,
    **knobs: Any,
) -> GRPOBatches:
    """Returns batches without a model. `replay` makes what replays earlier episodes."""
    engine: Any = SimpleNamespace(pool=ThreadPoolExecutor(2), processor=PROCESSOR, limits=limits, banned_sha256="", **COUNTED)
    objective = GRPO(group_size=MEMBERS, **knobs)
    rows = GROUPS * objective.rows_per_sample
    return GRPOBatches(
        samples=Samples(pattern, IMAGE),  # type: ignore[arg-type]
        groups=GROUPS,
        player=lambda model, sampling: Scripted(engine, PROTOCOL, lambda: None, sampling),  # type: ignore[arg-type]
        shape=BatchShape(1, rows, 500, 4 * rows, PROCESSOR.size_classes[-1], policy_tokens=4000),
        sampling=Sampling(),
        rewards=Rewards({"vitar": RewardConfig("vitar")}),
        objective=objective,
        keep=lambda step, trajectories: kept.extend(trajectories),
        experts=objective.experts and (replay(objective.experts) if replay else ExpertStream(objective.experts, 0)),
    )


def play(pattern: str, **knobs: Any) -> tuple[list[Trajectory], Batch, dict[str, float]]:
    """Plays one step. Returns what was kept, the batch and the scalars."""
    kept: list[Trajectory] = []
    batch, scalars = make_batches(pattern, kept, **knobs).next(FIRST)
    return kept, batch, scalars
