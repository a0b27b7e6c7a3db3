"""A folder to read episodes in: opens from disk by double click, without network or server.

    index.html            title, summary, figures, and where the episodes appear
    assets/               style and scripts
    data/index.js         a row an episode
    data/000.js, ...      the episodes, loaded when one of them is asked for
    images/<sha256>.png   every image once, as JPEG (.jpg) where it is large; only where images are asked for
    images/<sha256>-<width>x<height>.png   the same as the model saw it, where that is much smaller
    figures/
    episodes.csv, .json   the rows, for spreadsheets and scripts

or all of that in one `index.html`. What a model wrote reaches the page as text nodes only.

Images may be patients', so that a report leaves them out, with a frame for the boxes in their place, unless its caller asks
for them: the quickstart does for its phantoms, other commands with --show_images.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2

from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.episode_table import as_csv, as_json, keep_facets
from vitar_jax.evaluation.report_episode import Files, Pieces, episode, row
from vitar_jax.evaluation.report_files import FolderFiles, SinglePage, call, whole
from vitar_jax.evaluation.rules import RULES
from vitar_jax.evaluation.summary import summary_table

SHARD = 64  # episodes in a data file
MOST_IN_A_PAGE = 200  # episodes of a report of one file
# In the order in which they build on each other.
SCRIPTS = ("dom", "data", "pictures", "tokens", "episode", "group", "list", "filters", "keys", "main")


@dataclass(frozen=True)
class ReportSection:
    """A named set of trajectories, such as "two looks, after GRPO"; read once, in order.

    Attributes:
      rule: Name of the rule that marks answers as right or wrong.
      marks: How correct each sample's answer is under it, from 0 to 1, or None. If None, answers are marked by `exact`.
    """

    name: str
    trajectories: Iterable[Trajectory]
    rule: str = str(RULES["exact"])
    marks: Mapping[str, float | None] | None = None

    def correct(self, trajectory: Trajectory) -> float | None:
        """How correct an answer is, from 0 to 1; None where the rule does not score it."""
        if self.marks is not None:
            return self.marks.get(trajectory.sample_id)
        return float(exact_match(trajectory.predicted_answer, trajectory.answer))


def write_report(
    directory: Path,
    sections: Sequence[ReportSection],
    *,
    title: str,
    summary: Mapping[str, Mapping[str, object]] | None = None,
    figures: Sequence[Path] = (),
    pieces: Pieces | None = None,
    images: bool = False,
    single_file: bool = False,
) -> Path:
    """Writes the report into `directory` and returns its `index.html`.

    Args:
        summary: the rows of the table on top, see `summary_table`.
        figures: image files that are copied into the report.
        pieces: the text of each token (`Chat.pieces`); without it, tokens are not shown.
        images: whether the episodes' images may be seen by whoever gets the report.
        single_file: puts all into `index.html`.

    Raises:
        DataError: a figure is missing.
        ConfigError: more than `MOST_IN_A_PAGE` episodes for a single file; or the directory holds trajectories.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written: Files = SinglePage() if single_file else FolderFiles(directory, images=images)
    scripts = [written.script(f"assets/{name}.js", _asset(f"{name}.js")) for name in SCRIPTS[:-1]]
    slugs: list[str] = []
    for section in sections:
        slugs.append(_unique(_slug(section.name), slugs))
    named = [{"slug": slug, "name": section.name, "rule": section.rule} for slug, section in zip(slugs, sections, strict=True)]
    rows: list[dict[str, Any]] = []
    places: list[tuple[int, int, int]] = []  # of each row: section, shard, place in it
    keys: set[str] = set()
    for shard, batch in enumerate(_batches(sections)):
        if single_file and len(rows) + len(batch) > MOST_IN_A_PAGE:
            raise ConfigError(f"{directory}: a report of a single file has at most {MOST_IN_A_PAGE} episodes; these are more")
        marks = [sections[number].correct(trajectory) for number, trajectory in batch]
        episodes = [
            episode(trajectory, correct, sections[number].rule, written if images else None, pieces)
            for (number, trajectory), correct in zip(batch, marks, strict=True)
        ]
        scripts += written.on_demand(f"data/{shard:03d}.js", call("shard", shard, episodes))
        for place, (number, trajectory) in enumerate(batch):
            key = _unique(f"{slugs[number]}/{trajectory.sample_id}/{trajectory.member}", keys)
            keys.add(key)
            rows.append({"key": key, "section": sections[number].name, **row(trajectory, marks[place], sections[number].rule)})
            places.append((number, shard, place))
    index = {"sections": named, "facets": keep_facets(rows), "rows": rows, "places": places}
    scripts += [*written.images(), written.script("data/index.js", call("index", index))]
    scripts.append(written.script("assets/main.js", _asset("main.js")))

    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_asset("index.html.j2").decode())
    html = template.render(
        title=title,
        episodes=len(rows),
        sections=named,
        table=summary_table(summary or {}),
        rules=sorted({section.rule for section in sections}),
        slugs={section["name"]: section["slug"] for section in named},
        figures=[_add_figure(written, number, path) for number, path in enumerate(figures)],
        downloads={
            "CSV": ("episodes.csv", written.add("episodes.csv", as_csv(rows))),
            "JSON": ("episodes.json", written.add("episodes.json", as_json(rows))),
        },
        style=written.style("assets/report.css", _asset("report.css")),
        scripts=scripts,
        policy=written.policy,
    )
    page = directory / "index.html"
    page.write_text(whole(html), "utf-8")
    return page


def _batches(sections: Sequence[ReportSection]) -> Iterator[list[tuple[int, Trajectory]]]:
    """The trajectories with the numbers of their sections, `SHARD` at a time."""
    stream = ((number, trajectory) for number, section in enumerate(sections) for trajectory in section.trajectories)
    while batch := list(islice(stream, SHARD)):
        yield batch


def _asset(name: str) -> bytes:
    return (files("vitar_jax.evaluation") / "report_assets" / name).read_bytes()


def _add_figure(written: Files, number: int, path: Path) -> dict[str, str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such figure") from None
    address = written.add(f"figures/{number}-{_slug(path.stem)}{path.suffix.lower()}", content)
    return {"address": address, "caption": re.sub(r"[-_]+", " ", path.stem)}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "untitled"


def _unique(name: str, taken: Container[str]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
