"""Interventions: named changes of a sample that show what an answer depends on. Evaluations and probes use the same ones.

An intervention is a pure function from a sample to a sample, and always makes the same of a sample. A region of a sample lies
on image 0, so that interventions on regions leave further images as they are. `blur:4` is `blur` with the argument 4.

  blank             grey images of the same sizes
  wrong_image       the images of another sample, of another patient if the metadata names patients
  region_erased     the reference region in the mean colour of the rest of the image
  region_only       all but the reference region in the mean colour of what it replaces
  erased:PERCENT    as region_erased, only the innermost 33, 67 or 100 % of the region
  erase_elsewhere   as region_erased, a region of the same shape at another place
  flip, flip:swap   images mirrored left to right, and with `swap` also the sides that the texts name
  blur:SIGMA        all images blurred, with a standard deviation in pixels of the image

These act on what the model outlined in the reasoning of an earlier run, and on the reference for its reasoning:

  erase_masks       the model's masks, replaced by a blur of their surroundings
  keep_masks        all but the model's masks, blurred
  erase_elsewhere   as erase_masks, a region of the same shape at another place (with an earlier run)
  erase_gold        as erase_masks, with the reference masks of the reasoning

`mine.py:darken`, a function from a sample to a sample, is an intervention too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vitar_jax.data.evidence import (
    GREY,
    Pixels,
    blurred_away,
    blurred_outside,
    elsewhere,
    innermost,
    painted,
    per_channel,
    pixels_of,
    reasoning_masks,
    reference_regions,
)
from vitar_jax.data.sides import mirrored, mirrored_demonstration, names_side, with_sides_swapped
from vitar_jax.data.sources import Source
from vitar_jax.episodes.regions import Mask, Region
from vitar_jax.episodes.sample import PATIENT, Sample
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image, pixels_sha256
from vitar_jax.processing.sources import split_frame
from vitar_jax.runtime.registry import Registry, is_address

Regions = tuple[Region, ...]
NAMES_SIDE = "names_side"  # key of the metadata of flipped samples


@dataclasses.dataclass(frozen=True)
class Given:
    """What interventions draw on besides the sample.

    Attributes:
      source, count: The first `count` samples of `source` may lend their images.
      outlined: Masks on image 0 that the model outlined in the reasoning of an earlier run, by sample id. None without one.
    """

    source: Source = ()
    count: int = 0
    outlined: Mapping[str, tuple[Mask, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Intervention:
    """A registered intervention.

    Attributes:
      draw: Changes the images, given the sample, what `needs` returns, and the argument.
      needs: Finds what `draw` needs besides the sample, without opening an image. Raises DataError, which names the sample, if
        there is no such thing.
      restate: Changes what needs no image, given the sample and the argument.
      argument: The argument as a user writes it; empty if there is none.
      read: Returns the argument's value. Raises ValueError if it is invalid.
      outlined: Whether it acts on the masks of an earlier run: "never", "always", or "if given".
    """

    draw: Callable[..., Sample]
    needs: Callable[[Sample, Given], tuple[Any, ...]] = lambda sample, given: ()
    restate: Callable[..., Sample] = lambda sample, *argument: sample
    argument: str = ""
    read: Callable[[str], Any] = str
    outlined: Literal["never", "if given", "always"] = "never"


INTERVENTIONS: Registry[Intervention] = Registry("intervention")


@dataclasses.dataclass(frozen=True)
class Change:
    """An intervention with its argument, which can be applied in two steps: `restate`, then `draw`.

    Attributes:
      name: Name with the argument.
    """

    name: str
    intervention: Intervention
    argument: tuple[Any, ...]
    given: Given

    def __call__(self, sample: Sample) -> Sample:
        """Returns the changed sample.

        Raises:
          DataError: If the sample lacks what the intervention needs.
          ImageError: If an image cannot be read.
        """
        return self.draw(self.restate(sample))

    def restate(self, sample: Sample) -> Sample:
        """Returns the sample with its texts and metadata changed. Opens no image.

        Raises:
          DataError: If the sample lacks what the intervention needs.
        """
        self.intervention.needs(sample, self.given)
        return self.intervention.restate(sample, *self.argument)

    def draw(self, sample: Sample) -> Sample:
        """Returns a restated sample with its images changed, and with them its regions."""
        return self.intervention.draw(sample, *self.intervention.needs(sample, self.given), *self.argument)


def find_change(name: str, given: Given = Given()) -> Change:
    """Returns an intervention by its name and argument, such as `blank`, `blur:4` or `mine.py:darken`.

    Raises:
      ConfigError: If it does not exist, its argument is invalid, or it needs an earlier run that is not given.
    """
    head, colon, text = name.partition(":")
    if head not in INTERVENTIONS:
        if not is_address(name):
            raise INTERVENTIONS.unknown(name)
        function: Any = INTERVENTIONS.find(name)
        if not isinstance(function, Intervention) and not callable(function):
            raise ConfigError(f"intervention {name!r}: expected a function, got {function!r}")
        found = function if isinstance(function, Intervention) else Intervention(cast(Any, function))
        return Change(name, found, (), given)
    found = INTERVENTIONS[head]
    if found.outlined == "always" and given.outlined is None:
        raise ConfigError(f"{name}: needs the masks of an earlier run; name it with --of")
    if not colon and (not found.argument or found.argument.startswith("[")):
        return Change(name, found, (), given)
    try:
        if not found.argument:
            raise ValueError
        return Change(name, found, (found.read(text),), given)
    except ValueError:
        expected = f"{head}:{found.argument}" if found.argument else f"{head} without an argument"
        raise ConfigError(f"intervention {name!r}: expected {expected}") from None


def takes_outlines(name: str) -> bool:
    """Returns whether an intervention can act on the masks of an earlier run."""
    found = INTERVENTIONS.get(name)
    return found is not None and found.outlined != "never"


def label(name: str) -> str:
    """Returns a change's name as part of the name of a folder: blur-4, mine-darken."""
    place, _, last = name.rpartition(":")
    return f"{Path(place).stem}-{last}" if place else last


