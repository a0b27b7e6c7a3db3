"""Logits and gradients against Hugging Face's module, and what each mechanism is worth when it is broken."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests import tiny
from vitar_jax.models.pretrained import save_pretrained
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.processing.images import ProcessedImage
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack

TOLERANCE = 1e-4
BROKEN = 100 * TOLERANCE
PROCESSOR = tiny.processor(12)
# (width, height): 3 x 4, 2 x 2, 5 x 3, 1 x 4 and 7 x 3 tokens, in windows of 2 x 2.
WIDE, SQUARE, ODD, FLAT, LONG = (112, 84), (56, 56), (84, 140), (112, 28), (196, 84)
LONE = BatchShape(1, 1, 160, 3, PROCESSOR.size_classes[0], 200)
TIGHT = BatchShape(2, 2, 200, 4, PROCESSOR.size_classes[0], 400)  # several examples in most rows

Place = tuple[int, int, slice]  # bin, row, and the tokens of the row


@pytest.fixture(autouse=True, scope="module")
def exact():
    """Products in full fp32, on every back end."""
    with jax.default_matmul_precision("highest"):
        yield


@cache
def examples() -> tuple[Example, ...]:
    noise = tiny.noise
    return tuple(
        tiny.example(name, parts, PROCESSOR)
        for name, parts in {
            "one image": [noise(*WIDE, seed=1), "Which texture is it?"],
            "three images": [
                noise(*SQUARE, seed=2),
                "left",
                noise(*ODD, seed=3),
                noise(*FLAT, seed=4),
                "Look twice.",
            ],
            "text only": ["Where is the lesion and in which region of it?"],
            "text after images": [noise(*LONG, seed=5), "Now answer the question from this region. " * 4],
            "text before an image": ["Look at the enlarged region. " * 3, noise(*WIDE, seed=6)],
            "short": ["A"],
        }.items()
    )


def images(example: Example) -> list[ProcessedImage]:
    return [ProcessedImage(p, g, (0, 0)) for p, g in zip(example.patches, example.grids, strict=True)]


@cache
def references(tie: bool) -> list[np.ndarray]:
    """Hugging Face's logits of each example by itself."""
    theirs, _ = tiny.pretrained(tie=tie)
    with torch.no_grad():
        return [theirs(**tiny.hf_inputs(e.token_ids, images(e))).logits[0].numpy() for e in examples()]


@jax.jit
def forward(model: Qwen2_5_VL, batch: Batch) -> jax.Array:
    inputs = {name: array for name, array in batch.items() if name != "loss_mask"}
    return model(**inputs) @ model.head()


def pieces(batch: Batch) -> dict[str, Place]:
    """Where each example lies, found by its tokens."""
    found = {}
    for bin_, row in np.ndindex(*batch["segment_ids"].shape[:2]):
        segment_ids = batch["segment_ids"][bin_, row]
        for segment in range(1, segment_ids.max() + 1):
            place = np.flatnonzero(segment_ids == segment)
            span = slice(place[0], place[-1] + 1)
            for example in examples():
                if np.array_equal(batch["token_ids"][bin_, row, span], example.token_ids):
                    found[example.name] = bin_, row, span
    assert len(found) == len(examples())
    return found


def errors(batch: Batch, *, tie: bool = False, where: dict[str, Place] | None = None) -> dict[str, float]:
    """Relative error of each example's logits: ||ours - theirs|| / ||theirs||."""
    logits = np.asarray(forward(tiny.pretrained(tie=tie)[1], batch))
    where = where or pieces(batch)
    return {
        example.name: float(np.linalg.norm(logits[where[example.name]] - theirs) / np.linalg.norm(theirs))
        for example, theirs in zip(examples(), references(tie), strict=True)
    }


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_packed_logits_equal_hugging_faces(tie: bool) -> None:
    batch = pack(examples(), TIGHT, PROCESSOR)
    assert batch["segment_ids"].max() >= 2  # rows are shared
    assert (batch["segment_ids"] == 0).any()  # and padded
    assert min(theirs.std() for theirs in references(tie)) >= 1
    assert max(errors(batch, tie=tie).values()) <= TOLERANCE


def test_an_example_by_itself_has_the_logits_of_a_packed_one() -> None:
    model = tiny.pretrained()[1]
    batch = pack(examples(), TIGHT, PROCESSOR)
    together = np.asarray(forward(model, batch))
    where = pieces(batch)
    for example in examples():
        alone = np.asarray(forward(model, pack([example], LONE, PROCESSOR)))[0, 0, : len(example.token_ids)]
        difference = np.linalg.norm(together[where[example.name]] - alone)
        assert difference <= TOLERANCE / 10 * np.linalg.norm(alone), example.name


def test_what_stands_in_padding_does_not_matter() -> None:
    batch = pack(examples(), TIGHT, PROCESSOR)
    rng = np.random.default_rng(0)
    padding, no_patch = batch["segment_ids"] == 0, batch["patch_positions"][..., 0] < 0
    dirty = batch | dict(
        token_ids=np.where(padding, rng.integers(0, tiny.VOCAB, padding.shape), batch["token_ids"]),
        position_ids=np.where(padding[:, None], 77, batch["position_ids"]),
        pixels=np.where(no_patch.reshape(*no_patch.shape[:2], -1, 1), 9.0, batch["pixels"]).astype(np.float32),
    )
    assert not np.array_equal(dirty["pixels"], batch["pixels"])
    assert max(errors(dirty).values()) <= TOLERANCE


