"""The settings that playing a checkpoint needs besides its weights: protocols, limits and image shapes, in one JSON file."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.protocols import JSON_TURN, PROTOCOLS, Protocol, find_protocol
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.models.config import ModelConfig
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.positions import SizeClass
from vitar_jax.processing.processor import Processor
from vitar_jax.runtime.config import to_dataclass

FILE = "vitar_jax.json"


@dataclasses.dataclass(frozen=True)
class _Stored:
    default_protocol: str
    protocols: Mapping[str, Mapping[str, Any]]
    limits: Limits
    size_classes: tuple[tuple[int, int], ...]
    options_only: bool = False


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """The settings of a checkpoint.

    Attributes:
      protocols: The protocols saved with it, as data, because their parsers and tools may be in files that do not exist here.
      options_only: Whether all questions of its training had options. False also means unknown.
    """

    default_protocol: str
    protocols: Mapping[str, Mapping[str, Any]]
    limits: Limits
    processor: Processor
    options_only: bool = False

    def with_max_pixels(self, max_pixels: int) -> "InferenceSettings":
        """Returns the settings with a smaller pixel budget.

        Raises:
          ConfigError: If `max_pixels` exceeds the checkpoint's own, whose size classes hold no larger images, or is too small.
        """
        images = self.processor.images
        if not 0 < max_pixels <= images.max_pixels:
            raise ConfigError(f"max_pixels: got {max_pixels}, expected at most the checkpoint's own, {images.max_pixels}")
        smaller = dataclasses.replace(images, max_pixels=max_pixels)
        return dataclasses.replace(self, processor=dataclasses.replace(self.processor, images=smaller))

    def with_stop_tokens(self, tokens: Iterable[str]) -> "InferenceSettings":
        """Returns settings under which turns end with `<|im_end|>` and these tokens, instead of the checkpoint's eos tokens.

        Raises:
          ConfigError: If the tokenizer has no such token.
        """
        chat = self.processor.chat
        try:
            chat = chat.stopping_at([chat.token_id(token) for token in tokens])
        except CheckpointError as error:
            raise ConfigError(f"stop_tokens: {error}") from error
        return dataclasses.replace(self, processor=dataclasses.replace(self.processor, chat=chat))

    def protocol(self, name: str = "") -> Protocol:
        """Returns a protocol by name, or the one the checkpoint was trained with.

        Runs a Python file only if the caller names it, never because the checkpoint does.
        """
        stored = self.protocols.get(name or self.default_protocol)
        if name and (stored is None or ".py:" in name):
            return find_protocol(name, PROTOCOLS)
        if stored is None:
            raise CheckpointError(f"{FILE}: default_protocol: got {self.default_protocol!r}, expected one of its protocols")
        return to_dataclass(Protocol, stored, f"{FILE}: protocols.{name or self.default_protocol}")

    def limits_under(self, protocol: Protocol) -> Limits:
        """Returns the limits, with room for the images of a protocol that they were not chosen for."""
        if protocol.name == self.default_protocol:
            return self.limits
        return dataclasses.replace(self.limits, images=max(self.limits.images, 1 + protocol.most_images))

    def named_protocols(self) -> dict[str, Protocol]:
        """Returns the checkpoint's protocols and the registered ones, by name.

        Leaves out those whose parser or tools do not exist here, and those with added tokens that the processor bans.
        """
        found = {}
        for name in sorted({*PROTOCOLS, *self.protocols}):
            stored = self.protocols.get(name)
            try:
                protocol = PROTOCOLS[name] if stored is None else to_dataclass(Protocol, stored, f"{FILE}: protocols.{name}")
            except ConfigError:
                continue
            if self.processor.chat.allows(protocol.allowed_tokens):
                found[name] = protocol
        return found


def options_note(options_only: bool, options: Sequence[object]) -> str:
    """Returns why a checkpoint may not answer a question with these options well, or an empty string."""
    if options or not options_only:
        return ""
    return "this checkpoint was trained on questions with options alone, and this question has none"


def save_settings(
    directory: Path,
    processor: Processor,
    limits: Limits,
    protocols: Mapping[str, Protocol],
    default_protocol: str,
    *,
    options_only: bool = False,
) -> None:
    """Writes tokenizer, image settings and `vitar_jax.json` beside a checkpoint's weights.

    Leaves out protocols with added tokens that the processor bans.
    """
    processor.save_pretrained(directory)
    stored = {
        "default_protocol": default_protocol,
        "protocols": {
            name: protocol_data(protocol)
            for name, protocol in protocols.items()
            if processor.chat.allows(protocol.allowed_tokens)
        },
        "limits": dataclasses.asdict(limits),
        "size_classes": [[c.windows, c.window_patches] for c in processor.size_classes],
        "options_only": options_only,
    }
    (directory / FILE).write_text(json.dumps(stored, indent=2) + "\n")


def load_settings(directory: Path, config: ModelConfig) -> InferenceSettings:
    """Reads the settings. A checkpoint without them gets the `vitar` protocol and shapes for images of any size.

    Turns end with `<|im_end|>` and with the checkpoint's eos ids.

    Raises:
      CheckpointError: If the file, the tokenizer or the image settings cannot be read, or do not fit the model.
    """
    stored = _read(directory)
    if stored is None:
        shapes = config.layout.size_classes
        protocols = {name: protocol_data(protocol) for name, protocol in PROTOCOLS.items() if not protocol.allowed_tokens}
        stored = _Stored("vitar", protocols, Limits(tokens=16_384, turn_tokens=1024), shapes)
    chat = Chat(directory).stopping_at(config.generation.stop_ids)
    images = ImageProcessor.from_pretrained(directory)
    try:
        config.check_processor(chat, images)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    processor = Processor(
        chat=chat,
        images=images,
        size_classes=tuple(SizeClass(*size) for size in stored.size_classes),
        layout=config.layout,
    ).allowing(token for protocol in stored.protocols.values() for token in protocol.get("allowed_tokens", ()))
    return InferenceSettings(stored.default_protocol, stored.protocols, stored.limits, processor, stored.options_only)


def _read(directory: Path) -> _Stored | None:
    path = directory / FILE
    if not path.exists():
        return None
    try:
        return to_dataclass(_Stored, json.loads(path.read_text()), FILE)
    except (ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def trained_on_options_only(directory: Path) -> bool:
    """Returns whether all questions of a checkpoint's training had options. False also means unknown."""
    stored = _read(directory)
    return stored is not None and stored.options_only


def play_settings(
    weights: str, dtype: str, protocol: Protocol, limits: Limits, sampling: Sampling, changes: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Returns everything that determines how a checkpoint answers a sample, as JSON.

    Args:
      weights: Hash of the weights.
      changes: Further settings that differ from their defaults.
    """
    return {
        "weights": weights,
        "dtype": dtype,
        "protocol": protocol_data(protocol),
        "limits": dataclasses.asdict(limits),
        "sampling": dataclasses.asdict(sampling),
        **changes,
    }


def protocol_data(protocol: Protocol) -> dict[str, Any]:
    """Returns a protocol as JSON values, with the text of `{json_turn}`, so that later versions of it change no checkpoint.

    Leaves out `allowed_tokens` if the protocol allows none, so that settings equal those of versions without the key.
    """
    data = dataclasses.asdict(protocol) | {"system": protocol.system.replace("{json_turn}", JSON_TURN)}
    return {key: value for key, value in data.items() if value or key != "allowed_tokens"}
