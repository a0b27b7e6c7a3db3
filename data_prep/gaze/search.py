"""Searches of a sample's first image by an expert: the navigator asks, and the answers become traces."""

from dataclasses import dataclass

from PIL import Image

from data_prep.gaze.answers import Answers, Asked
from data_prep.gaze.navigator import Rules, Scan, begin, step
from data_prep.gaze.regions import Expert
from data_prep.gaze.words import joined
from vitar_jax.data.options import Options
from vitar_jax.data.traces import Trace
from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image


@dataclass(frozen=True)
class Settings:
    """Settings of a sample's searches.

    Attributes:
      searches: Number of searches per sample (6 in the paper).
    """

    rules: Rules = Rules()
    searches: int = 6


def searches(
    sample: Sample,
    expert: Expert,
    settings: Settings = Settings(),
    seed: int = 0,
    *,
    answers: Answers | None = None,
    image: Image.Image | None = None,
) -> tuple[Trace, ...]:
    """Returns an expert's searches. They depend only on the arguments.

    Args:
      expert: Expert of this sample.
      answers: Kept answers. If None, each question is still asked only once per call.
      image: The sample's first image as `open_image` returns it. If None, it is opened.

    Raises:
      DataError: If the sample has no image, or an answer is invalid. The message names the sample.
      ImageError: If the image cannot be read or is too small for a look.
      EndpointError: If the expert is an endpoint that gives no usable reply.
    """
    where = f"sample {sample.sample_id}"
    if image is None:
        if not sample.images:
            raise DataError(f"{where}: no image to search")
        image = open_image(sample.images[0])
    asked = (answers or Answers()).of(expert, image, where)
    return tuple(_search(sample, asked, settings.rules, number, seed) for number in range(settings.searches))


def _search(sample: Sample, asked: Asked, rules: Rules, number: int, seed: int) -> Trace:
    try:
        state, question = begin(asked.image.size, f"{seed}:{sample.sample_id}:{number}", rules)
    except ValueError as error:
        raise ImageError(f"sample {sample.sample_id}: {error}") from error
    while question is not None:
        answer = asked.scan() if isinstance(question, Scan) else asked.drill(question.box)
        state, question = step(state, answer, rules)
    reply = asked.answer(question_text(sample), state.best and state.best.box)
    said = _letter(reply, sample)
    return Trace(
        sample_id=sample.sample_id,
        image_sha256=asked.sha256,
        search=number,
        steps=state.steps,
        thought=joined(state.said, rules.words.last),
        answer=said,
        right=exact_match(said, sample.answer, *sample.answers),
        end=state.end,
    )


def question_text(sample: Sample) -> str:
    """Returns a sample's question, followed by one line per option."""
    return "\n".join([sample.question, *(f"{letter} {text}" for letter, text in sample.options)])


def _letter(reply: str, sample: Sample) -> str:
    """Returns the letter of the option that a reply names, or the reply if it names none."""
    try:
        return Options(sample.options).letter(reply, "answer")
    except DataError:
        return reply.strip()
