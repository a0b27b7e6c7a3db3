"""Comparison of the model with Hugging Face's: cases by name, a run of theirs per case, and one batch of ours for all cases.

Their model gets most cases individually, and some as rows of a batch that is padded on the left or right. Our model gets the
same cases: the former packed, several per row; the latter one per row, padded on the same side.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import load_file

from tests.kit import tiny
from tests.kit.positions import qwens_positions
from vitar_jax.models.pretrained import save_pretrained
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.images import ProcessedImage
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack
from vitar_jax.processing.processor import Processor

TOLERANCE = 1e-4  # of ||ours - theirs|| / ||theirs||, for each tensor
BROKEN = 100 * TOLERANCE

Conversation = Sequence[Sequence[tiny.Part]]  # alternating messages of user and model
Place = tuple[int, int, slice]  # bin, row, and the tokens of the row


@dataclasses.dataclass(frozen=True)
class Case:
    example: Example
    seconds_per_grid: tuple[float, ...]

    @property
    def name(self) -> str:
        return self.example.name


def make_cases(conversations: Mapping[str, Conversation], using: Processor) -> tuple[Case, ...]:
    return tuple(
        Case(tiny.example(name, messages[0], using, *messages[1:]), tiny.seconds(*messages))
        for name, messages in conversations.items()
    )


def loss_weights(case: Case, vocab_size: int) -> np.ndarray:
    """Returns the weight of each squared logit in the loss. Weights are random, so that no part of a gradient cancels."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    return rng.normal(size=(len(case.example.token_ids), vocab_size)).astype(np.float32)


def relative_error(ours: Any, theirs: Any) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# Theirs


def run_theirs(model: Any, cases: Sequence[Case], side: str | None = None, *, backward: bool = False) -> dict[str, np.ndarray]:
    """Returns the logits of each case without its padding. `backward` adds the loss's gradient to the parameters' gradients.

    Args:
      side: "left" or "right" runs all cases as rows of one batch, padded on this side. None runs each case by itself.
    """
    found = {}
    for chosen in [cases] if side else [[case] for case in cases]:
        inputs = _inputs(chosen, side)
        with torch.set_grad_enabled(backward):
            logits = model(**inputs).logits
        attended = inputs["attention_mask"].bool()
        own = [logits[row, attended[row]] for row in range(len(chosen))]
        if backward:
            weighted = (torch.tensor(loss_weights(c, x.shape[-1])) * x**2 for c, x in zip(chosen, own, strict=True))
            sum(x.sum() for x in weighted).backward()
        found |= {case.name: x.detach().float().numpy() for case, x in zip(chosen, own, strict=True)}
    return found


def attentions_of_theirs(model: Any, cases: Sequence[Case], side: str | None = None) -> dict[str, np.ndarray]:
    """Returns the decoder's attention [L, H, S, S] of each case, without its padding; see `run_theirs` for `side`."""
    found = {}
    for chosen in [cases] if side else [[case] for case in cases]:
        inputs = _inputs(chosen, side)
        with torch.no_grad():
            layers = torch.stack(model(**inputs, output_attentions=True).attentions, dim=1)
        for case, probs, attended in zip(chosen, layers, inputs["attention_mask"].bool(), strict=True):
            found[case.name] = probs[:, :, attended][..., attended].numpy()
    return found


def _inputs(cases: Sequence[Case], side: str | None) -> dict[str, torch.Tensor]:
    """Returns the batch of cases. With a video among them it has Qwen's ids, because transformers 5 makes others after one."""
    rows = []
    for case in cases:
        example = case.example
        images = [ProcessedImage(p, g, (0, 0)) for p, g in zip(example.patches, example.grids, strict=True)]
        rows.append(tiny.hf_inputs(example.token_ids, images, case.seconds_per_grid))
        if any(second for each in cases for second in each.seconds_per_grid):
            rows[-1]["position_ids"] = torch.tensor(_positions(case))[:, None]
    return _padded(rows, side)


