"""The loss of predicted masks: binary cross-entropy and dice at sampled points, as in Sa2VA (Yuan et al., 2025).

Points are chosen as in PointRend (Kirillov et al., 2020, arXiv 1912.08193): most of them where the prediction is uncertain. The
functions are those of Mask2Former (Cheng et al., 2022). Maps are sampled as by `torch.nn.functional.grid_sample`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from vitar_jax.errors import ConfigError
from vitar_jax.processing.mask_targets import MaskBatch


@dataclasses.dataclass(frozen=True)
class MaskLossConfig:
    """Settings of the loss of masks. The defaults are VRT's.

    Attributes:
      cross_entropy, dice: Weights of the two losses.
      points: Number of points of each mask.
      oversample: Candidates per point, of which the most uncertain are taken.
      uncertain: Share of the points that are taken from the candidates. The others are random.
      masks: Number of masks of each row.

    Raises:
      ConfigError: If a value is out of range.
    """

    cross_entropy: float = 2.0
    dice: float = 0.5
    points: int = 12_544
    oversample: float = 3.0
    uncertain: float = 0.75
    masks: int = 5

    def __post_init__(self) -> None:
        for name, fits, allowed in (
            ("points", self.points > 0, "more than 0"),
            ("oversample", self.oversample >= 1, "at least 1"),
            ("uncertain", 0 <= self.uncertain <= 1, "a share from 0 to 1"),
            ("masks", self.masks > 0, "more than 0"),
        ):
            if not fits:
                raise ConfigError(f"masks.{name}: got {getattr(self, name)}, expected {allowed}")


def sample_points(maps: Float[Array, "N height width"], points: Float[Array, "N points 2"]) -> Float[Array, "N points"]:
    """Returns the bilinear interpolation of each map at points (x, y) from 0 to 1.

    Values lie at the centres of pixels, and are 0 outside of the map, as in `grid_sample` without aligned corners.
    """
    height, width = maps.shape[1:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    flat = maps.reshape(len(maps), -1)
    total = jnp.zeros(points.shape[:-1], maps.dtype)
    for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
            total += jnp.where(inside, across * down, 0) * jnp.take_along_axis(flat, place, axis=1)
    return total


def choose_points(
    logits: Float[Array, "N height width"], config: MaskLossConfig, keys: Key[Array, " N"]
) -> Float[Array, "N points 2"]:
    """Returns points for each mask: those of many random candidates whose logits are nearest to 0, then random ones.

    A mask's points depend on its logits and key alone, and not on the masks beside it.
    """
    logits = jax.lax.stop_gradient(logits)
    uncertain = int(config.uncertain * config.points)

    def draw(key: jax.Array) -> tuple[Array, Array]:
        of_candidates, of_others = jax.random.split(key)
        candidates = jax.random.uniform(of_candidates, (int(config.points * config.oversample), 2))
        return candidates, jax.random.uniform(of_others, (config.points - uncertain, 2))

    candidates, others = jax.vmap(draw)(keys)
    _, nearest = jax.lax.top_k(-jnp.abs(sample_points(logits, candidates)), uncertain)
    taken = jnp.take_along_axis(candidates, nearest[..., None], axis=1)
    return jnp.concatenate([taken, others], axis=1)


def losses_at(
    logits: Float[Array, "N height width"], targets: Bool[Array, "N rows columns"], points: Float[Array, "N points 2"]
) -> tuple[Float32[Array, " N"], Float32[Array, " N"]]:
    """Returns the cross-entropy of each mask, a mean over its points, and its dice loss.

        dice = 1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1),   p = sigmoid(logits), g = targets

    A target between two pixels is a mean of them, neither 0 nor 1.
    """
    predicted = sample_points(logits.astype(jnp.float32), points)
    wanted = sample_points(targets.astype(jnp.float32), points)
    cross_entropy = jnp.maximum(predicted, 0) - predicted * wanted + jnp.log1p(jnp.exp(-jnp.abs(predicted)))
    probability = jax.nn.sigmoid(predicted)
    overlap, total = (probability * wanted).sum(-1), probability.sum(-1) + wanted.sum(-1)
    return cross_entropy.mean(-1), 1 - (2 * overlap + 1) / (total + 1)


def mask_loss(
    logits: Float[Array, "N height width"],
    targets: Bool[Array, "N height width"],
    valid: Bool[Array, " N"],
    config: MaskLossConfig,
    keys: Key[Array, " N"],
    *,
    count: jax.Array | float | None = None,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Returns the weighted loss of a batch of masks, and its metrics: both parts before weighting, and the IoU.

    Args:
      valid: False at places without a mask, which add nothing.
      keys: Key of each mask's points.
      count: Number of masks of the full batch, if this is a part of it. If None, the input is the full batch.
    """
    logits = logits.astype(jnp.float32)
    cross_entropy, dice = losses_at(logits, targets, choose_points(logits, config, keys))
    predicted = logits > 0
    overlap, union = (jnp.sum(each, axis=(1, 2)) for each in (predicted & targets, predicted | targets))
    count = valid.sum() if count is None else count

    def total(values: Float32[Array, " N"]) -> Float32[Array, ""]:
        return jnp.sum(jnp.where(valid, values, 0))

    # The small terms are the published code's, so that a batch without masks has a loss of 0.
    metrics = {
        "masks/cross_entropy": total(cross_entropy) * config.points / (count * config.points + 1e-4),
        "masks/dice": total(dice) / (count + 1e-4),
        "masks/iou": total(overlap / jnp.maximum(union, 1)) / jnp.maximum(count, 1),
    }
    return config.cross_entropy * metrics["masks/cross_entropy"] + config.dice * metrics["masks/dice"], metrics


def batch_mask_loss(
    logits: Float[Array, "bins entries masks height width"],
    masks: MaskBatch,
    config: MaskLossConfig,
    count: Int[Array, ""],
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Returns `mask_loss` of a device batch or a micro-batch of it.

    The points of a mask follow from its entry's draw, so that they do not depend on the layout of the batch.

    Args:
      count: Number of masks of the full batch.
    """
    draws = jnp.broadcast_to(masks.draws[..., None], masks.positions.shape).reshape(-1)
    places = jnp.broadcast_to(jnp.arange(masks.positions.shape[-1]), masks.positions.shape).reshape(-1)
    keys = jax.vmap(lambda draw, place: jax.random.fold_in(jax.random.key(draw), place))(draws, places)
    flat, targets = (maps.reshape(-1, *maps.shape[3:]) for maps in (logits, masks.unpacked()))
    return mask_loss(flat, targets, masks.valid.reshape(-1), config, keys, count=count)
