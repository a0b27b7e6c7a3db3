"""Saves masks of episodes for other programs: a PNG of each, and a JSON file in COCO's form with run lengths and sizes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging
from PIL import Image

from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ImageError
from vitar_jax.processing.masks import longest_diameter
from vitar_jax.processing.sources import image_name
from vitar_jax.processing.spacing import Spacing, read_spacing
from vitar_jax.runtime.crash_safe import atomic_replace

CATEGORIES = [{"id": 1, "name": "object"}]  # names of objects are per question, so they are no categories


@dataclass(frozen=True)
class Played:
    """An episode whose masks are to be saved.

    Attributes:
      number: Number of the episode among those of the JSON file, from 1.
      masks: Entries of the `[SEG]` tokens of each turn.
    """

    number: int
    sample: Sample
    masks: Sequence[Sequence[ObjectMask]]


@dataclass(frozen=True)
class SavedMask:
    """The line that describes a `[SEG]` token, and the PNG of its mask, or None if it has none.

    Attributes:
      turn: Index of the turn.
    """

    turn: int
    words: str
    path: Path | None


def save_masks(path: Path, episodes: Iterable[Played]) -> dict[int, list[SavedMask]]:
    """Writes the masks of episodes: a PNG of each mask in a folder beside `path`, and a JSON file that pycocotools reads.

    A PNG has the size of image 0, and is 255 inside of the mask and 0 outside. Per mask the JSON file has, beside COCO's own
    keys, its object, part of the turn, predicted IoU, turn (from 1), PNG and longest diameter (pixels, `longest_diameter`), and
    `area_mm2` and `diameter_mm`, which are null unless a DICOM file states the spacing of its pixels.

    Args:
      path: The JSON file. It is not written if there is no mask.

    Returns:
      What was saved of each episode with `[SEG]` tokens, by its number, in order.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    saved: dict[int, list[SavedMask]] = {}
    for played in episodes:
        entries = [(turn, place, one) for turn, masks in enumerate(played.masks) for place, one in enumerate(masks, start=1)]
        shape = next((one.mask.shape for _, _, one in entries if one.mask is not None), None)
        spacing = None if shape is None else _spacing(played.sample)
        if shape is not None:
            images.append(_image(played, shape, spacing))
        for turn, place, one in entries:
            file, sizes = None, {}
            if one.mask is not None:
                file = path.with_suffix("") / f"{played.number}_turn{turn + 1}_mask{place}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(one.mask.array).convert("L").save(file)
                sizes = measured(one.mask, spacing)
                where = {"image_id": played.number, "turn": turn + 1, "file_name": str(file.relative_to(path.parent))}
                annotations.append({"id": len(annotations) + 1, **where, **_annotation(one, one.mask), **sizes})
            words = _words(one, sizes, at_detector=spacing is not None and spacing.at_detector)
            saved.setdefault(played.number, []).append(SavedMask(turn, words if file is None else f"{words}: {file}", file))
    if annotations:
        with atomic_replace(path) as partial:
            partial.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return saved


def measured(mask: Mask, spacing: Spacing | None) -> dict[str, float | None]:
    """Returns area and longest diameter of a mask, in pixels and in mm; None in mm without a spacing."""
    array = mask.array
    sizes = {"area": mask.area, "diameter": longest_diameter(array), "area_mm2": None, "diameter_mm": None}
    if spacing is None:
        return sizes
    return sizes | {
        "area_mm2": mask.area * spacing.rows * spacing.columns,
        "diameter_mm": longest_diameter(array, rows=spacing.rows, columns=spacing.columns),
    }


def _spacing(sample: Sample) -> Spacing | None:
    image = sample.images[0]
    if isinstance(image, Image.Image):
        return None
    try:
        return read_spacing(image)
    except (ImageError, OSError) as error:
        logging.warning("%s: no sizes in mm: %s", image_name(image), error)
        return None


def _image(played: Played, shape: tuple[int, int], spacing: Spacing | None) -> dict[str, Any]:
    image = played.sample.images[0]
    return {
        "id": played.number,
        "file_name": "" if isinstance(image, Image.Image) else image_name(image),
        "height": shape[0],
        "width": shape[1],
        "sample_id": played.sample.sample_id,
        "pixel_height_mm": None if spacing is None else spacing.rows,
        "pixel_width_mm": None if spacing is None else spacing.columns,
        "mm_at_detector": spacing is not None and spacing.at_detector,
    }


def _annotation(one: ObjectMask, mask: Mask) -> dict[str, Any]:
    box = mask.box if mask.area else None
    return {
        "category_id": 1,
        "segmentation": {"size": mask.shape, "counts": mask.counts.decode("ascii")},
        "bbox": [0.0] * 4 if box is None else [box.x1, box.y1, box.width, box.height],
        "iscrowd": 0,
        "name": one.name,
        "part": one.part,
        "score": one.score,
    }


def _words(one: ObjectMask, sizes: Mapping[str, float | None], *, at_detector: bool) -> str:
    """Returns a line about a `[SEG]` token."""
    name = f"mask of {one.name or 'an unnamed object'}{f' ({one.part})' if one.part else ''}"
    if one.mask is None:
        return f"{name}: none"
    if not one.mask.area:
        return f"{name}: no pixel"
    said = f"{name}: {sizes['area']:.0f} px, longest diameter {sizes['diameter']:.1f} px"
    if sizes["area_mm2"] is not None:
        said += f"; {sizes['area_mm2']:.1f} mm2, longest diameter {sizes['diameter_mm']:.1f} mm"
        said += " at the detector" if at_detector else ""
    return said
