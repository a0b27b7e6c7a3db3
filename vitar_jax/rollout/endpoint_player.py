"""The player of a model behind an endpoint: chat completions write the turns, and tools run locally.

The tokens of the model are unknown, so the token lists of a record are empty, and its turns have only texts. With the model's
tokenizer, and a server that returns token ids and log-probabilities, records are those of the model's own player.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import jax

from vitar_jax.episodes.actions import ActionError
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS, Protocol, find_protocol
from vitar_jax.episodes.regions import Frame
from vitar_jax.episodes.sample import AnyImage, Sample, question_sample
from vitar_jax.episodes.trajectory import Sampling, Stream, Trajectory
from vitar_jax.episodes.trajectory_files import file_of
from vitar_jax.errors import ConfigError, EndpointError
from vitar_jax.processing.banned import banned_tokens, fingerprint
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.checkpoint import Checkpoint
from vitar_jax.rollout.checkpoint_settings import protocol_data
from vitar_jax.rollout.messages import MessageProcessor, chat_messages, token_messages
from vitar_jax.rollout.offline import Failure
from vitar_jax.runtime.endpoint import ChatClient, Completion, request_options
from vitar_jax.runtime.replies import without_reasoning

REQUEST = {"temperature": 0.0, "seed": 0, "max_tokens": 1024}
REPLIES = "replies.jsonl"
_WORKERS = 4  # threads that begin episodes
MAX_IMAGES = 64  # of an episode; the endpoint may have a lower limit of its own


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokenizer and limits of the model, with which an endpoint that returns token ids gives exact records."""

    processor: Processor
    limits: Limits
    banned_sha256: str


