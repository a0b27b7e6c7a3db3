"""Reports of a run: a table of counts, a page of sample rows that opens from disk, and on request the names of files."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from data_prep.curation.marked import marked
from data_prep.curation.rows import Admitted, Outcome
from vitar_jax.episodes.regions import bounding_box
from vitar_jax.episodes.sample import Sample

SHOWN_PIXELS = 480  # longer side of the images on the page
SHOWN_ROWS = 24  # rows of each file on the page
TITLES = {"questions": "Questions", "interactive": "Interactive examples", "traces": "Traces"}

Rows = Mapping[str, Sequence[Sample]]  # by the name of their file


def counts(
    rows: Rows, outcome: Outcome, admitted: Admitted, requests: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Returns the numbers of kept and lost items. `requests` holds the counts of each client."""
    return {
        "rows": {name: len(some) for name, some in rows.items()},
        "kinds": dict(sorted(Counter(row.metadata["kind"] for some in rows.values() for row in some).items())),
        "rejected": dict(outcome.rejected.most_common()),
        "failed": dict(outcome.failed.most_common()),
        "malformed": {"records": len(admitted.malformed)},
        "ignored": {"files": len(admitted.ignored)},
    } | {f"requests to the {name}": dict(sorted(what.items())) for name, what in requests.items()}


def table(counted: Mapping[str, Mapping[str, int]]) -> str:
    """Formats the counts for printing."""
    wide = max(len(name) for group in counted.values() for name in group)
    lines = []
    for title, group in counted.items():
        lines += [title, *(f"  {name:<{wide}}  {number:>7,}" for name, number in group.items())] if group else []
    return "\n".join(lines)


def losses(counted: Mapping[str, Mapping[str, int]]) -> str:
    """Returns why rows are missing, in one line."""
    groups = ("rejected", "failed", "malformed")
    reasons = [f"{n:,} {group}: {what}" for group in groups for what, n in counted[group].items() if n]
    return "; ".join(reasons) or "the images show no object"


def write_key(file: Path, admitted: Admitted) -> None:
    """Writes the names that are left out of the output: the source of each image, malformed records and ignored files."""
    key = {
        "images": {f"{one.sha256}.png": str(one.image) for one in admitted.detections},
        "malformed": admitted.malformed,
        "ignored": [str(path) for path in admitted.ignored],
    }
    file.write_text(json.dumps(key, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_sheet(directory: Path, rows: Rows) -> Path:
    """Writes a page of the first rows of each file, with their boxes or marked regions drawn. Returns its index.html."""
    directory.mkdir(parents=True, exist_ok=True)
    sections = [(TITLES[name], [_card(row, directory) for row in some[:SHOWN_ROWS]]) for name, some in rows.items()]
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files("data_prep.curation") / "sheet.html.j2").read_text("utf-8"))
    page = directory / "index.html"
    page.write_text(template.render(sections=sections), "utf-8")
    return page


def _card(row: Sample, directory: Path) -> dict[str, Any]:
    """Writes the image of a row and returns the values that the page shows."""
    shown = row.demonstration
    look = shown.looks[0] if shown and shown.looks else None
    boxes = tuple(one.mask.box for one in row.objects) or row.boxes
    steps = [("Reasoning", shown.answer.thought), ("Answer", shown.answer.text)] if shown else []
    if shown and look:
        boxes = tuple(map(bounding_box, look.regions))
        action = f"{look.tool} {[[round(edge) for edge in box.xyxy] for box in boxes]}"
        steps = [("Thought", look.thought), ("Action", action), ("Rethought", shown.answer.thought)]
    image = marked(Path(str(row.images[0])), boxes, SHOWN_PIXELS)
    image.save(directory / f"{row.sample_id}.jpg", quality=90)
    return {"row": row, "image": f"{row.sample_id}.jpg", "size": image.size, "steps": steps}