# --- all images ---------------------------------------------------------------------------------


def with_images(sample: Sample, change: Callable[[Image.Image, int], Image.Image]) -> Sample:
    """Returns the sample with each image, opened, replaced by the result of `change` on it and its index.

    Raises:
      ImageError: If an image cannot be read.
    """
    return replace(sample, images=tuple(change(open_image(image), place) for place, image in enumerate(sample.images)))


def blank(sample: Sample) -> Sample:
    """Replaces each image by a uniformly grey one of the same size."""
    return with_images(sample, lambda image, _: Image.new(image.mode, image.size, (GREY,) * len(image.getbands())))


def _borrow(sample: Sample, others: Sequence[Image.Image | str]) -> Sample:
    """Replaces the images by others in the sizes of its own, so that the number of tokens stays the same."""
    opened = list(map(open_image, others))

    def change(image: Image.Image, place: int) -> Image.Image:
        return per_channel(opened[place % len(opened)], lambda one: one.resize(image.size))

    return with_images(sample, change)


def _other_images(sample: Sample, given: Given) -> tuple[Sequence[Image.Image | str]]:
    """Returns the images of a sample that shares neither an image nor the patient with this one."""
    own = set(map(_content, sample.images))
    for index in np.random.default_rng(seed_of(sample)).permutation(given.count):
        other = given.source[index]
        if other.images and own.isdisjoint(map(_content, other.images)) and not _same_patient(sample, other):
            return (other.images,)
    known = any(key in sample.metadata for key in PATIENT)
    raise DataError(
        f"sample {sample.sample_id}: none of {given.count} samples has different images" + " of another patient" * known
    )


def _same_patient(one: Sample, other: Sample) -> bool:
    return any(one.metadata[key] == other.metadata.get(key) for key in PATIENT if key in one.metadata)


def _content(image: Image.Image | str) -> str:
    return split_frame(image)[0] if isinstance(image, str) else pixels_sha256(image)  # frames of one file are alike


def seed_of(sample: Sample) -> list[int]:
    """Returns the seed of a sample's random draws, which depends on its id alone."""
    return list(sample.sample_id.encode())


def _blur(sample: Sample, sigma: float) -> Sample:
    return with_images(sample, lambda image, _: per_channel(image, lambda one: one.filter(ImageFilter.GaussianBlur(sigma))))


