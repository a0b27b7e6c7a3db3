"""Complete episodes of at most two turns, made from the texts of their turns."""

import dataclasses

from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory

PROCESSOR = tiny.processor(4, 12)
VITAR = dataclasses.replace(PROTOCOLS["vitar"], system="Look twice.", tools=("mark", "zoom"))
IMAGE = noise(112, 84)  # the model sees it at its original size
BOX = write_turn("spot", "zoom", box=[[28, 14, 84, 70]])
OTHER_BOX = write_turn("spot", "mark", box=[[0, 0, 40, 40]])
OUTSIDE = write_turn("spot", "zoom", box=[[28, 14, 84, 900]])
RIGHT = write_turn("This is it.", "Terminate", answer="B")
WRONG = write_turn("This is it.", "Terminate", answer="A")
UNREADABLE = write_turn("This is it.", "Terminate", answer=None)
GARBAGE = "upper left"


def play(
    *turns: str,
    answer: str = "B",
    boxes: tuple[Box, ...] = (),
    images: tuple[Image.Image, ...] = (IMAGE,),
    answers: tuple[str, ...] = (),
) -> Trajectory:
    sample = Sample("sample-1", "Which texture is it?", images, answer, (("A", "flat"), ("B", "rows")), boxes, answers=answers)
    episode = Episode(sample, VITAR, PROCESSOR, Limits(tokens=1000, turn_tokens=200))
    for text in turns:
        assert not episode.finished
        token_ids = [*PROCESSOR.chat.text(text), PROCESSOR.chat.im_end]
        episode.add_turn(token_ids, [-0.5] * len(token_ids))
    assert episode.finished
    return episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="")
