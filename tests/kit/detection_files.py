"""One detection data set, written in each of the formats."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Boxes = Mapping[str, Sequence[tuple[str, Sequence[float]]]]  # by image: (class name, xyxy)


def write(directory: Path, images: Path, boxes: Boxes, kind: str) -> list[str]:
    """Writes the annotations of a kind, and returns the flags that name them."""
    names = sorted({name for objects in boxes.values() for name, _ in objects})
    sizes = {image: Image.open(images / image).size for image in boxes}
    place = directory / kind
    place.mkdir(parents=True)
    classes = directory / f"{kind}_classes.txt"
    classes.write_text("".join(f"{name}\n" for name in ["background"] * (kind == "masks") + names))
    flags = [f"--format={kind}", f"--annotations={place}", f"--images={images}", f"--classes={classes}"]
    if kind == "coco":
        annotations = [
            {"image_id": image, "category_id": names.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for image, objects in boxes.items()
            for name, (x1, y1, x2, y2) in objects
        ]
        listed = [{"id": image, "file_name": image, "width": w, "height": h} for image, (w, h) in sizes.items()]
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        content = {"images": listed, "annotations": annotations, "categories": categories}
        (place / "boxes.json").write_text(json.dumps(content))
        flags[1] += "/boxes.json"
    for image, objects in boxes.items():
        width, height = sizes[image]
        file = place / image
        if kind == "voc":
            things = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for name, (x1, y1, x2, y2) in objects
            )
            size = f"<size><width>{width}</width><height>{height}</height><depth>1</depth></size>"
            xml = f"<annotation><filename>{image}</filename>{size}{things}</annotation>"
            file.with_suffix(".xml").write_text(xml)
        elif kind == "yolo" and objects:
            lines = [
                f"{names.index(name)} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
                for name, (x1, y1, x2, y2) in objects
            ]
            file.with_suffix(".txt").write_text("\n".join(lines) + "\n")
        elif kind == "masks":
            mask = np.zeros((height, width), np.uint8)
            for name, (x1, y1, x2, y2) in objects:
                mask[int(y1) : int(y2), int(x1) : int(x2)] = names.index(name) + 1
            Image.fromarray(mask).save(file.with_suffix(".png"))
    return flags


def lesions(test_data: Path) -> tuple[Path, list[dict]]:
    """The folder of slices, and what boxes.json says of each."""
    folder = test_data / "pyradiomics_lesions"
    return folder / "slices", json.loads((folder / "boxes.json").read_text())


def lesion_mask(test_data: Path, case: str, z: int) -> np.ndarray:
    """A slice of the experts' own mask, from its NRRD file."""
    head, _, body = (test_data / "pyradiomics_lesions" / f"{case}_label.nrrd").read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line and line[0] != "#")
    across, down, slices = map(int, fields["sizes"].split())
    values = np.frombuffer(gzip.decompress(body), {"int": "<i4"}[fields["type"]])
    return values.reshape(slices, down, across)[z].astype(np.uint8)
