"""The player: answers questions with a checkpoint.

    player = Player.load("runs/quickstart/grpo/model")
    episode = player.ask("phantom.png", "Which texture?", options=["flat", "rows", "columns", "checks"])
    print(episode.predicted_answer)

`vitar_jax.load_player` is `Player.load`. To play many samples, pass groups of episodes, which are yielded as they finish:

    for episode in player.play([player.begin(sample)] for sample in samples):
        trajectory = player.record(episode)

`rollout/offline.py` plays samples into a folder and can resume. A server calls `player.scheduler`: `submit`, `step`, `written`
(the tokens of a turn in progress) and `cancel`. A run of a recipe builds a `Player` from its engine, a protocol and weights.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import AnyImage, Sample, question_sample
from vitar_jax.episodes.trajectory import Sampling, Stream, Trajectory
from vitar_jax.errors import ConfigError
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.checkpoint import Checkpoint, load_rollout_weights
from vitar_jax.rollout.checkpoint_settings import options_note, play_settings
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.masks import check_makes_masks, lacks_masks
from vitar_jax.rollout.scheduler import Scheduler
from vitar_jax.rollout.weights import RolloutWeights
from vitar_jax.runtime.remote import CheckpointFolder, weights_hash


@dataclasses.dataclass(frozen=True)
class Player:
    """A player of samples under one protocol, with one set of weights.

    Args:
      engine: Engine with processor, limits, banned set and slots. Players may share it.
      weights: Function that returns the weights. `start` or the first play calls it once.
      checkpoint: Source of the weights. If None, the player has no `settings`.
      options_only: Whether the model was trained on questions with options alone.
      changes: What `load` was asked to change of the checkpoint's own settings.
      protocols: The protocols, by name, under which a server can play its episodes instead.
    """

    engine: Engine
    protocol: Protocol
    weights: Callable[[], RolloutWeights]
    sampling: Sampling = Sampling(temperature=0.0)
    checkpoint: CheckpointFolder | Path | None = None
    options_only: bool = False
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocols: Mapping[str, Protocol] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | CheckpointFolder,
        *,
        protocol: str = "",
        dtype: str = "float32",
        slots: int = 16,
        tensor: int = 1,
        sampling: Sampling = Sampling(temperature=0.0),
        attention: str = "xla",
        max_pixels: int = 0,
        stop_tokens: Sequence[str] | None = None,
    ) -> "Player":
        """Opens a checkpoint. The first play reads its weights. Matrix products have full fp32 precision.

        Args:
          checkpoint: A directory, a URL that fsspec opens (`gs://`), or a hub repository.
          protocol: A named protocol, `path/to/file.toml` or `path/to/file.py:name` (default: the checkpoint's).
          dtype: Type of weights, activations and cache: "float32" or "bfloat16".
          slots: Number of episodes played at a time.
          tensor: Number of devices that share one copy of the weights.
          sampling: Sampling settings (default: greedy).
          attention: Attention back end: "xla", "splash" (TPU) or "cudnn" (NVIDIA GPUs, in bfloat16).
          max_pixels: Maximum number of pixels of an image; larger images are resized (default: the checkpoint's).
          stop_tokens: Spellings of the tokens that end a turn, in addition to `<|im_end|>` (default: the checkpoint's eos).

        Raises:
          CheckpointError: If a file is missing or invalid.
          ConfigError: If a value is invalid, the protocol is unknown, or it needs masks and the model makes none.
        """
        opened = Checkpoint.open(checkpoint, dtype=dtype, attention=attention, max_pixels=max_pixels, stop_tokens=stop_tokens)
        rules = opened.settings.protocol(protocol)
        check_makes_masks(rules, opened.config)
        limits = opened.settings.limits_under(rules)
        rollout = RolloutConfig(
            slots,
            prefill_lengths=tuple(sorted({min(n, limits.tokens) for n in (64, 512)})),
            prefill_rows=min(slots, 8),
            encode_batch=max(1, min(slots, jax.local_device_count() // tensor)),  # one image per device
            follow_images=True,
            dtype=dtype,
            tensor=tensor,
        )
        processor = opened.settings.processor.allowing(rules.allowed_tokens)
        banned = banned_tokens(processor.chat, opened.config.text.vocab_size)
        engine = Engine(rollout, processor, limits, banned, matmul_precision="highest")
        weights = cache(partial(load_rollout_weights, opened.folder, opened.config, rollout))
        changes = {"attention": attention} if attention != "xla" else {}
        changes |= {"max_pixels": max_pixels} if max_pixels else {}
        named = opened.settings.named_protocols()
        protocols = {name: known for name, known in named.items() if not lacks_masks(known, opened.config)}
        return cls(engine, rules, weights, sampling, opened.folder, opened.settings.options_only, changes, protocols)

    @property
    def processor(self) -> Processor:
        return self.engine.processor

    @property
    def pool(self) -> Executor:
        return self.engine.pool

    @property
    def workers(self) -> int:
        return self.engine.config.workers

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines how a sample is answered, as JSON.

        Raises:
          ConfigError: If the weights do not come from a checkpoint.
        """
        engine = self.engine
        hashed, dtype = self._weights_hash, engine.config.dtype
        sampling = self.sampling.stopping_at(self.processor.chat.stop_ids)
        changes = {**self.changes, **({"turn_masks": engine.config.turn_masks} if self.protocol.makes_masks else {})}
        return play_settings(hashed, dtype, self.protocol, engine.limits, sampling, changes)

    @cached_property
    def _weights_hash(self) -> str:
        if self.checkpoint is None:
            raise ConfigError("player: cannot hash the weights, because no checkpoint was given")
        return weights_hash(self.checkpoint)

    @cached_property
    def scheduler(self) -> Scheduler:
        """The player's slots and their KV cache."""
        return Scheduler(self.engine, self.weights())

    def start(self) -> None:
        """Reads the weights and allocates the KV cache. Later calls do nothing."""
        _ = self.scheduler

    def begin(self, sample: Sample, member: int = 0) -> Episode:
        """Begins the episode of a sample.

        Args:
          member: Index in the group of episodes of the same sample.

        Raises:
          ImageError: If an image cannot be read.
          TooLongError: If the prompt exceeds a limit.
        """
        return Episode(sample, self.protocol, self.processor, self.engine.limits, self.sampling, member)

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        """Plays groups to their end, in place, and yields each episode when it finishes; see `Scheduler.play`."""
        return self.scheduler.play(groups)

    def finish(self, episode: Episode) -> Episode:
        """Plays one episode to its end and returns it."""
        for _ in self.play([[episode]]):
            pass
        return episode

    def record(self, episode: Episode, *, stream: Stream = "on_policy", policy_version: int = 0) -> Trajectory:
        """Returns the record of an episode."""
        return episode.trajectory(stream=stream, policy_version=policy_version, banned_sha256=self.engine.banned_sha256)

    def ask(self, images: AnyImage | Sequence[AnyImage], question: str, options: Sequence[str] = ()) -> Episode:
        """Plays one question about one or more images (or none, as `()`) and returns the finished episode.

        Warns if the question has no options, but all questions of the model's training had.

        `episode.predicted_answer` is the answer; `episode.turns` and `episode.images` show how the model arrived at it. To
        continue the conversation, call `episode.ask` with another question, then `finish`.

        Args:
          options: Answers to choose from; they get letters.

        Raises:
          ImageError: If an image cannot be read.
          TooLongError: If the prompt exceeds a limit.
          DataError: If there are more options than letters.
        """
        sample = question_sample(images, question, options)
        if note := self.note(sample):
            warnings.warn(note, stacklevel=2)
        return self.finish(self.begin(sample))

    def note(self, sample: Sample) -> str:
        """Returns why the model may not answer this question well, or an empty string."""
        return options_note(self.options_only, sample.options)