def _positions(case: Case) -> np.ndarray:
    pads = tiny.chat().image_pad, tiny.chat().video_pad
    return qwens_positions(case.example.token_ids, case.example.grids, case.seconds_per_grid, pads=pads, speed=2)


def _padded(rows: Sequence[dict[str, torch.Tensor]], side: str | None) -> dict[str, torch.Tensor]:
    """Joins rows into a batch. Pads inputs with one entry per token with zeros, and concatenates inputs of images."""
    per_token = ("input_ids", "attention_mask", "mm_token_type_ids", "position_ids")
    longest = max(row["input_ids"].shape[1] for row in rows)

    def joined(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        spare = [longest - x.shape[-1] if name in per_token else 0 for x in parts]
        padding = [(n, 0) if side == "left" else (0, n) for n in spare]
        padded = [torch.nn.functional.pad(x, p) if any(p) else x for x, p in zip(parts, padding, strict=True)]
        return torch.cat(padded, dim=1 if name == "position_ids" else 0)

    names = {name for row in rows for name in row}
    return {name: joined(name, [row[name] for row in rows if name in row]) for name in names}


# Ours


def one_a_row(cases: Sequence[Case], side: str, *, tokens: int, using: Processor) -> Batch:
    """Returns a batch of one bin with one case per row, padded on `side`, and without unused images."""
    batches = []
    for case in cases:
        images = sum(grid[0] for grid in case.example.grids)
        batch = pack([case.example], BatchShape(1, 1, tokens, images, using.size_classes[0], tokens), using)
        if side == "left":
            spare = tokens - len(case.example.token_ids)
            per_token = ("token_ids", "segment_ids", "loss_mask", "vision_index", "position_ids")
            rolled = {name: np.roll(getattr(batch, name), spare, axis=-1) for name in per_token}
            batch = dataclasses.replace(batch, **rolled)
        batches.append(batch)
    return beside(batches, using)


def beside(batches: Sequence[Batch], using: Processor) -> Batch:
    """Merges the bins of batches: the rows and images of each batch follow those of the previous batch."""
    per_image = using.features(using.size_classes[0])
    before = np.cumsum([0, *(batch.pixels.shape[1] for batch in batches)]) * per_image
    shifted = [
        dataclasses.replace(batch, vision_index=np.where(batch.vision_index < 0, -1, batch.vision_index + first))
        for batch, first in zip(batches, before, strict=False)
    ]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(batch, name) for batch in shifted], axis=2 if name == "position_ids" else 1)
        for name, array in vars(batches[0]).items()
        if isinstance(array, np.ndarray)
    }
    return Batch(**arrays)


def places(batch: Batch, cases: Sequence[Case]) -> dict[str, Place]:
    """Returns the place of each case in a batch, found by its tokens."""
    found = {}
    for bin_, row in np.ndindex(*batch.segment_ids.shape[:2]):
        segment_ids = batch.segment_ids[bin_, row]
        for segment in range(1, segment_ids.max() + 1):
            place = np.flatnonzero(segment_ids == segment)
            span = slice(place[0], place[-1] + 1)
            for case in cases:
                if np.array_equal(batch.token_ids[bin_, row, span], case.example.token_ids):
                    assert case.name not in found
                    found[case.name] = bin_, row, span
    assert len(found) == len(cases)
    return found


@jax.jit
def forward(model: VisionLanguageModel, batch: Batch) -> jax.Array:
    """Returns logits [bins, rows, S, V]."""
    return model(**batch.inputs) @ model.head()


