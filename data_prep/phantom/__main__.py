"""Writes held-out phantoms as PNG files: python -m data_prep.phantom --output=DIR"""

import argparse
import json
from pathlib import Path
from typing import Any

from data_prep.phantom.pictures import KINDS, SIZE
from data_prep.phantom.samples import source
from vitar_jax.processing.files import open_image
from vitar_jax.runtime.user_errors import one_line_errors


@one_line_errors(paths=True)
def main() -> None:
    """Writes held-out phantoms as PNG files, prints their contents, and writes COCO annotations to annotations.json."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.phantom", description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path("phantoms"), help="output directory (default: phantoms)")
    parser.add_argument("--count", type=int, default=4, help="number of phantoms (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantoms (default: 0)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    looks = source("test", seed=arguments.seed, length=arguments.count)
    coco: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": number, "name": kind} for number, kind in enumerate(KINDS)]
    for i in range(len(looks)):
        sample = looks[i]
        path = arguments.output / f"phantom_{i}.png"
        open_image(sample.images[0]).save(path)
        x, y = sample.metadata["centre"]
        print(f"{path}: {sample.metadata['kind']} ({sample.answer}) at {x:.0f}, {y:.0f}")
        (box,) = sample.boxes
        coco["images"].append({"id": i, "file_name": path.name, "width": SIZE, "height": SIZE})
        bbox = [box.x1, box.y1, box.width, box.height]
        category = KINDS.index(sample.metadata["kind"])
        coco["annotations"].append({"id": i, "image_id": i, "category_id": category, "bbox": bbox})
    (arguments.output / "annotations.json").write_text(json.dumps(coco, indent=1) + "\n")


if __name__ == "__main__":
    main()
