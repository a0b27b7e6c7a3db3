"""Small smears in the layout of BCCD: twelve pictures with painted cells, of which each third has no platelet."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.kit.datasets import write_boxes
from tests.kit.files import write_files

SIZE = (160, 120)
SIDES = {"Platelets": 10, "RBC": 24, "WBC": 40}
COLOURS = {"Platelets": (40, 160, 90), "RBC": (220, 150, 150), "WBC": (90, 40, 140)}
LISTED = {"train": range(6), "val": range(6, 9), "test": range(9, 12)}


def published(directory: Path, changes: Mapping[str, str | bytes | tuple[str, str]] | None = None) -> Path:
    """Writes the folder. A change is the new content of a file, or a pattern and what replaces it once."""
    images = directory / "JPEGImages"
    images.mkdir(parents=True)
    boxes = {f"smear_{number}.jpg": _cells(number) for number in range(12)}
    for name, cells in boxes.items():
        picture = Image.new("RGB", SIZE, (230, 220, 225))
        for kind, box in cells:
            ImageDraw.Draw(picture).ellipse(box, fill=COLOURS[kind])
        picture.save(images / name)
    write_boxes(directory, images, boxes, "voc")
    shutil.move(directory / "voc", directory / "Annotations")
    (directory / "voc_classes.txt").unlink()
    lists = {f"ImageSets/Main/{name}.txt": "".join(f"smear_{n}\n" for n in some) for name, some in LISTED.items()}
    write_files(directory, lists)
    for name, change in (changes or {}).items():
        file = directory / name
        new = re.sub(*change, file.read_text(), count=1) if isinstance(change, tuple) else change
        file.write_bytes(new if isinstance(new, bytes) else new.encode())
    return directory


def _cells(number: int) -> list[tuple[str, tuple[int, ...]]]:
    """Draws cells at distinct places of a grid, so that none touches another or a border of the grid."""
    random = np.random.default_rng(number)
    kinds = ["WBC"] * (number % 2 + number % 3 // 2) + ["RBC"] * 2 + ["Platelets"] * (number % 3)
    cells = []
    for kind, place in zip(kinds, random.permutation(12), strict=False):
        x, y, side = 40 * (place % 4) + 20, 40 * (place // 4) + 20, SIDES[kind]
        cells.append((kind, tuple(int(edge) for edge in (x - side / 2, y - side / 2, x + side / 2, y + side / 2))))
    return cells
