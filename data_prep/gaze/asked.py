"""The expert `endpoint`: any server that speaks chat completions and replies in JSON.

A server need not be a language model. `SCAN` and `DRILL` begin the text of their requests, so that a server can tell the three
questions apart; all others are questions about the image. Boxes are in pixels of the first image of the request, whose size
the text states. A drill also sends the region, enlarged.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from PIL import Image

from data_prep.curation.marked import marked
from data_prep.gaze.regions import Expert, Finding, ScoredBox
from data_prep.reading.pixels import only_pixels
from data_prep.reading.replies import reply_object, reply_text
from vitar_jax.episodes.regions import Box, Size, inside
from vitar_jax.errors import EndpointError
from vitar_jax.runtime.endpoint import ChatClient, data_url, message

T = TypeVar("T")

SENT_PIXELS = 1024  # longer side of the images sent to the server
CROP_PIXELS = 512  # longer side of an enlarged region
REQUEST = {"temperature": 0.0, "max_tokens": 1024}

_TAG = re.compile(r"</?[A-Za-z]\w*>")

SYSTEM = "You are an expert for medical images. Reply with one JSON object and nothing else."
SCAN = "Please locate all abnormal regions"
DRILL = "Is any abnormality in this region?"
SIZE = "The image has {width} x {height} pixels. A box is [left, upper, right, lower] in pixels."
SCAN_TEXT = SCAN + """ in the image, at most {most}.
{size} A confidence from 0 to 1 says how sure you are that the region is abnormal. Reply:
{{"regions": [{{"box": [left, upper, right, lower], "confidence": 0.5}}]}}"""
DRILL_TEXT = DRILL + """
Region: {box}
{size} The second image shows the region, enlarged. The confidence from 0 to 1 says how sure you are that it is abnormal, the
finding is one sentence on what it shows. Reply:
{{"confidence": 0.5, "finding": "..."}}"""
ANSWER_TEXT = """{question}
{region}{size} Reply:
{{"answer": "the letter of an option if there are options, otherwise a few words"}}"""


@dataclass(frozen=True)
class AskedExpert(Expert):
    """An expert behind an endpoint.

    A reply that cannot be used raises EndpointError and is not kept: "bad_json" has no JSON object, "refusal" refuses,
    "bad_box" lacks a box or has one outside its image, "bad_number" lacks a confidence from 0 to 1, "bad_text" lacks a text.

    Attributes:
      client: Client of the endpoint. None offline, where all answers are kept ones.
      model, request: Model name and request fields, on which the answers depend.
      most: Maximum number of regions per scan (5 in the published code). A reply with more keeps the most confident ones.
      sent: Images as they are sent, by the id of the image. Encoding an image is most of a request's work, so each is encoded
        once. An expert keeps them, so make one expert per sample.
    """

    client: ChatClient | None
    model: str
    request: Mapping[str, Any]
    most: int = 5
    sent: dict[int, "Sent"] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def scope(self) -> str:
        return json.dumps([self.model, dict(self.request), self.most, SYSTEM, SCAN_TEXT, DRILL_TEXT, ANSWER_TEXT])

    def scan(self, image: Image.Image) -> list[ScoredBox]:
        sent = self._sent(image)
        text = SCAN_TEXT.format(most=self.most, size=sent.text)
        return self._ask(text, [sent.url], lambda said: self._regions(said, image, sent))

    def drill(self, image: Image.Image, region: Box) -> Finding:
        sent = self._sent(image)
        text = DRILL_TEXT.format(box=_box(region, image, sent), size=sent.text)
        return self._ask(text, [sent.url, _enlarged(image, region)], _finding)

    def answer(self, image: Image.Image, question: str, region: Box | None) -> str:
        sent = self._sent(image)
        shown = f"The second image shows the region {_box(region, image, sent)}, enlarged.\n" if region else ""
        text = ANSWER_TEXT.format(question=question, region=shown, size=sent.text)
        images = [sent.url, _enlarged(image, region)] if region else [sent.url]
        return self._ask(text, images, lambda said: _text(said.get("answer"), "answer"))

    def _ask(self, text: str, images: Sequence[Image.Image | str], read: Callable[[dict[str, Any]], T]) -> T:
        def made(reply: str) -> T:
            return read(reply_object(reply))

        assert self.client is not None
        return made(self.client.ask([message("system", SYSTEM), message("user", text, images)], made))

    def _sent(self, image: Image.Image) -> "Sent":
        if id(image) not in self.sent:
            self.sent[id(image)] = Sent.of(image)
        return self.sent[id(image)]

    def _regions(self, said: dict[str, Any], image: Image.Image, sent: "Sent") -> list[ScoredBox]:
        listed = said.get("regions")
        if not isinstance(listed, list):
            raise EndpointError("bad_box", f"regions: got {listed!r}, expected a list")
        found = [_scored(region, image, sent) for region in listed]
        return sorted(found, key=lambda region: -region.confidence)[: self.most]


@dataclass(frozen=True)
class Sent:
    """An image as it is sent: its width and height, at most `SENT_PIXELS`, and its data URL."""

    image: Image.Image  # the original, held so that no other image takes its id
    width: int
    height: int
    url: str

    @classmethod
    def of(cls, image: Image.Image) -> "Sent":
        shown = marked(image, (), SENT_PIXELS)
        return cls(image, *shown.size, data_url(shown))

    @property
    def size(self) -> Size:
        return self.width, self.height

    @property
    def text(self) -> str:
        return SIZE.format(width=self.width, height=self.height)


def _scored(region: Any, image: Image.Image, sent: Sent) -> ScoredBox:
    value = region.get("box") if isinstance(region, dict) else None
    try:
        x1, y1, x2, y2 = map(float, value or ())
        across, down = image.width / sent.width, image.height / sent.height
        seen = inside(Box(x1, y1, x2, y2, "original"), sent.size)
        box = Box(seen.x1 * across, seen.y1 * down, seen.x2 * across, seen.y2 * down, "original")
        box = inside(box, image.size)
    except (TypeError, ValueError, OverflowError) as error:
        raise EndpointError("bad_box", f"box: got {region!r}, expected [left, upper, right, lower] ({error})") from error
    return ScoredBox(box, _confidence(region.get("confidence")))


def _finding(said: dict[str, Any]) -> Finding:
    return Finding(_confidence(said.get("confidence")), _text(said.get("finding"), "finding"))


def _text(value: Any, what: str) -> str:
    """Returns a text without tags, which would be markup in the turns of some protocols."""
    return reply_text(_TAG.sub("", value) if isinstance(value, str) else value, what, "bad_text")


def _confidence(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise EndpointError("bad_number", f"confidence: got {value!r}, expected a number from 0 to 1")
    return float(value)


def _enlarged(image: Image.Image, region: Box) -> Image.Image:
    scale = CROP_PIXELS / max(region.width, region.height)
    size = max(1, round(region.width * scale)), max(1, round(region.height * scale))
    return only_pixels(image.convert("RGB")).resize(size, Image.Resampling.BICUBIC, box=region.xyxy)


def _box(region: Box, image: Image.Image, sent: Sent) -> list[int]:
    """Returns a region in pixels of the image that is sent."""
    across, down = sent.width / image.width, sent.height / image.height
    return [round(region.x1 * across), round(region.y1 * down), round(region.x2 * across), round(region.y2 * down)]