def _sigma(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError
    return value


def _flip(sample: Sample, swap: bool = False) -> Sample:
    del swap
    changed = with_images(sample, lambda image, _: ImageOps.mirror(image))
    widths = tuple(image.width for image in changed.images if isinstance(image, Image.Image))

    def follow(region: Any) -> Any:
        return mirrored(region, widths[0])

    return replace(
        changed,
        boxes=tuple(map(follow, sample.boxes)),
        objects=tuple(replace(one, mask=follow(one.mask)) for one in sample.objects),
        demonstration=sample.demonstration and mirrored_demonstration(sample.demonstration, widths),
    )


def _say_sides(sample: Sample, swap: bool = False) -> Sample:
    """Flags whether the sample names a side, and swaps sides if asked."""
    flagged = replace(sample, metadata={**sample.metadata, NAMES_SIDE: names_side(sample)})
    return with_sides_swapped(flagged) if swap else flagged


def _swap(text: str) -> bool:
    if text != "swap":
        raise ValueError
    return True


INTERVENTIONS["blank"] = Intervention(blank)
INTERVENTIONS["wrong_image"] = Intervention(_borrow, _other_images)
INTERVENTIONS["blur"] = Intervention(_blur, argument="SIGMA, in pixels, of at least 0", read=_sigma)
INTERVENTIONS["flip"] = Intervention(_flip, restate=_say_sides, argument="[swap]", read=_swap)


# --- the region of a sample -----------------------------------------------------------------------


def _edited(sample: Sample, regions: Regions, edit: Callable[[Image.Image, Pixels], Image.Image]) -> Sample:
    """Changes image 0, given the pixels of the regions."""

    def change(image: Image.Image, place: int) -> Image.Image:
        return image if place else edit(image, pixels_of(regions, image.size, f"sample {sample.sample_id}"))

    return with_images(sample, change)


def _on_region(
    edit: Callable[..., Image.Image], regions: Callable[[Sample, Given], Regions], **attributes: Any
) -> Intervention:
    """Returns an intervention that edits image 0, given a region's pixels and the argument."""

    def draw(sample: Sample, found: Regions, *argument: Any) -> Sample:
        return _edited(sample, found, lambda image, where: edit(image, where, *argument))

    return Intervention(draw, lambda sample, given: (regions(sample, given),), **attributes)


def _reference(sample: Sample, given: Given) -> Regions:
    del given
    return reference_regions(sample)


def _outlined(sample: Sample, given: Given) -> Regions:
    found = (given.outlined or {}).get(sample.sample_id, ())
    if not found:
        raise DataError(f"sample {sample.sample_id}: the earlier run outlined nothing in its reasoning")
    return found


def _only(image: Image.Image, where: Pixels) -> Image.Image:
    return painted(image, ~where, ~where)


def _partly_erased(image: Image.Image, where: Pixels, percent: int) -> Image.Image:
    return painted(image, innermost(where, percent / 100), ~where)


def _percent(text: str) -> int:
    if not 1 <= int(text) <= 100:
        raise ValueError
    return int(text)


def _evidence(sample: Sample, given: Given) -> tuple[Regions, Callable[[Image.Image, Pixels], Image.Image]]:
    """Returns the evidence beside which an erasure elsewhere stands, and how that evidence is erased."""
    return (_reference(sample, given), painted) if given.outlined is None else (_outlined(sample, given), blurred_away)


def _erase_elsewhere(sample: Sample, regions: Regions, erase: Callable[[Image.Image, Pixels], Image.Image]) -> Sample:
    name = f"sample {sample.sample_id}"
    return _edited(sample, regions, lambda image, where: erase(image, elsewhere(where, seed_of(sample), name)))


INTERVENTIONS["region_erased"] = _on_region(painted, _reference)
INTERVENTIONS["region_only"] = _on_region(_only, _reference)
INTERVENTIONS["erased"] = _on_region(_partly_erased, _reference, argument="PERCENT, of 1 to 100", read=_percent)
INTERVENTIONS["erase_elsewhere"] = Intervention(_erase_elsewhere, _evidence, outlined="if given")
INTERVENTIONS["erase_masks"] = _on_region(blurred_away, _outlined, outlined="always")
INTERVENTIONS["keep_masks"] = _on_region(blurred_outside, _outlined, outlined="always")
INTERVENTIONS["erase_gold"] = _on_region(blurred_away, lambda sample, given: reasoning_masks(sample))