@jax.jit
def logits_and_gradient(model: VisionLanguageModel, batch: Batch, weights: np.ndarray) -> tuple[jax.Array, VisionLanguageModel]:
    """Returns the logits, and the gradient of the sum of `weights` * logits**2."""

    def loss(model: VisionLanguageModel) -> tuple[jax.Array, jax.Array]:
        logits = forward(model, batch)
        return jnp.sum(weights * logits**2), logits

    (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(model)
    return logits, gradient


def batch_weights(batch: Batch, cases: Sequence[Case], vocab_size: int) -> np.ndarray:
    """Returns the loss weights of all cases at their places in the batch, 0 elsewhere: float32 [bins, rows, S, V]."""
    weights = np.zeros((*batch.token_ids.shape, vocab_size), np.float32)
    where = places(batch, cases)
    for case in cases:
        weights[where[case.name]] = loss_weights(case, vocab_size)
    return weights


class Comparison:
    """All cases of a family: some packed, several per row, and some one per row, padded on the left or on the right.

    Attributes:
      kit: The family's module in `tests/kit`, which has `pretrained` and `published`.
      using: Processor with one size class.
      shape: Shape of the packed rows.
    """

    def __init__(self, kit: Any, using: Processor, shape: BatchShape, cases: Mapping[str, Conversation]):
        """Makes the cases. Those whose names start with "left: " or "right: " are padded on that side."""
        self.kit, self.using, self.shape = kit, using, shape
        self.cases = make_cases(cases, using)
        self.packed = self._padded("")
        self._references: dict[bool, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}

    def _padded(self, side: str) -> tuple[Case, ...]:
        """Returns the cases that are padded on a side, or with "" the packed ones."""
        return tuple(case for case in self.cases if (case.name.partition(": ")[0] if ": " in case.name else "") == side)

    @cached_property
    def batch(self) -> Batch:
        """Returns all cases in one batch."""
        rows = [one_a_row(self._padded(side), side, tokens=self.shape.tokens, using=self.using) for side in ("left", "right")]
        return beside([pack([case.example for case in self.packed], self.shape, self.using), *rows], self.using)

    def references(self, tie: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns Hugging Face's logits of each case, and gradients of each parameter by its published name."""
        if tie not in self._references:
            self._references[tie] = self._run_theirs(tie)
        return self._references[tie]

    def _run_theirs(self, tie: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        theirs = self.kit.pretrained(tie=tie)[0]
        theirs.zero_grad()
        logits = run_theirs(theirs, self.packed, backward=True)
        for side in ("left", "right"):
            logits |= run_theirs(theirs, self._padded(side), side, backward=True)
        gradients = {self.kit.published(name): parameter.grad.numpy().copy() for name, parameter in theirs.named_parameters()}
        theirs.zero_grad()
        return logits, gradients

    def errors(
        self, batch: Batch, *, tie: bool = False, where: dict[str, Place] | None = None, model: Any = None
    ) -> dict[str, float]:
        """Returns the relative error of each case's logits, of our model or another one."""
        logits = np.asarray(forward(model or self.kit.pretrained(tie=tie)[1], batch))
        theirs = self.references(tie)[0]
        return {
            name: relative_error(logits[place], theirs[name]) for name, place in (where or places(batch, self.cases)).items()
        }

    def gradient_errors(self, folder: Path, *, tie: bool, remat: str = "none") -> dict[str, float]:
        """Returns the relative error of each parameter's gradient. Writes the gradients to `folder`, under published names."""
        model = tiny.with_config(self.kit.pretrained(tie=tie)[1], remat=remat)
        weights = batch_weights(self.batch, self.cases, tiny.VOCAB)
        _, gradient = logits_and_gradient(model, self.batch, weights)
        save_pretrained(gradient, folder)  # gradients are shaped like the model, and so take its names
        ours, theirs = load_file(folder / "model.safetensors"), self.references(tie)[1]
        assert ours.keys() == theirs.keys()
        return {name: relative_error(ours[name], theirs[name]) for name in theirs}


def wrong(relative: Mapping[str, float]) -> dict[str, float]:
    """Returns the errors that are not within the tolerance."""
    return {name: error for name, error in relative.items() if not error <= TOLERANCE}
