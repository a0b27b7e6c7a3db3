"""Log-probability of the reference answer under teacher forcing, in nats. It needs no sampling and no right or wrong.

The prompt is followed by a turn that answers at once with the reference answer and an empty thought, in the words of the
protocol. The value is the sum over the tokens that cover the answer, given all tokens before them. The same sample under a
control has the same tokens, so that the difference is what the image adds; see `evaluation/reliance.py`.

A protocol of several turns would rather look first. The value says what its model reads in the first view.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float

from vitar_jax.data.skipping import Skipped, attempt
from vitar_jax.episodes.actions import Answer
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory_files import file_of
from vitar_jax.errors import DataError
from vitar_jax.evaluation.confidence import span_of
from vitar_jax.evaluation.outcomes import REFERENCES, read_references
from vitar_jax.models.logprobs import token_logprobs
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.parallel.mesh import batch_sharding, bins, make_mesh
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.checkpoint import Checkpoint
from vitar_jax.rollout.endpoint_player import EndpointPlayer
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.crash_safe import drop_tail
from vitar_jax.runtime.distributed import wait_for_all

_BLOCK = 128  # rows are as long as a multiple of this number of tokens, so that few lengths are compiled


def reference_example(episode: Episode) -> Example:
    """Returns an episode's prompt and a turn with the reference answer, whose tokens alone are under the loss mask.

    Args:
      episode: An episode without turns.

    Raises:
      DataError: If the sample has no reference answer, or the protocol spells it differently (JSON may escape a character).
    """
    sample, chat = episode.sample, episode.processor.chat
    if not sample.answer:
        raise DataError(f"sample {sample.sample_id}: has no reference answer")
    text = episode.protocol.write("", Answer(sample.answer))
    token_ids = chat.turn(text, episode.protocol.allowed_tokens)
    span = span_of(sample.answer, text, token_ids, chat.decode)
    if span is None:
        raise DataError(f"sample {sample.sample_id}: the protocol spells its reference answer differently")
    answered = episode.fork(episode.member, episode.occurrence)
    answered.protocol = dataclasses.replace(episode.protocol, early_answer=True)  # a refusal would follow
    answered.add_turn(token_ids, None)
    example, start = answered.example(), len(episode.token_ids)
    places = np.arange(len(example.token_ids)) - start
    return dataclasses.replace(example, loss_mask=(span[0] <= places) & (places < span[1]))


class ReferenceScorer:
    """Scores reference answers with a model.

    Args:
      model: The model, sharded over this process's devices.
      mesh: A mesh of these devices. Each data shard scores one example at a time.
      banned: bool [V], tokens that are never sampled.
    """

    def __init__(self, model: VisionLanguageModel, mesh: jax.sharding.Mesh, processor: Processor, banned: Any):
        self._model, self._mesh, self._processor, self._banned = model, mesh, processor, banned

    @classmethod
    def load(cls, player: Player | EndpointPlayer) -> "ReferenceScorer":
        """Reads the weights of a player's checkpoint once more, in the layout that scores complete rows."""
        assert isinstance(player, Player) and player.checkpoint is not None
        mesh, engine = make_mesh(devices=jax.local_devices()), player.engine
        opened = Checkpoint.open(player.checkpoint, dtype=engine.config.dtype, attention=player.changes.get("attention", "xla"))
        return cls(opened.model(mesh), mesh, player.processor, engine.banned)

    @property
    def at_a_time(self) -> int:
        """Maximum number of examples per call."""
        return bins(self._mesh)

    def __call__(self, examples: list[Example]) -> list[float]:
        """Returns the sum of the log-probabilities under the loss mask of each example."""
        grids = [grid for example in examples for grid in example.grids]
        classes = self._processor.size_classes
        shape = BatchShape(
            bins=self.at_a_time,
            rows=1,
            tokens=-(-max(len(example.token_ids) for example in examples) // _BLOCK) * _BLOCK,
            images=max(1, *(sum(grid[0] for grid in example.grids) for example in examples)),
            size_class=max((self._processor.size_class(grid) for grid in grids), key=classes.index, default=classes[0]),
            policy_tokens=max(int(example.loss_mask.sum()) for example in examples),
        )
        batch = jax.device_put(pack(examples, shape, self._processor), batch_sharding(self._mesh))
        with jax.set_mesh(self._mesh), jax.default_matmul_precision("highest"):
            found = _logprobs(self._model, batch, self._banned, most=shape.policy_tokens)
        # Examples are in bins of their own, in order where there are as many.
        homes = [number * shape.bins // len(examples) for number in range(len(examples))]
        return [float(value) for value in np.asarray(found, float).sum(axis=(1, 2))[homes]]


@partial(jax.jit, static_argnames="most")
def _logprobs(
    model: VisionLanguageModel, batch: Batch, banned: Bool[Array, " V"], *, most: int
) -> Float[Array, "bins R S"]:
    hidden = model(**batch.inputs)
    return token_logprobs(hidden, model.head(), batch.token_ids, batch.loss_mask, banned, max_tokens=most)[0]


def score_references(
    scorer: Callable[[], ReferenceScorer],
    begin: Callable[[Sample], Episode],
    samples: Iterable[Sample],
    directory: Path,
    *,
    change: Callable[[Sample], Sample] | None = None,
) -> None:
    """Writes the log-probability of each sample's reference answer to a folder. A rerun scores only the missing samples.

    Each process scores its shard into a file of its own. Samples that cannot be scored are named in the log and left out.

    Args:
      scorer: Loads the scorer. Called only if a sample is missing.
      begin: Begins the episode of a sample.
      change: The image control.
    """
    done = read_references(directory)
    wait_for_all("scored references are known")
    path = directory / file_of(jax.process_index(), REFERENCES)
    drop_tail(path)
    missing = (sample for sample in samples if sample.sample_id not in done)
    mine = islice(missing, jax.process_index(), None, jax.process_count())
    with path.open("a") as file:
        while first := list(islice(mine, 1)):
            loaded = scorer()
            together = [*first, *islice(mine, loaded.at_a_time - 1)]
            examples = _examples(lambda sample: begin(change(sample) if change else sample), together)
            for example, logprob in zip(examples, loaded(examples) if examples else (), strict=True):
                tokens = int(example.loss_mask.sum())
                file.write(json.dumps({"sample_id": example.name, "logprob": logprob, "tokens": tokens}) + "\n")
            file.flush()
    wait_for_all("references are scored")


def _examples(begin: Callable[[Sample], Episode], samples: Iterable[Sample]) -> list[Example]:
    """Returns the examples of the samples that can be scored, and names the others in the log."""
    made = [attempt(lambda sample=sample: reference_example(begin(sample))) for sample in samples]
    for one in made:
        if isinstance(one, Skipped):
            logging.warning("no log-probability of the reference answer: %s", one.message)
    return [one for one in made if not isinstance(one, Skipped)]
