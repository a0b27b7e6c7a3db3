"""Episodes that a test plays turn by turn, and the invariants of every episode."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError

PROCESSOR = tiny.processor(4, 12)
CHAT = PROCESSOR.chat
LIMITS = Limits(tokens=1000, turn_tokens=200, images=4)
VITAR = dataclasses.replace(PROTOCOLS["vitar"], system="Look twice.", tools=("mark", "zoom", "window"), max_turns=3)
WIDE = noise(300, 200, seed=1)  # the model sees it at a smaller size
SMALL = noise(60, 50, seed=2)


def sample(*images: Image.Image) -> Sample:
    return Sample("sample-1", "Which texture is it?", images, "A", options=(("A", "flat"), ("B", "rows")))


def episode(*images: Image.Image, limits: Limits = LIMITS) -> Episode:
    return Episode(sample(*(images or (WIDE,))), VITAR, PROCESSOR, limits)


def say(played: Episode, text: str, *, stop: bool = True, sampled: bool = True) -> None:
    token_ids = [*CHAT.text(text), *([CHAT.im_end] if stop else [])]
    played.add_turn(token_ids, [-0.5] * len(token_ids) if sampled else None)


def zoom(*box: float, image: int = 0) -> str:
    return write_turn("spot", "zoom", box=[list(box)], image=image)


ANSWER = write_turn("This is it.", "Terminate", answer="A")


def check(played: Episode) -> None:
    """Asserts the invariants of an episode's record, which hold at any time, also if no example can be made of it."""
    token_ids, positions = np.array(played.token_ids), np.concatenate(played.position_ids, axis=1)
    vision_index = np.array(played.vision_index)
    length = len(played.token_ids)
    assert len(played.loss_mask) == len(played.logprobs) == len(played.vision_index) == length
    assert positions.shape == (3, length)
    assert length <= played.limits.tokens and len(played.images) <= played.limits.images
    assert len(played.patches) == len(played.images)

    written = np.zeros(length, bool)
    for turn in played.turns:
        assert turn.start < turn.end
        written[turn.start : turn.end] = True
    assert np.array_equal(np.array(played.loss_mask, bool), written)
    if CHAT.banned_ids & set(token_ids[written].tolist()) or token_ids.max() >= CHAT.vocab_size:
        with pytest.raises(DataError, match="sample sample-1: got token .* under the loss mask"):
            played.example()
    else:
        assert np.array_equal(played.example().loss_mask, written)
    assert [logprob is not None for logprob in played.logprobs] == written.tolist()

    # Only the image tokens that we inserted have features, one each and in order, whatever the policy wrote.
    is_image = ~written & (token_ids == CHAT.image_pad)
    grids = [image.grid_thw for image in played.images]
    features = sum(map(PROCESSOR.tokens, grids))
    assert vision_index[is_image].tolist() == list(range(features))
    assert (vision_index[~is_image] == -1).all()
    assert sum(map(len, played.patches)) == 4 * features
    assert np.array_equal(positions, PROCESSOR.append_positions(0, np.where(written, 0, token_ids), grids)[0])
    for image, patches in zip(played.images, played.patches, strict=True):
        assert np.array_equal(PROCESSOR.process(image.pixels).patches, patches)
        assert PROCESSOR.process(image.pixels).size == image.size