@dataclasses.dataclass(frozen=True)
class EndpointPlayer:
    """A player of samples under one protocol, with a model that an endpoint serves.

    Args:
      client: Client of the endpoint. Its cache keeps a restart from repeating a request.
      max_pixels: Maximum number of pixels of an image that is sent; larger ones are resized. 0 means unlimited.
      concurrency: Number of episodes played at a time.
      tokens: If given, records have tokens and log-probabilities, which the endpoint must return.
      pool: Threads that begin episodes.

    Raises:
      ConfigError: If the protocol makes masks, which no endpoint returns.
    """

    client: ChatClient
    protocol: Protocol
    max_pixels: int = 0
    concurrency: int = 8
    tokens: Tokens | None = None
    pool: Executor = dataclasses.field(default_factory=lambda: ThreadPoolExecutor(_WORKERS))

    @classmethod
    def open(
        cls,
        endpoint: str,
        model: str,
        directory: Path,
        *,
        protocol: str,
        frame: Frame | Literal[""] = "",
        sampling: Sampling = Sampling(temperature=0.0),
        request: str = "{}",
        key_variable: str = "",
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        max_pixels: int = 0,
        checkpoint: str = "",
    ) -> "EndpointPlayer":
        """Returns the player of a model. Sends no request yet.

        Args:
          endpoint: Base URL of the API, for example http://127.0.0.1:8000/v1.
          directory: Folder of the replies, which a restart reads. Each process has a file of its own.
          protocol: A registered protocol, `path/to/file.toml` or `path/to/file.py:name`, or one of the checkpoint's.
          frame: Frame in which the model writes boxes. If empty, the protocol's.
          request: JSON object of fields that are merged into every request.
          key_variable: Environment variable with the API key.
          checkpoint: Checkpoint of the model, for its tokenizer and settings. If empty, records have no tokens.

        Raises:
          ConfigError: If a value is invalid or missing.
          CheckpointError: If the checkpoint has no valid tokenizer or settings.
        """
        if not model or not (protocol or checkpoint):
            raise ConfigError(f"--endpoint={endpoint}: needs --model and --protocol")
        if checkpoint:
            opened = Checkpoint.open(checkpoint, max_pixels=max_pixels)
            rules = opened.settings.protocol(protocol)
            processor = opened.settings.processor.allowing(rules.allowed_tokens)
            banned = fingerprint(banned_tokens(processor.chat, opened.config.text.vocab_size))
            tokens = Tokens(processor, opened.settings.limits_under(rules), banned)
        else:
            rules, tokens = find_protocol(protocol, PROTOCOLS), None
        rules = dataclasses.replace(rules, frame=frame) if frame else rules
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        fields = request_options("--request", request, REQUEST | {k: v for k, v in drawn.items() if (k, v) != ("top_p", 1.0)})
        client = ChatClient(
            endpoint,
            model,
            directory / file_of(jax.process_index(), REPLIES),
            fields,
            key=os.environ.get(key_variable, ""),
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
        )
        return cls(client, rules, max_pixels, concurrency, tokens)

    def __post_init__(self) -> None:
        if self.protocol.makes_masks:
            raise ConfigError(f"protocol {self.protocol.name}: makes masks, which an endpoint does not return")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines how a sample is answered, as JSON. The endpoint's URL does not."""
        client = self.client
        settings = {"model": client.model, "protocol": protocol_data(self.protocol), "request": dict(client.options)}
        limits = {"limits": dataclasses.asdict(self.tokens.limits)} if self.tokens else {}
        return settings | limits | ({"max_pixels": self.max_pixels} if self.max_pixels else {})

    @property
    def workers(self) -> int:
        return _WORKERS

    @property
    def processor(self) -> Processor:
        return self.tokens.processor if self.tokens else MessageProcessor(max_pixels=self.max_pixels)

    def start(self) -> None:
        """Does nothing, because the server has loaded the weights."""

    def note(self, sample: Sample) -> str:
        """Returns an empty string, because nothing is known of the model's training."""
        del sample
        return ""

    def begin(self, sample: Sample, member: int = 0) -> Episode:
        """Begins the episode of a sample.

        Raises:
          ImageError: If an image cannot be read.
          TooLongError: If the prompt exceeds a limit.
        """
        limits = self.tokens.limits if self.tokens else Limits(tokens=2**31, turn_tokens=2**31, images=MAX_IMAGES)
        return Episode(sample, self.protocol, self.processor, limits, self._sampling, member)

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode | Failure]:
        """Plays episodes to their end, and yields each when it finishes, or the failure of the endpoint that ended it.

        Raises:
          ConfigError: If the endpoint rejects the key or does not know the model.
        """
        waiting = chain.from_iterable(groups)
        threads = ThreadPoolExecutor(self.concurrency)
        playing: set[Future[Episode | Failure]] = set()
        try:
            while True:
                room = islice(waiting, self.concurrency - len(playing))
                playing |= {threads.submit(self._finish_or_fail, episode) for episode in room}
                if not playing:
                    return
                done, playing = concurrent.futures.wait(playing, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def finish(self, episode: Episode) -> Episode:
        """Plays one episode to its end and returns it.

        Raises:
          EndpointError: If the endpoint gives no reply.
          ConfigError: If the endpoint rejects the key or does not know the model.
        """
        play_turn = self._text_turn if self.tokens is None else self._exact_turn
        while not episode.finished:
            play_turn(episode)
        return episode

    def record(self, episode: Episode, *, stream: Stream = "on_policy", policy_version: int = 0) -> Trajectory:
        """Returns the record of an episode."""
        banned = self.tokens.banned_sha256 if self.tokens else ""
        record = episode.trajectory(stream=stream, policy_version=policy_version, banned_sha256=banned)
        if self.tokens:
            return record
        turns = tuple(dataclasses.replace(turn, start=0, end=0) for turn in record.turns)
        empty: dict[str, Any] = dict.fromkeys(("token_ids", "loss_mask", "logprobs", "vision_index"), ())
        return dataclasses.replace(record, turns=turns, position_ids=((), (), ()), **empty)

    def ask(self, images: AnyImage | Sequence[AnyImage], question: str, options: Sequence[str] = ()) -> Episode:
        """Plays one question and returns the finished episode; see `Player.ask`."""
        return self.finish(self.begin(question_sample(images, question, options)))

    @property
    def _sampling(self) -> Sampling:
        given = {name: self.client.options.get(name) for name in ("temperature", "top_p", "seed")}
        return Sampling(**{name: value for name, value in given.items() if value is not None})

    def _finish_or_fail(self, episode: Episode) -> Episode | Failure:
        try:
            return self.finish(episode)
        except EndpointError as error:
            return Failure(episode.sample.sample_id, error.kind, str(error).removeprefix(f"{error.kind}: "))

    def _text_turn(self, episode: Episode) -> None:
        """Plays one turn whose tokens are unknown."""
        completion = self.client.complete(chat_messages(episode))
        tokens = episode.processor.chat.turn(self._text(completion))
        episode.add_turn(tokens if completion.whole else tokens[:-1], None)

    def _text(self, completion: Completion) -> str:
        """Returns the text of a turn: the reply, without its reasoning if the protocol can parse it only so."""
        without = without_reasoning(completion.text).strip()
        as_it_is, shorter = (self.protocol.read(text).outcome for text in (completion.text, without))
        return without if isinstance(as_it_is, ActionError) and not isinstance(shorter, ActionError) else completion.text

    def _exact_turn(self, episode: Episode) -> None:
        """Plays one turn with the endpoint's tokens."""
        completion = self.client.complete(
            token_messages(episode),
            max_tokens=episode.turn_budget,
            logprobs=True,
            return_token_ids=True,
            sample_id=episode.sample.sample_id,
        )
        if not completion.token_ids or len(completion.token_ids) != len(completion.logprobs):
            raise EndpointError("no_tokens", "the endpoint returns no token ids with log-probabilities")
        if list(completion.prompt_token_ids) != episode.token_ids:
            raise EndpointError("other_tokens", "the endpoint's prompt has other tokens than the checkpoint's tokenizer makes")
        episode.add_turn(completion.token_ids, completion.logprobs)
