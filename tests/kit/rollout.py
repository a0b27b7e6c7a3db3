"""A small engine, and samples and episodes for it to play."""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import jax
import numpy as np

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.models.logprobs import token_logprobs
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.packing import Batch, BatchShape, pack
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.scheduler import Scheduler
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

PROCESSOR = tiny.processor(4, 12)
LIMITS = Limits(tokens=256, turn_tokens=12, images=4)
DRAWN = Sampling(seed=1)
SIZES = RolloutConfig(slots=4, prefill_lengths=(32, 96), chunk=5, encode_batch=3)


class Blind(Protocol):
    """A protocol that reads a look, an error or an answer from any text, because a random model writes no JSON."""

    def read(self, text: str) -> ParsedTurn:
        chance = zlib.crc32(text.encode())
        if chance % 8 == 0:
            return ParsedTurn(None, None, Answer(text or "nothing"))
        if chance % 8 == 1:
            return ParsedTurn(None, None, ActionError("bad_json", "The turn is not one JSON object."))
        left, upper = 4 * (chance // 8 % 8), 4 * (chance // 64 % 8)
        right, lower = left + 28 + 8 * (chance // 512 % 5), upper + 28 + 8 * (chance // 4096 % 5)
        box = (float(left), float(upper), float(right), float(lower))
        return ParsedTurn(None, {"name": "zoom"}, ToolCall("mark" if chance % 8 == 2 else "zoom", (box,)))


BLIND = Blind(
    name="blind",
    system="Look twice.",
    tools=("mark", "zoom"),
    max_turns=3,
    observation="region",
    error="Error: {message}",
)


@cache
def banned() -> np.ndarray:
    """Returns the mask of banned ids. The few others include the end-of-turn token, so random turns end."""
    markup = PROCESSOR.chat
    kept = [*markup.text("upper left zoom Terminate A B { } [ ] 1 2 3"), markup.im_end]
    return ~np.isin(np.arange(tiny.VOCAB), kept)


@cache
def model() -> Qwen2_5_VL:
    return tiny.pretrained()[1]


@cache
def view() -> RolloutWeights:
    return rollout_weights(model())


@cache
def engine(slots: int = SIZES.slots) -> Engine:
    return Engine(dataclasses.replace(SIZES, slots=slots), PROCESSOR, LIMITS, banned())


def sample(index: int, images: int = 1, sides: tuple[int, int] = (40, 150)) -> Sample:
    rng = np.random.default_rng(index)
    pictures = tuple(noise(*rng.integers(*sides, 2), seed=index * 10 + i) for i in range(images))
    question = " ".join(rng.choice(["Which", "texture", "is", "the", "lesion", "left", "7"], rng.integers(1, 9)))
    return Sample(sample_id=f"sample-{index}", question=question, images=pictures, answer="A")


def episodes(
    count: int, protocol: Protocol = BLIND, limits: Limits = LIMITS, processor: Processor = PROCESSOR
) -> list[Episode]:
    return [Episode(sample(index), protocol, processor, limits) for index in range(count)]


def run(engine: Engine, view: RolloutWeights, played: list[Episode], sampling: Sampling = DRAWN, group_size: int = 1) -> None:
    for episode in played:
        episode.sampling = sampling
    ended = list(Scheduler(engine, view).play(played[i : i + group_size] for i in range(0, len(played), group_size)))
    assert sorted(map(id, ended)) == sorted(map(id, played))


def forked(count: int, group_size: int) -> list[Episode]:
    return [episode.fork(member) for episode in episodes(count) for member in range(group_size)]


@jax.jit
def score(model: VisionLanguageModel, batch: Batch, temperature: jax.Array) -> jax.Array:
    logprobs, _ = token_logprobs(
        model(**batch.inputs),
        model.head(),
        batch.token_ids,
        batch.loss_mask,
        banned(),
        temperature=temperature,
    )
    return logprobs


def teacher_forced_difference(
    played: Sequence[Episode], model: VisionLanguageModel, using: Processor, temperature: float = 1.0
) -> np.ndarray:
    """Returns the largest difference between recorded and teacher-forced log-probabilities, for each episode."""
    shape = BatchShape(1, 4, 2 * LIMITS.tokens, 16, using.size_classes[-1], 4 * LIMITS.tokens)
    recorded = [np.array([np.nan if p is None else p for p in e.logprobs], np.float32) for e in played]
    batch = pack([e.example(logprobs=r) for e, r in zip(played, recorded, strict=True)], shape, using)
    ours = np.asarray(score(model, batch, np.float32(temperature)))
    differences = np.where(batch.loss_mask, np.abs(ours - batch.extras["logprobs"]), 0)
    assert not np.isnan(differences).any()  # every token that counts was recorded
    worst = []
    for e in played:
        row, start = next(
            (row, start)
            for row in range(4)
            for start in range(2 * LIMITS.tokens)
            if np.array_equal(batch.token_ids[0, row, start : start + len(e.token_ids)], e.token_ids)
        )
        worst.append(differences[0, row, start : start + len(e.token_ids)].max())
    return np.array(worst)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects an entry for every program that a back end compiles."""
    events: list[str] = []

    def listen(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(str(details.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_nothing_compiles(engine: Engine, weights: RolloutWeights, protocol: Protocol = BLIND) -> list[Episode]:
    """Asserts that episodes with images of unseen sizes compile no program after the engine's warm-up.

    Returns:
      These episodes.
    """
    jax.clear_caches()  # whatever other tests have compiled
    processor = engine.processor
    with compilations() as events:
        Scheduler(engine, weights).warm_up((4, 1))
    assert len(events) >= 6
    played = []
    with compilations() as events:
        for seed in range(3):
            samples = [sample(100 * seed + index, images=1 + index % 2, sides=(20, 200)) for index in range(18)]
            stream = [Episode(s, protocol, processor, LIMITS) for s in samples]
            run(engine, weights, stream, Sampling(temperature=0.5 * seed, top_p=1 - 0.3 * seed, seed=seed))
            played += stream
        fresh = [Episode(sample(900 + i), protocol, processor, LIMITS).fork(m) for i in range(3) for m in range(4)]
        run(engine, weights, fresh, group_size=4)
    assert events == []
    assert {processor.size_class(image.grid_thw) for e in stream for image in e.images} == {*processor.size_classes}
    return [*played, *fresh]
