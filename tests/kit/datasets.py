"""Published and built data sets, and one detection data set in each format."""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from data_prep import built
from data_prep.building.records import Record
from data_prep.reading.published import Published
from vitar_jax.episodes.sample import Sample
from vitar_jax.processing.files import open_image

Reader = Callable[[Published], Mapping[str, Iterable[Record]]]


def read_back(data_dir: Path, name: str, split: str) -> list[Sample]:
    """Returns all samples of a built split."""
    samples = built.source(split, set=name, data_dir=str(data_dir))
    read = [samples[n] for n in range(len(samples))]
    assert samples.ids() == [sample.sample_id for sample in read]
    return read


def assert_round_trip(name: str, read: Reader, source: Path, data_dir: Path) -> None:
    """Asserts that the built set equals the reader's records, split by split: every field, and the pixels."""
    splits = read(Published(source))
    assert list(card(data_dir, name)["splits"]) == list(splits)
    for split, records in splits.items():
        for record, back in zip(records, read_back(data_dir, name, split), strict=True):
            assert replace(back, images=()) == record.sample
            published = [open_image(image.read()) for image in record.images]
            assert [(image.size, image.tobytes()) for image in back.images] == [(p.size, p.tobytes()) for p in published]


def parquet(file: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> None:
    """Writes a Parquet file in the form that `datasets` writes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)


def card(data_dir: Path, name: str) -> dict[str, Any]:
    """Returns the card of a set that was built in one version."""
    (path,) = (data_dir / name).glob("*/card.json")
    return json.loads(path.read_text())


Boxes = Mapping[str, Sequence[tuple[str, Sequence[float]]]]  # by image: (class name, xyxy)


def write_boxes(directory: Path, images: Path, boxes: Boxes, kind: str) -> list[str]:
    """Writes annotations in the format `kind`, and returns the flags that name them."""
    names = sorted({name for objects in boxes.values() for name, _ in objects})
    sizes = {image: open_image(images / image).size for image in boxes}
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
    """Returns the folder of slices, and the entries of boxes.json that describe them."""
    folder = test_data / "pyradiomics_lesions"
    return folder / "slices", json.loads((folder / "boxes.json").read_text())


def lesion_mask(test_data: Path, case: str, z: int) -> np.ndarray:
    """Returns a slice of the experts' own mask, from its NRRD file."""
    head, _, body = (test_data / "pyradiomics_lesions" / f"{case}_label.nrrd").read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line and line[0] != "#")
    across, down, slices = map(int, fields["sizes"].split())
    values = np.frombuffer(gzip.decompress(body), {"int": "<i4"}[fields["type"]])
    return values.reshape(slices, down, across)[z].astype(np.uint8)
