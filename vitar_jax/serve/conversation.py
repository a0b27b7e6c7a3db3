"""Begins the episodes of a request: opens its images and renders its messages."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample, letters
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import ConfigError, ImageError, TooLongError
from vitar_jax.processing.chat import Message, TurnTokens
from vitar_jax.processing.files import open_image
from vitar_jax.processing.processor import Processor
from vitar_jax.processing.sources import split_frame
from vitar_jax.rollout.player import Player
from vitar_jax.serve.requests import ChatMessage, ChatRequest, Picture, RequestError

_CHARACTERS_PER_TOKEN = 64  # more than tokens of text have


@dataclasses.dataclass(frozen=True)
class Conversation(Protocol):
    """The protocol of a single reply to given messages, to which it adds nothing: the whole turn is the answer."""

    messages: tuple[ChatMessage, ...] = ()

    def opening(self, sample: Sample, images: Sequence[int]) -> list[Message]:
        counts = iter(images)
        return [
            (message.role, [next(counts) if isinstance(part, Picture) else part for part in message.parts])
            for message in self.messages
        ]


@dataclasses.dataclass(frozen=True)
class Beginner:
    """Begins episodes for requests.

    Attributes:
      files: Folder whose files a request may name. None means no file.
      image_pixels: Maximum size of an image before it is resized (pixels).
    """

    player: Player
    files: Path | None
    image_pixels: int

    def begin(self, request: ChatRequest) -> list[Episode]:
        """Returns an episode for each reply.

        Raises:
          RequestError: If an image cannot be read, the prompt is too long, or the protocol is unknown.
        """
        limits = self.player.engine.limits
        protocol = self._protocol(request)
        texts = [part for message in request.messages for part in message.parts if isinstance(part, str)]
        if sum(map(len, texts)) > _CHARACTERS_PER_TOKEN * limits.tokens:  # encoding it would take long
            raise _too_long(f"got a prompt of {sum(map(len, texts))} characters, expected fewer than {limits.tokens} tokens")
        self._check_turns(request)
        images = tuple(self._open(picture) for picture in request.pictures)
        question = "\n".join(part for part in request.messages[-1].parts if isinstance(part, str))
        sample = Sample(request.sample_id, question, images, "", letters(request.options, "options"))
        if request.max_tokens is not None:
            limits = dataclasses.replace(limits, turn_tokens=request.max_tokens)
        sampling = Sampling(request.temperature, request.top_p, request.seed)
        try:
            first = Episode(sample, protocol, self._processor(request), limits, sampling)
        except TooLongError as error:
            raise _too_long(str(error)) from error
        except ImageError as error:
            raise RequestError(400, str(error), param="messages", code="invalid_image") from error
        return [first, *(first.fork(member) for member in range(1, request.n))]

    def _check_turns(self, request: ChatRequest) -> None:
        """Checks that turns given by their tokens have only tokens that a turn may have."""
        chat = self.player.processor.chat
        for number, message in enumerate(request.messages):
            for part in message.parts:
                if not isinstance(part, TurnTokens):
                    continue
                if not np.isin(part.token_ids, chat.token_ids).all() or not chat.banned_ids.isdisjoint(part.token_ids):
                    place = f"messages[{number}].token_ids"
                    raise RequestError(400, f"{place}: got a token that no turn may have", param=place)

    def _protocol(self, request: ChatRequest) -> Protocol:
        if not request.protocol:
            return Conversation("chat", system="", parser="plain", too_long_ends=True, messages=request.messages)
        if request.protocol not in self.player.protocols:
            known = ", ".join(self.player.protocols)
            raise RequestError(400, f"protocol: got {request.protocol!r}, expected one of {known}", param="protocol")
        return self.player.protocols[request.protocol]

    def _processor(self, request: ChatRequest) -> Processor:
        """Returns the player's processor, with the request's pixel budget."""
        processor = self.player.processor
        given = {"min_pixels": request.min_pixels, "max_pixels": request.max_pixels}
        changes = {name: value for name, value in given.items() if value is not None}
        if not changes:
            return processor
        try:
            return dataclasses.replace(processor, images=dataclasses.replace(processor.images, **changes))
        except ConfigError as error:
            raise RequestError(400, str(error), param=next(iter(changes))) from error

    def _open(self, picture: Picture) -> Image.Image:
        """Opens an image that a message holds, or a file below `files`. Fetches nothing."""
        inline = picture.url[:5].lower() == "data:"
        source, name = (picture.url, picture.place) if inline else (self._file(picture), picture.url)
        try:
            return open_image(source, name=name, max_pixels=self.image_pixels, single=True)
        except ImageError as error:
            raise RequestError(400, str(error), param=picture.place, code="invalid_image") from error

    def _file(self, picture: Picture) -> Path:
        try:
            url = urlsplit(picture.url)
            path = unquote(url.path) if url.scheme == "file" else split_frame(picture.url)[0]
            if self.files is not None and url.scheme in ("", "file"):
                found = (self.files / path).resolve()
                if found.is_relative_to(self.files.resolve()) and found.is_file():
                    return found
        except (OSError, RuntimeError, ValueError):  # no path, or one that cannot be resolved
            pass
        where = f" or a file in {self.files}" if self.files else ""
        raise RequestError(
            400,
            f"{picture.place}: expected a data URL{where}; the server fetches no URL",
            param=picture.place,
            code="invalid_image",
        )


def _too_long(why: str) -> RequestError:
    return RequestError(400, why, param="messages", code="context_length_exceeded")
