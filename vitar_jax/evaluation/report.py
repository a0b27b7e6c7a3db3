"""A folder to read episodes in: opens from disk by double click, without network or server.

    index.html            title, summary, figures, and where the episodes appear
    assets/               style and script
    data/index.js         one short entry an episode
    data/<section>-*.js   the episodes, loaded when one of them is asked for
    images/<sha256>.png   every image once
    images/<sha256>-<width>x<height>.png   the same as the model saw it, where that is much smaller
    figures/

Browsers refuse to fetch JSON for a page opened from disk but run scripts from there, so data are scripts. What a
model wrote reaches the page as text nodes only.
"""

import json
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from vitar_jax.episodes.trajectory import Trajectory, TrajectoryImage, Turn
from vitar_jax.errors import DataError
from vitar_jax.evaluation.scoring import is_correct
from vitar_jax.evaluation.summary import summary_table
from vitar_jax.evaluation.views import as_seen

SHARD = 64  # episodes in a data file


@dataclass(frozen=True)
class ReportSection:
    """A named set of trajectories, say "two looks, after GRPO"; read once, in order."""

    name: str
    trajectories: Iterable[Trajectory]


def write_report(
    directory: Path,
    sections: Sequence[ReportSection],
    *,
    title: str,
    summary: Mapping[str, Mapping[str, object]] | None = None,
    figures: Sequence[Path] = (),
) -> Path:
    """Writes the report into `directory` and returns its `index.html`.

    Args:
        summary: the rows of the table on top, say `{section name: scores.to_json()}`.
        figures: image files that are copied into the report.

    Raises:
        DataError: a figure is missing.
    """
    for name in ("assets", "data", "images", "figures"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    assets = files("vitar_jax.evaluation") / "report_assets"
    for name in ("report.css", "report.js"):
        (directory / "assets" / name).write_text((assets / name).read_text("utf-8"), "utf-8")

    entries: list[dict[str, Any]] = []
    slugs: list[str] = []
    keys: set[str] = set()
    for number, section in enumerate(sections):
        slugs.append(_unique(_slug(section.name), slugs))
        for part, trajectories in enumerate(_batches(section.trajectories, SHARD)):
            shard = f"{slugs[-1]}-{part:04d}"
            episodes = [_episode(trajectory, directory / "images") for trajectory in trajectories]
            _write_script(directory / "data" / f"{shard}.js", {"shard": shard, "episodes": episodes})
            for place, episode in enumerate(episodes):
                key = _unique(f"{slugs[-1]}/{episode['sample_id']}/{episode['member']}", keys)
                keys.add(key)
                where = {"key": key, "section": number, "shard": shard, "place": place}
                entries.append(where | _entry(episode))
    named = [{"slug": slug, "name": section.name} for slug, section in zip(slugs, sections, strict=True)]
    _write_script(directory / "data" / "index.js", {"sections": named, "entries": entries})

    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((assets / "index.html.j2").read_text("utf-8"))
    page = directory / "index.html"
    html = template.render(
        title=title,
        episodes=len(entries),
        sections=named,
        table=summary_table(summary or {}),
        slugs={section["name"]: section["slug"] for section in named},
        figures=[_copy_figure(directory, number, path) for number, path in enumerate(figures)],
    )
    page.write_text(_whole(html), "utf-8")
    return page


def _episode(trajectory: Trajectory, folder: Path) -> dict[str, Any]:
    """All that the page shows of a trajectory; its images are written on the way."""
    return {
        "sample_id": trajectory.sample_id,
        "member": trajectory.member,
        "stream": trajectory.stream,
        "policy_version": int(trajectory.policy_version),
        "protocol": trajectory.protocol,
        "question": trajectory.question,
        "options": trajectory.options,
        "answer": trajectory.answer,
        "predicted": trajectory.predicted_answer,
        "correct": is_correct(trajectory),
        "end_reason": trajectory.end_reason,
        "rewards": [(name, float(value)) for name, value in (trajectory.rewards or {}).items()],
        "gold": [_numbers(box.xyxy) for box in trajectory.boxes],
        "images": [_image(image, folder) for image in trajectory.images],
        "turns": [_turn(turn, len(trajectory.images)) for turn in trajectory.turns],
    }


def _turn(turn: Turn, images: int) -> dict[str, Any]:
    on = turn.acted_on
    return {
        "text": turn.text,
        "thought": turn.thought,
        # As text: keys that a model chose never become keys of a script.
        "action": None if turn.action is None else json.dumps(turn.action, ensure_ascii=False),
        "on": on if on < images else 0,
        "boxes": [_numbers(box) for box in turn.boxes_original],
        "error": turn.error,
        "image": turn.image,
    }


def _entry(episode: dict[str, Any]) -> dict[str, Any]:
    """What the list shows of an episode, and what can be filtered without loading it."""
    return {
        "sample_id": episode["sample_id"],
        "member": episode["member"],
        "correct": episode["correct"],
        "predicted": episode["predicted"],
        "answer": episode["answer"],
        "error": any(turn["error"] for turn in episode["turns"]),
    }


def _image(image: TrajectoryImage, folder: Path) -> dict[str, Any]:
    (width, height), (seen_height, seen_width) = image.pixels.size, image.size
    name, seen = f"{image.sha256}.png", None
    _save_once(image.pixels, folder / name)
    # Otherwise the page would show details that the model could not see.
    if 2 * seen_width * seen_height < width * height:
        seen = f"{image.sha256}-{seen_width}x{seen_height}.png"
        _save_once(as_seen(image), folder / seen)
    return {
        "file": name,
        "width": width,
        "height": height,
        "seen": seen,
        "seen_size": (seen_width, seen_height),
        "turn": image.turn,
    }


def _save_once(pixels: Image.Image, path: Path) -> None:
    if not path.exists():
        partial = path.with_suffix(".partial")
        pixels.save(partial, format="PNG", compress_level=1)
        partial.replace(path)


def _write_script(path: Path, record: dict[str, Any]) -> None:
    """`record` as a script, with no "<" that could end it or start a comment, and no line separators."""
    literal = _whole(json.dumps(record, separators=(",", ":"), ensure_ascii=False))
    for character in "<\u2028\u2029":
        literal = literal.replace(character, f"\\u{ord(character):04x}")
    path.write_text(f"(window.report = window.report || []).push({literal});\n", "utf-8")


def _whole(text: str) -> str:
    """`text` with U+FFFD for lone surrogates: JSON can name them, but UTF-8 cannot hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _copy_figure(directory: Path, number: int, path: Path) -> dict[str, str]:
    name = f"{number}-{_slug(path.stem)}{path.suffix.lower()}"
    try:
        shutil.copyfile(path, directory / "figures" / name)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such figure") from None
    return {"file": f"figures/{name}", "caption": re.sub(r"[-_]+", " ", path.stem)}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "untitled"


def _unique(name: str, taken: Container[str]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _numbers(box: Iterable[float]) -> list[float]:
    return [float(value) for value in box]


def _batches(items: Iterable[Trajectory], size: int) -> Iterator[list[Trajectory]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
