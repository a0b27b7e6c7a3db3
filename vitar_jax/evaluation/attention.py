"""Attention of the turns of a finished trajectory: its shares on text and images, and on a box within an image.

A checkpoint rereads the trajectory with teacher forcing: tokens and positions are as recorded, images are encoded again. The
queries of a turn are the tokens that the model wrote in it. ViTAR (arXiv 2510.10052, figure 3) compares the turns before and
after the look by the share of attention on visual tokens and its alignment with lesions. Measures per layer and head:

    share          share of a query's attention on an image's tokens, mean over the turn
    mass           share of the attention on an image that falls on a box; tokens partly covered by the box count in part
    enrichment     mass / area, where area is the box's share of the image; 1 if attention is uniform
    pointing       1 if the box touches the most attended token, else 0 (the pointing game, Zhang et al., arXiv 1608.00507)

Each measure has a control. For the share, it is the attention on equally many consecutive text tokens. The others are
compared with boxes of the same shape at random places.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vitar_jax.episodes.trajectory import GOLD_IMAGE, Trajectory
from vitar_jax.errors import DataError
from vitar_jax.evaluation.outcomes import cluster_keys
from vitar_jax.models.mean_attention import mean_attention
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.packing import Example
from vitar_jax.processing.processor import Processor

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2 as fractions of the image's width and height


class AttentionReader:
    """A reader of a checkpoint's attention over recorded trajectories.

    Args:
      banned_sha256: Hash of the checkpoint's banned tokens. A trajectory must have the same hash, which shows that it was
        played with the same tokenizer and vocabulary.
      rows: Number of query tokens whose attention is held in memory at a time.
    """

    def __init__(self, model: VisionLanguageModel, processor: Processor, *, banned_sha256: str, rows: int = 128):
        self._model = model
        self._processor = processor
        self._banned_sha256 = banned_sha256
        self._rows = rows

    @property
    def merge_size(self) -> int:
        """Number of patches along each side of an image token."""
        return self._processor.images.merge_size

    def read(self, trajectory: Trajectory) -> Float[np.ndarray, "turns L H S"]:
        """Returns the attention from each turn to every token; see `mean_attention`.

        Raises:
          DataError: If the trajectory was played with a different tokenizer, vocabulary or image processing.
        """
        if trajectory.banned_sha256 != self._banned_sha256:
            raise DataError(
                f"trajectory {trajectory.sample_id}: its banned tokens differ from the checkpoint's; "
                "use a checkpoint with the tokenizer and vocabulary that it was played with"
            )
        example = trajectory.example(self._processor)
        length = len(example.token_ids)
        turn_ids = np.full(length, -1, np.int32)
        for number, turn in enumerate(trajectory.turns):
            turn_ids[turn.start : turn.end] = number
        found = mean_attention(
            self._model,
            self._padded(self._features(example)),
            token_ids=self._padded(example.token_ids),
            position_ids=self._padded(example.position_ids.T).T,
            vision_index=self._padded(example.vision_index, -1),
            turn_ids=self._padded(turn_ids, -1),
            turns=len(trajectory.turns),
            rows=self._rows,
        )
        return np.moveaxis(np.asarray(found), 1, 0)[..., :length]

    def _features(self, example: Example) -> Float[np.ndarray, "F D"]:
        """Returns the features of all images, in the order that `vision_index` refers to."""
        processor, features = self._processor, [np.zeros((0, self._model.config.feature_width), np.float32)]
        for patches, grid_thw in zip(example.patches, example.grids, strict=True):
            pixels, positions, slots = processor.arrange(patches, grid_thw, processor.size_class(grid_thw))
            features.append(np.asarray(_encode(self._model, pixels[None], positions[None]), np.float32)[slots])
        return np.concatenate(features)

    def _padded(self, x: np.ndarray, fill: int = 0) -> np.ndarray:
        """Pads to a positive multiple of the row block, so that few lengths are compiled."""
        spare = -(-max(len(x), 1) // self._rows) * self._rows - len(x)
        return np.concatenate([x, np.full((spare, *x.shape[1:]), fill, x.dtype)])


@jax.jit
def _encode(model: VisionLanguageModel, pixels: jax.Array, patch_positions: jax.Array) -> jax.Array:
    return model.encode(pixels, patch_positions)


def measure_attention(
    trajectory: Trajectory,
    attention: Float[np.ndarray, "turns L H S"],
    *,
    merge_size: int,
    random_boxes: int = 32,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measures the attention of each turn; returns one JSON record per turn.

    Measures are lists [layers][heads]; null means that a measure is undefined. A record has the sample's `clusters`
    (`cluster_keys`), the share of `text` and a list of the `images` before the turn, which are the sample's own or `edited`.
    Each image has:

      share, same_length_text
      boxes: "gold" boxes and the "model"'s, which are those of this turn or, if it has none, of the last earlier look. Each
        entry has `corners` (fractions of the image's width and height), area, mass, enrichment and pointing. It also has the
        last two for `random_boxes` random boxes, which are the same in all turns. Boxes that cover the whole image, as after
        a zoom into them, are omitted.
      map: Each token's share of the attention on the image, by row and column, averaged over layers and heads.
    """
    vision_index = np.array(trajectory.vision_index)
    own = [image.sha256 for image in trajectory.images if image.turn is None]
    records = []
    for number, (turn, seen) in enumerate(zip(trajectory.turns, attention, strict=True)):
        text_before = np.flatnonzero(vision_index[: turn.start] < 0)
        images = []
        for index, (image, tokens) in enumerate(zip(trajectory.images, _image_tokens(trajectory, merge_size), strict=True)):
            if tokens[0] >= turn.start:
                continue
            grid = (image.grid_thw[1] // merge_size, image.grid_thw[2] // merge_size)
            on_image = seen[..., tokens]
            rng = np.random.default_rng([seed, zlib.crc32(trajectory.sample_id.encode()), index])
            images.append(
                {
                    "image": index,
                    "edited": image.turn is not None,
                    "share": _numbers(on_image.sum(axis=-1)),
                    "same_length_text": _numbers(same_length_text(seen[..., text_before], len(tokens))),
                    "boxes": {
                        kind: {"corners": corners} | _on_box(on_image, mask, grid, rng, random_boxes)
                        for kind, corners in _boxes(trajectory, number, index).items()
                        if (mask := _mask(corners, image.size)).any() and not mask.all()
                    },
                    "map": _numbers(_normalised(on_image.mean(axis=(0, 1))).reshape(grid)),
                }
            )
        records.append(
            {
                "sample_id": trajectory.sample_id,
                "member": trajectory.member,
                "clusters": cluster_keys(trajectory.sample_id, own, trajectory.metadata),
                "turn": number + 1,
                "text": _numbers(seen[..., vision_index < 0].sum(axis=-1)),
                "images": images,
            }
        )
    return records


def same_length_text(on_text: Float[np.ndarray, "*B T"], count: int) -> Float[np.ndarray, "*B"]:
    """Returns the attention on `count` consecutive text tokens, averaged over all windows of that length.

    Ignores images between text tokens. NaN if there are fewer than `count` text tokens.
    """
    places = on_text.shape[-1] - count + 1
    if places < 1:
        return np.full(on_text.shape[:-1], np.nan)
    return on_text @ np.convolve(np.ones(places), np.ones(count)) / places  # weight: how many windows hold a token


def _image_tokens(trajectory: Trajectory, merge_size: int) -> Iterator[Int[np.ndarray, " n"]]:
    """Yields the token positions of each image."""
    vision_index, first = np.array(trajectory.vision_index), 0
    for image in trajectory.images:
        end = first + int(np.prod(image.grid_thw)) // merge_size**2
        yield np.flatnonzero((vision_index >= first) & (vision_index < end))
        first = end


def _on_box(
    on_image: Float[np.ndarray, "L H n"],
    mask: Bool[np.ndarray, "y x"],
    grid: tuple[int, int],
    rng: np.random.Generator,
    random_boxes: int,
) -> dict[str, Any]:
    """Measures the attention on a box, and on boxes of the same shape at random places."""
    of_image = _normalised(on_image)
    looked_at = on_image.argmax(axis=-1)
    known = np.isfinite(of_image[..., 0])
    area = mask.mean()
    covered = _coverage(mask, grid)
    others = np.stack([_coverage(_moved(mask, rng), grid) for _ in range(random_boxes)])
    mass = of_image @ covered
    return {
        "area": float(area),
        "mass": _numbers(mass),
        "enrichment": _numbers(mass / area),
        "pointing": _numbers(np.where(known, covered[looked_at] > 0, np.nan)),
        "random_enrichment": _numbers((of_image @ others.T).mean(axis=-1) / area),
        "random_pointing": _numbers(np.where(known, (others[:, looked_at] > 0).mean(axis=0), np.nan)),
    }


def _normalised(x: Float[np.ndarray, "*B n"]) -> Float[np.ndarray, "*B n"]:
    """Divides by the sum over the last axis; NaN where the sum is 0."""
    with np.errstate(invalid="ignore"):
        return x / x.sum(axis=-1, keepdims=True)


def _numbers(values: np.ndarray) -> list[Any]:
    """Converts to JSON lists, rounded to six significant digits."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


# Boxes


def _boxes(trajectory: Trajectory, number: int, index: int) -> dict[str, list[Corners]]:
    """Returns the gold boxes and the boxes of the last look up to a turn, mapped onto an image."""
    found = {"gold": (GOLD_IMAGE, trajectory.boxes)}
    if looks := [turn for turn in trajectory.turns[: number + 1] if turn.carried_out]:
        found["model"] = trajectory.looked_at(looks[-1])
    width, height = trajectory.images[index].pixels.size
    return {
        kind: [
            (box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height)
            for box in trajectory.boxes_on(index, base, boxes)
        ]
        for kind, (base, boxes) in found.items()
    }


def _mask(boxes: Sequence[Corners], size: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Returns the mask of pixels in any box, at the size that the model sees. A box on the image covers at least one pixel."""
    height, width = size
    mask = np.zeros(size, bool)
    for x1, y1, x2, y2 in boxes:
        if x1 < 1 and y1 < 1 and x2 > 0 and y2 > 0:
            left, upper = min(max(round(x1 * width), 0), width - 1), min(max(round(y1 * height), 0), height - 1)
            mask[upper : max(round(y2 * height), upper + 1), left : max(round(x2 * width), left + 1)] = True
    return mask


def _coverage(mask: Bool[np.ndarray, "y x"], grid: tuple[int, int]) -> Float[np.ndarray, " n"]:
    """Returns the masked share of each token's pixels, in row-major order."""
    (rows, columns), (height, width) = grid, mask.shape
    return mask.reshape(rows, height // rows, columns, width // columns).mean(axis=(1, 3)).reshape(-1)


def _moved(mask: Bool[np.ndarray, "y x"], rng: np.random.Generator) -> Bool[np.ndarray, "y x"]:
    """Moves the mask's shape to a random place within the image."""
    y, x = np.nonzero(mask)
    shape = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
    upper, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(mask.shape, shape.shape, strict=True))
    moved = np.zeros_like(mask)
    moved[upper : upper + shape.shape[0], left : left + shape.shape[1]] = shape
    return moved
