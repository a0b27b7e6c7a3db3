"""Left and right: named sides in the texts of a sample, and its regions in a mirrored image."""

import re
from dataclasses import replace

from vitar_jax.episodes.regions import Box, Mask, Region
from vitar_jax.episodes.sample import Demonstration, Sample

# Also leftmost, rightwards and right-sided; not upright or lefts. "Right" is always read as a side.
_SIDE = re.compile(r"\b(left|right)(?=(?:most|wards?|sided|hand)?\b)", re.IGNORECASE)


def swap_sides(text: str) -> str:
    """Returns the text with left and right exchanged, in the case in which they are written."""

    def other(found: re.Match[str]) -> str:
        swapped = "right" if found[0].lower() == "left" else "left"
        return swapped.upper() if found[0].isupper() else swapped.capitalize() if found[0][0].isupper() else swapped

    return _SIDE.sub(other, text)


def names_side(sample: Sample) -> bool:
    """Returns whether the question, an option or a correct answer names a side."""
    texts = (sample.question, *sample.gold_answers, *(text for _, text in sample.options))
    return any(map(_SIDE.search, texts))


def with_sides_swapped(sample: Sample) -> Sample:
    """Returns the sample with left and right exchanged in its question, options and correct answers."""
    return replace(
        sample,
        question=swap_sides(sample.question),
        answer=swap_sides(sample.answer),
        options=tuple((letter, swap_sides(text)) for letter, text in sample.options),
        answers=tuple(map(swap_sides, sample.answers)),
    )


def mirrored(region: Region, width: int) -> Region:
    """Returns a region as it lies in the image mirrored left to right.

    Args:
      width: Width of the image in the region's frame; ignored in frame "normalized".
    """
    if isinstance(region, Mask):
        return Mask.of(region.array[:, ::-1], region.frame)
    whole = 1 if region.frame == "normalized" else width
    return Box(whole - region.x2, region.y1, whole - region.x1, region.y2, region.frame)


def mirrored_demonstration(demonstration: Demonstration, widths: tuple[int, ...]) -> Demonstration | None:
    """Returns a demonstration on mirrored images, or None if it has a region in pixels of an image that a tool makes.

    Args:
      widths: Width of each image of the sample, in pixels.
    """
    looks = []
    for look in demonstration.looks:
        own = look.image < len(widths)
        if any(not _follows(region, own) for region in look.regions):
            return None
        width = widths[look.image] if own else 1
        looks.append(replace(look, regions=tuple(mirrored(region, width) for region in look.regions)))
    return replace(demonstration, looks=tuple(looks))


def _follows(region: Region, own: bool) -> bool:
    """Returns whether the width of a region's frame is known: for a mask always, for a box of the sample's `own` images."""
    return isinstance(region, Mask) or region.frame == "normalized" or (own and region.frame == "original")