def windows_made_one(batch: Batch) -> Batch:
    """All slots of an image in one window: windowed layers then look everywhere."""
    bins, count = batch["patch_positions"].shape[:2]
    return batch | {"patch_positions": batch["patch_positions"].reshape(bins, count, 1, -1, 2)}


def patches_without_place(batch: Batch) -> Batch:
    return batch | {"patch_positions": np.minimum(batch["patch_positions"], 0)}


def rows_for_columns(batch: Batch) -> Batch:
    return batch | {"patch_positions": batch["patch_positions"][..., ::-1]}


def features_in_window_order(batch: Batch) -> Batch:
    """Each image's features in the order the tower makes them, as if none had been put back."""
    index = batch["vision_index"].copy()
    for bin_, row, span in pieces(batch).values():
        taken = index[bin_, row, span]
        for image in range(TIGHT.images):
            per_image = TIGHT.size_class.slots // 4
            mine = (taken >= image * per_image) & (taken < (image + 1) * per_image)
            taken[mine] = np.sort(taken[mine])
    return batch | {"vision_index": index}


def positions_of_text(batch: Batch) -> Batch:
    """Every token one further than the last, as in a model without M-RoPE."""
    position_ids = batch["position_ids"].copy()
    for bin_, row, span in pieces(batch).values():
        position_ids[bin_, :, row, span] = np.arange(span.stop - span.start)
    return batch | {"position_ids": position_ids}


def segments_ignored(batch: Batch) -> Batch:
    return batch | {"segment_ids": np.minimum(batch["segment_ids"], 1)}


def images_of_others(batch: Batch) -> Batch:
    return batch | {name: batch[name][:, ::-1] for name in ("pixels", "patch_positions")}


@pytest.mark.parametrize(
    "break_it, suffering",
    [
        (windows_made_one, "one image"),
        (patches_without_place, "one image"),
        (rows_for_columns, "one image"),
        (features_in_window_order, "one image"),
        (positions_of_text, "text after images"),
        (positions_of_text, "three images"),
        (segments_ignored, "short"),
        (images_of_others, "one image"),
    ],
)
def test_a_broken_mechanism_shows(break_it: Callable[[Batch], Batch], suffering: str) -> None:
    batch = pack(examples(), TIGHT, PROCESSOR)
    assert errors(break_it(batch), where=pieces(batch))[suffering] >= BROKEN


# Gradients


def loss_weights(example: Example) -> np.ndarray:
    """What each logit counts in the loss: random, so that no part of a gradient cancels."""
    shape = (len(example.token_ids), tiny.VOCAB)
    return np.random.default_rng(len(example.token_ids)).normal(size=shape).astype(np.float32)


def published(name: str) -> str:
    """The name that a parameter of the module has in files."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def hf_gradients(tie: bool, chosen: Sequence[Example]) -> dict[str, np.ndarray]:
    theirs, _ = tiny.pretrained(tie=tie)
    theirs.zero_grad()
    for example in chosen:
        logits = theirs(**tiny.hf_inputs(example.token_ids, images(example))).logits[0]
        (torch.tensor(loss_weights(example)) * logits**2).sum().backward()
    gradients = {published(name): parameter.grad.numpy().copy() for name, parameter in theirs.named_parameters()}
    theirs.zero_grad()
    return gradients


@pytest.mark.parametrize("tie, remat", [(False, False), (True, False), (False, True)], ids=["untied", "tied", "recomputed"])
def test_gradients_equal_hugging_faces(tie: bool, remat: bool, tmp_path: Path) -> None:
    batch = pack(examples(), TIGHT, PROCESSOR)
    weights = np.zeros((*batch["token_ids"].shape, tiny.VOCAB), np.float32)
    for name, place in pieces(batch).items():
        weights[place] = loss_weights(next(e for e in examples() if e.name == name))
    model = tiny.pretrained(tie=tie)[1]
    model = with_remat(model) if remat else model

    @jax.jit
    @jax.grad
    def gradient(model: Qwen2_5_VL) -> jax.Array:
        return jnp.sum(weights * forward(model, batch) ** 2)

    save_pretrained(gradient(model), tmp_path)  # gradients are shaped like the model, and so take its names
    ours = load_file(tmp_path / "model.safetensors")
    theirs = hf_gradients(tie, examples())
    assert ours.keys() == theirs.keys()
    relative = {name: float(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name])) for name in theirs}
    assert {name: error for name, error in relative.items() if not error <= TOLERANCE} == {}


def with_remat(model: Qwen2_5_VL) -> Qwen2_5_VL:
    """The same weights in a model that recomputes its layers in the backward pass."""
    config = dataclasses.replace(model.config, remat="layer")
    other = jax.eval_shape(lambda: Qwen2_5_VL(config, key=jax.random.key(0)))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))
