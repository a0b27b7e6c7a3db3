"""An episode shows itself in a notebook: every image, box, turn and answer, and nothing that its texts could inject."""

import base64
import dataclasses
import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit.episodes import ANSWER, LIMITS, PROCESSOR, SMALL, VITAR, WIDE, episode, sample, say, zoom
from tests.kit.images import noise
from tests.kit.text import HOSTILE, SHOWN
from tests.kit.trajectories import ellipse
from tests.kit.vrt import VRT, chat
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.mask_drawing import COLOURS
from vitar_jax.episodes.parsers import write_turn


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shown(attributes: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(attributes["href"].removeprefix("data:image/png;base64,"))))


def test_a_finished_episode_shows_images_boxes_turns_and_answer() -> None:
    played = episode(WIDE, SMALL)
    say(played, zoom(28, 14, 84, 70))
    say(played, zoom(0, 0, 5000, 9))
    say(played, ANSWER)
    page = Page(played._repr_html_())
    first, second, zoomed = page.all("image")
    assert shown(first).tobytes() == WIDE.tobytes() and shown(second).tobytes() == SMALL.tobytes()
    assert shown(zoomed).size == played.images[2].pixels.size
    (box,) = page.all("rect")
    x1, y1, x2, y2 = played.turns[0].boxes_original[0]
    assert [float(box[key]) for key in ("x", "y", "width", "height")] == [x1, y1, x2 - x1, y2 - y1]
    assert "Which texture is it?" in page.text and "image 2, made in turn 1" in page.text and "This is it." in page.text
    assert played.turns[1].error is not None and f"tool error: {played.turns[1].error[1]}" in page.text
    assert len(page.all("li")) == 3 and page.text.split()[-1] == "A"


def test_a_large_image_is_made_smaller_and_its_boxes_keep_their_place() -> None:
    played = episode(noise(900, 300, seed=3))
    say(played, zoom(28, 14, 84, 70))
    page = Page(played._repr_html_())
    assert shown(page.all("image")[0]).size == (384, 128) and page.all("svg")[0]["viewbox"] == "0 0 900 300"
    assert "no answer (unfinished)" in page.text


def test_texts_are_shown_and_never_run() -> None:
    hostile = HOSTILE.replace("\ud800", "")
    asked = dataclasses.replace(sample(WIDE), question=hostile, options=(("A", hostile),))
    played = Episode(asked, VITAR, PROCESSOR, LIMITS)
    say(played, write_turn(hostile, hostile, box=[]))
    say(played, hostile)
    say(played, write_turn(hostile, "Terminate", answer=hostile))
    page = Page(played._repr_html_())
    assert {tag for tag, _ in page.tags} <= {"div", "p", "b", "br", "figure", "svg", "image", "figcaption", "ol", "li", "code"}
    assert page.text.count(SHOWN.replace("\ufffd", "")) >= 5 and "http" not in str(page.tags)


def test_masks_are_outlined_on_the_first_image_and_named() -> None:
    processor = dataclasses.replace(PROCESSOR, chat=chat())
    played = Episode(sample(noise(600, 300, seed=3)), VRT, processor, LIMITS)
    masks = ellipse(200, 150, 100, 50, (600, 300)), ellipse(-90, 0, 9, 9, (600, 300))
    text = "<think>A <obj1> [SEG], <obj2> [SEG].</think><answer>B <obj1> [SEG]</answer>"
    played.add_turn(chat().turn(text, VRT.allowed_tokens), None, masks=[(mask, 0.5) for mask in masks])
    page = Page(played._repr_html_())
    plain, masked = map(shown, page.all("image"))
    assert plain.size == masked.size == (384, 192)
    changed = (np.asarray(masked) != np.asarray(plain.convert("RGB"))).any(axis=2)
    y, x = np.nonzero(changed)
    # The mask reaches from (100, 100) to (300, 200) on the image, of which the page shows 64 %.
    assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == pytest.approx([64, 64, 192, 128], abs=1.5)
    assert masked.getpixel((65, 96)) == COLOURS[0]
    words = " ".join(page.text.split())
    area = round(masks[0].area)
    assert f"masks of turn 1 ■ obj1, reasoning, {area} px ■ obj2, reasoning, no pixel ■ obj1, answer, no mask" in words
    assert [span["style"] for span in page.all("span")] == [f"color: #{bytes(COLOURS[n]).hex()}" for n in (0, 1, 0)]
