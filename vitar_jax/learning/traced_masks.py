"""Chooses the masks that demonstrations and the answers of episodes train on."""

import numpy as np
from jaxtyping import Int

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.trajectory import GOLD_IMAGE, Trajectory
from vitar_jax.errors import DataError
from vitar_jax.processing.mask_targets import SCALE, ExampleMasks, MaskShape
from vitar_jax.processing.masks import best_pairs, ground_pixels, iou_matrix, nearest


def traced_masks(episode: Episode, rng: np.random.Generator, shape: MaskShape) -> ExampleMasks | None:
    """Returns masks of a demonstration, chosen at random; None if it has no `[SEG]` token.

    The mask of a token is that of the object mentioned before it.

    Raises:
      DataError: If a `[SEG]` token has no object or its object no mask, if an object with a mask is not mentioned where the
        sample says that it is shown, or if a mask does not fit the image.
    """
    if not episode.protocol.makes_masks:
        return None
    sample = episode.sample
    made = [one for turn in episode.turns for one in turn.masks]
    masks, where = {one.name: one.mask for one in sample.objects}, f"sample {sample.sample_id}"
    if nameless := [one for one in made if one.name not in masks]:
        name = nameless[0].name
        found = "has a [SEG] without an object" if name is None else f"mentions <{name}>, which has no mask"
        raise DataError(f"{where}: its trace {found}")
    mentioned = {(one.part, one.name) for one in made}
    for one in sample.objects:
        for part, needed in (("reasoning", one.in_reasoning), ("answer", one.in_answer)):
            if needed and (part, one.name) not in mentioned:
                raise DataError(f"{where}: <{one.name}> has a mask, but its trace's {part} does not mention it")
    if not made:
        return None
    chosen = [made[place] for place in choose_masks(len(made), shape.masks, rng)]
    image, side = episode.images[GOLD_IMAGE].pixels, shape.side // SCALE
    targets = np.array([_fitted(masks[str(one.name)], image.size, side, f"{where}: <{one.name}>") for one in chosen])
    positions = np.array([one.token for one in chosen])
    return ExampleMasks(ground_pixels(image, shape.side), positions, targets, draw=int(rng.integers(2**32)))


def answered_masks(trajectory: Trajectory, rng: np.random.Generator, shape: MaskShape) -> ExampleMasks | None:
    """Returns the masks that an episode's answer learns from the sample's; None if either has none.

    Each mask of the answer learns the gold mask that the best one-to-one assignment by IoU gives it. A mask without one learns
    nothing.

    Raises:
      DataError: If a mask does not fit the image.
    """
    image, side = trajectory.images[GOLD_IMAGE].pixels, shape.side // SCALE
    made = [(one.token, one.mask) for turn in trajectory.turns for one in turn.masks if one.part == "answer" and one.mask]
    gold = [
        _fitted(one.mask, image.size, side, f"sample {trajectory.sample_id}: <{one.name}>")
        for one in trajectory.objects
        if one.in_answer
    ]
    if not made or not gold:
        return None
    predicted = np.array([nearest(mask.array, side, side) for _, mask in made])
    rows, columns = best_pairs(iou_matrix(predicted, np.array(gold)))
    chosen = choose_masks(len(rows), shape.masks, rng)
    positions = np.array([token for token, _ in made])[rows[chosen]]
    targets = np.array(gold)[columns[chosen]]
    return ExampleMasks(ground_pixels(image, shape.side), positions, targets, draw=int(rng.integers(2**32)))


def choose_masks(available: int, wanted: int, rng: np.random.Generator) -> Int[np.ndarray, " wanted"]:
    """Returns the numbers of the masks that a row trains on: a random subset, or all of them, repeated in order.

    As published, a row with fewer masks than `wanted` repeats them, so that every row has the same weight. A row without masks
    has none to choose.
    """
    if not available:
        return np.zeros(0, np.int64)
    if available > wanted:
        return rng.permutation(available)[:wanted]
    return np.arange(wanted) % available


def _fitted(mask: Mask, size: tuple[int, int], side: int, where: str) -> np.ndarray:
    """Returns a mask of an image of this (width, height) as a map of the loss."""
    if mask.frame == "original" and mask.shape != size[::-1]:
        (height, width), (wide, high) = mask.shape, size
        raise DataError(f"{where}: got run lengths of {width} x {height} pixels, expected the image's {wide} x {high}")
    return nearest(mask.array, side, side)
