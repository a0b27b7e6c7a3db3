"""Encodes and decodes chat in Qwen's markup, with placeholder tokens for images and videos.

Markup tokens are inserted by id, never by parsing text. A question that contains `<|im_end|>` or `<tool_call>` therefore stays
text, whether or not the tokenizer marks the token as special. Only text of a protocol or of the model can contain added tokens:
those that the protocol allows.
"""

import copy
import dataclasses
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vitar_jax.errors import CheckpointError, ConfigError

# Files beside tokenizer.json that transformers reads with a tokenizer.
_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
_LONGEST_KEPT = 10_000  # characters


@dataclasses.dataclass(frozen=True)
class Video:
    """A video in a message: its number of tokens."""

    tokens: int


@dataclasses.dataclass(frozen=True)
class ProtocolText:
    """Text of a protocol or of the model, in which the spellings of `allowed` added tokens are encoded as these tokens."""

    text: str
    allowed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TurnTokens:
    """The tokens of a turn of the model, which are not encoded again. Its `<|im_end|>` may be left out."""

    token_ids: tuple[int, ...]


Content = str | ProtocolText | int | Video | TurnTokens  # an int is an image, as its number of tokens
Message = tuple[str, Sequence[Content]]  # role, contents


class Chat:
    """A tokenizer with Qwen's chat markup, read from `tokenizer.json` or `tokenizer.json.gz` in `directory`.

    Attributes:
      stop_ids: Tokens that end a turn, in addition to `<|im_end|>`.

    Raises:
      CheckpointError: If the tokenizer cannot be read or lacks one of Qwen's markup tokens.
    """

    def __init__(self, directory: str | Path):
        directory = Path(directory)
        try:
            plain, packed = directory / "tokenizer.json", directory / "tokenizer.json.gz"
            source = plain.read_text() if plain.exists() else gzip.decompress(packed.read_bytes()).decode()
            self._tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{directory}: cannot read tokenizer.json ({error})") from error
        self._source = source
        self._directory = directory
        # Read now, because the directory may be a temporary copy of a remote one.
        self._files = {name: (directory / name).read_bytes() for name in _FILES if (directory / name).exists()}
        # Without this, only the special ones of the added tokens would be encoded as text.
        self._tokenizer.add_special_tokens(list(self._tokenizer.get_added_tokens_decoder().values()))
        self._tokenizer.encode_special_tokens = True
        self._allowed: frozenset[int] = frozenset()
        self.stop_ids: tuple[int, ...] = ()
        self.im_start = self.token_id("<|im_start|>")
        self.im_end = self.token_id("<|im_end|>")
        self.vision_start = self.token_id("<|vision_start|>")
        self.vision_end = self.token_id("<|vision_end|>")
        self.image_pad = self.token_id("<|image_pad|>")
        self.video_pad = self.token_id("<|video_pad|>")
        self._short_text = lru_cache(maxsize=65_536)(self._text)

    def allowing(self, tokens: Iterable[str]) -> "Chat":
        """Returns a chat that does not ban these added tokens, by spelling.

        Raises:
          ConfigError: If the tokenizer has no such added token, or if the token is part of the chat's markup.
        """
        return self._changed(_allowed=self._allowed | {self._allowed_id(token) for token in tokens})

    def allows(self, tokens: Iterable[str]) -> bool:
        """Returns whether turns may contain all of these added tokens."""
        return all(self._free.get(token) in self._allowed for token in tokens)

    def stopping_at(self, token_ids: Iterable[int]) -> "Chat":
        """Returns a chat whose turns also end with these tokens, which are then not banned. Ignores ids without a token."""
        stops = [index for index in dict.fromkeys(token_ids) if index != self.im_end and index in self.token_ids]
        return self._changed(stop_ids=tuple(stops))

    def _changed(self, **attributes: Any) -> "Chat":
        other = copy.copy(self)
        vars(other).pop("banned_ids", None)
        vars(other).update(attributes)
        return other

    def _allowed_id(self, token: str) -> int:
        """Returns the id of an added token that a turn may contain."""
        if token not in self._free:
            raise ConfigError(
                f"allowed_tokens: {token!r} is not one of the tokenizer's added tokens that a turn may contain: "
                f"{', '.join(self._free) or 'none'}"
            )
        return self._free[token]

    @cached_property
    def _free(self) -> dict[str, int]:
        """Ids, by spelling, of the added tokens that are not markup."""
        markup = {self.im_start, self.im_end, self.vision_start, self.vision_end, self.image_pad, self.video_pad}
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if index not in markup}

    def token_id(self, token: str) -> int:
        """Returns the id of a token by its exact spelling."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(f"{self._directory}: the tokenizer has no token {token}")
        return found

    def text(self, text: str) -> tuple[int, ...]:
        """Encodes text. Keeps the tokens of short texts, which recur, and not of long ones, which would fill the memory."""
        return self._short_text(text) if len(text) <= _LONGEST_KEPT else self._text(text)

    def _text(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @cached_property
    def token_ids(self) -> np.ndarray:
        """All token ids in ascending order, int [n]. Tokenizers that others changed may have gaps."""
        return np.sort(np.fromiter(self._tokenizer.get_vocab(with_added_tokens=True).values(), np.int64))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id. The embedding of a model may have more rows."""
        return int(self.token_ids[-1]) + 1

    @property
    def added_ids(self) -> frozenset[int]:
        """Ids of the tokens that were added to the subword vocabulary: markup and control tokens."""
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def banned_ids(self) -> frozenset[int]:
        """Ids of the added tokens that no turn may contain: all except those that end a turn and the allowed ones."""
        return self.added_ids - self._allowed - {self.im_end, *self.stop_ids}

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token that `tokenizer_config.json` names."""
        try:
            pad = json.loads(self._files.get("tokenizer_config.json", b"{}")).get("pad_token")
        except (AttributeError, ValueError) as error:
            raise CheckpointError(f"{self._directory}/tokenizer_config.json: cannot be read ({error})") from error
        spelling = pad.get("content") if isinstance(pad, dict) else pad
        return self._tokenizer.token_to_id(spelling) if isinstance(spelling, str) else None

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes any token ids, including markup. Invalid UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Splits the decoded text by token. A character that spans several tokens belongs to the last of them."""
        pieces: list[str] = []
        pending: list[int] = []  # tokens that may be the first bytes of a character
        for token in token_ids:
            pending.append(token)
            text = self.decode(pending)
            unfinished = text.endswith("\ufffd") and len(pieces) + 1 < len(token_ids)
            pieces.append("" if unfinished else text)
            if not unfinished:
                pending = []
        return pieces

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        """Encodes messages. With `reply`, also opens the model's turn after them.

        ("user", [9, "What is it?"])  ->  <|im_start|>user\\n<|vision_start|>9 x <|image_pad|><|vision_end|>
                                          What is it?<|im_end|>\\n
        """
        token_ids: list[int] = []
        text = ""  # adjacent text is encoded together, as if the whole string were tokenized

        def flush() -> None:
            nonlocal text
            if text:
                token_ids.extend(self.text(text))
            text = ""

        for role, contents in messages:
            flush()
            token_ids.append(self.im_start)
            text = f"{role}\n"
            for part in chain.from_iterable(map(self._parts, contents)):
                if isinstance(part, str):
                    text += part
                else:
                    flush()
                    token_ids += part
            flush()
            token_ids.append(self.im_end)
            text = "\n"
        flush()
        if reply:
            token_ids += [self.im_start, *self.text("assistant\n")]
        return token_ids

    def turn(self, text: str, allowed: tuple[str, ...] = ()) -> list[int]:
        """Encodes a turn of the model: its text, with `allowed` added tokens, and `<|im_end|>`."""
        parts = (self.text(part) if isinstance(part, str) else part for part in self._parts(ProtocolText(text, allowed)))
        return [*chain.from_iterable(parts), self.im_end]

    def _parts(self, content: Content) -> Iterator[str | list[int]]:
        """Yields the parts of a content: texts to encode, and tokens."""
        if isinstance(content, str):
            yield content
        elif isinstance(content, ProtocolText):
            ids = {token: self._allowed_id(token) for token in content.allowed}
            longest_first = sorted(ids, key=len, reverse=True)
            spelt = "|".join(map(re.escape, longest_first)) or "(?!)"  # matches nothing
            for part in re.split(f"({spelt})", content.text):
                yield [ids[part]] if part in ids else part
        elif isinstance(content, TurnTokens):
            yield list(content.token_ids[:-1] if content.token_ids[-1:] == (self.im_end,) else content.token_ids)
        else:
            pads = [self.video_pad] * content.tokens if isinstance(content, Video) else [self.image_pad] * content
            yield [self.vision_start, *pads, self.vision_end]

    def follow_up(self, message: Message) -> list[int]:
        """Encodes a message that follows the model's turn (after its `<|im_end|>`), and opens the model's next turn."""
        return [*self.text("\n"), *self.render([message], reply=True)]

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes files that `transformers.AutoTokenizer` loads, with all of those that the tokenizer came with."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        default = {"tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}).encode()}
        for name, content in {**default, **self._files, "tokenizer.json": self._source.encode()}.items():
            (directory / name).write_bytes(content)
