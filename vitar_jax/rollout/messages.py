"""Renders episodes as chat messages, for models behind an endpoint."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trajectory import TrajectoryImage
from vitar_jax.processing.chat import Chat, Message, ProtocolText
from vitar_jax.processing.images import ImageProcessor, ProcessedImage
from vitar_jax.processing.positions import Grid, SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor
from vitar_jax.runtime.endpoint import data_url, image_part


class MessageChat(Chat):
    """A chat in which a whole message stands for a token, so that an episode can be played without a tokenizer.

    Attributes:
      messages: The message that each token stands for. Token 0 is the end of a turn.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = [("", [])]
        self.im_end, self.image_pad, self.stop_ids = 0, -1, ()

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        del reply  # an endpoint always replies
        self.messages += messages
        return list(range(len(self.messages) - len(messages), len(self.messages)))

    def follow_up(self, message: Message) -> list[int]:
        return self.render([message], reply=True)

    def turn(self, text: str, allowed: tuple[str, ...] = ()) -> list[int]:
        del allowed
        return [*self.render([("assistant", [text])], reply=False), self.im_end]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(_text(part) for token in token_ids for part in self.messages[token][1])

    def stopping_at(self, token_ids: Iterable[int]) -> Chat:
        del token_ids
        return self


@dataclasses.dataclass(frozen=True)
class MessageProcessor(Processor):
    """The processor of one episode of a model behind an endpoint. Images have no tokens; the model sees them as sent.

    Attributes:
      max_pixels: Maximum number of pixels of an image that is sent; larger ones are resized. 0 means unlimited.
    """

    chat: Chat = dataclasses.field(default_factory=MessageChat)
    images: ImageProcessor = dataclasses.field(default_factory=ImageProcessor)
    size_classes: tuple[SizeClass, ...] = ()
    layout: VisionLayout = dataclasses.field(default_factory=VisionLayout)
    max_pixels: int = 0

    def process(self, image: Image.Image) -> ProcessedImage:
        """Returns no patches, and the size at which the image is sent, which is that of frame "model_input"."""
        share = math.sqrt(min(1.0, self.max_pixels / (image.width * image.height))) if self.max_pixels else 1.0
        size = max(1, math.floor(image.height * share)), max(1, math.floor(image.width * share))
        return ProcessedImage(np.zeros((0, 0), np.float32), (0, 0, 0), size)

    def append_positions(
        self, next_position: int, token_ids: Any, grids: Sequence[Grid], seconds_per_grid: Sequence[float] = ()
    ) -> tuple[np.ndarray, int]:
        del grids, seconds_per_grid
        return np.zeros((3, len(token_ids)), np.int32), next_position


def chat_messages(episode: Episode) -> list[dict[str, Any]]:
    """Returns the conversation of an episode that has a `MessageProcessor`, in the form of chat completions.

    Images are data URLs in PNG, at the size of frame "model_input".
    """
    chat = episode.processor.chat
    assert isinstance(chat, MessageChat)
    images, found = map(_sent, episode.images), []
    for role, contents in (chat.messages[token] for token in episode.token_ids if token != chat.im_end):
        parts: list[dict[str, Any]] = []
        for content in contents:
            if isinstance(content, int):
                parts.append(image_part(next(images)))
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += _text(content)
            elif text := _text(content):
                parts.append({"type": "text", "text": text})
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        found.append({"role": role, "content": parts[0]["text"] if alone else parts or ""})
    return found


def _sent(image: TrajectoryImage) -> str:
    height, width = image.size
    return data_url(image.pixels if image.pixels.size == (width, height) else image.pixels.resize((width, height)))


def token_messages(episode: Episode) -> list[dict[str, Any]]:
    """Returns the conversation of an episode that has tokens, in the form of chat completions.

    A turn also has its `token_ids`, so that a server that knows this field does not encode its text again. Images have their
    original size, because the server resizes them.
    """
    found: list[dict[str, Any]] = []
    urls, place = (data_url(image.pixels) for image in episode.images), 0
    for turn in episode.turns:
        found += _split(episode.token_ids[place : turn.start], episode.processor.chat, urls)
        turn_ids, place = episode.token_ids[turn.start : turn.end], turn.end
        found.append({"role": "assistant", "content": turn.text, "token_ids": turn_ids})
    return found + list(_split(episode.token_ids[place:], episode.processor.chat, urls))


def _split(token_ids: Sequence[int], chat: Chat, urls: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yields the complete messages among tokens, each from its `<|im_start|>` to its `<|im_end|>`."""
    parts: list[dict[str, Any]] = []
    text: list[int] = []

    def flush() -> None:
        if text:
            parts.append({"type": "text", "text": chat.decode(text)})
            text.clear()

    for token in token_ids:
        if token == chat.im_start:
            parts, text = [], []
        elif token == chat.vision_start:
            flush()
            parts.append(image_part(next(urls)))
        elif token == chat.im_end and (parts or text):
            flush()
            role, _, parts[0]["text"] = parts[0]["text"].partition("\n")
            yield {"role": role, "content": [part for part in parts if part.get("text") != ""] or ""}
            parts = []
        elif token not in (chat.image_pad, chat.vision_end, chat.im_end):
            text.append(token)


def _text(content: Any) -> str:
    return content.text if isinstance(content, ProtocolText) else content if isinstance(content, str) else ""
