"""Writes a report: a folder with a page to browse episodes, which opens from disk without a server or network access.

    index.html            the page: title, summary, figures and the viewer of episodes
    assets/               style and scripts
    data/index.js         one row per episode
    data/000.js, ...      shards of episodes, loaded on demand
    images/<sha256>.png   each image once (.jpg if it is large); only with images=True
    images/<sha256>-<width>x<height>.png   the image as the model saw it, if that is much smaller
    figures/
    episodes.csv, .json   the rows, for spreadsheets and scripts

A report can also be a single `index.html` that contains all of this. Model output is inserted into the page as text nodes only.

Images may show patients. A report therefore omits them by default and draws boxes in an empty frame. The quickstart includes
the images of its phantoms; other commands include images with --show_images.
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
from vitar_jax.evaluation.report_episode import Files, episode, row
from vitar_jax.evaluation.report_files import FolderFiles, SinglePage, call, whole
from vitar_jax.evaluation.report_masks import Pieces
from vitar_jax.evaluation.rules import RULES
from vitar_jax.evaluation.summary import summary_table

SHARD = 64  # episodes per data file
MOST_IN_A_PAGE = 200  # most episodes in a single-file report
# In load order: each script uses the scripts before it.
SCRIPTS = ("dom", "data", "masks", "pictures", "tokens", "episode", "group", "list", "filters", "keys", "main")


@dataclass(frozen=True)
class ReportSection:
    """A named set of trajectories, for example "two looks, after GRPO". The trajectories are iterated exactly once.

    Attributes:
      rule: Name of the rule that marks answers right or wrong. Empty if nothing is marked.
      marks: Score of each sample under that rule, from 0 to 1; None if the rule does not score it. If `marks` is None, answers
        are scored by exact match.
    """

    name: str
    trajectories: Iterable[Trajectory]
    rule: str = str(RULES["exact"])
    marks: Mapping[str, float | None] | None = None

    def correct(self, trajectory: Trajectory) -> float | None:
        """Returns the score of an answer, from 0 to 1; None if the rule does not score it."""
        if self.marks is not None:
            return self.marks.get(trajectory.sample_id)
        return float(exact_match(trajectory.predicted_answer, *trajectory.gold_answers))


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
        summary: Rows of the summary table; see `summary_table`.
        figures: Image files to copy into the report.
        pieces: Function from token ids to the text of each token (`Chat.pieces`). If None, the report has no tokens.
        images: Whether the report contains the episodes' images.
        single_file: Whether to embed everything in `index.html`.

    Raises:
        DataError: If a figure does not exist.
        ConfigError: If a single-file report would have more than `MOST_IN_A_PAGE` episodes, or if the directory holds
          trajectories.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written: Files = SinglePage() if single_file else FolderFiles(directory, images=images)
    scripts = [written.script(f"assets/{name}.js", report_asset(f"{name}.js")) for name in SCRIPTS[:-1]]
    slugs: list[str] = []
    for section in sections:
        slugs.append(_unique(_slug(section.name), slugs))
    named = [{"slug": slug, "name": section.name, "rule": section.rule} for slug, section in zip(slugs, sections, strict=True)]
    rows: list[dict[str, Any]] = []
    places: list[tuple[int, int, int]] = []  # per row: section, shard, index within the shard
    keys: set[str] = set()
    for shard, batch in enumerate(_batches(sections)):
        if single_file and len(rows) + len(batch) > MOST_IN_A_PAGE:
            raise ConfigError(f"{directory}: a single-file report has at most {MOST_IN_A_PAGE} episodes; omit --single_file")
        marks = [sections[number].correct(trajectory) for number, trajectory in batch]
        episodes = [
            episode(trajectory, correct, sections[number].rule, written if images else None, pieces)
            for (number, trajectory), correct in zip(batch, marks, strict=True)
        ]
        scripts += written.on_demand(f"data/{shard:03d}.js", call("shard", shard, episodes))
        for place, (number, trajectory) in enumerate(batch):
            member = f"{'' if trajectory.stream == 'on_policy' else f'{trajectory.stream}-'}{trajectory.member}"
            key = _unique(f"{slugs[number]}/{trajectory.sample_id}/{member}", keys)
            keys.add(key)
            rows.append({"key": key, "section": sections[number].name, **row(trajectory, marks[place], sections[number].rule)})
            places.append((number, shard, place))
    index = {"sections": named, "facets": keep_facets(rows), "rows": rows, "places": places}
    scripts += [*written.images(), written.script("data/index.js", call("index", index))]
    scripts.append(written.script("assets/main.js", report_asset("main.js")))

    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(report_asset("index.html.j2").decode())
    html = template.render(
        title=title,
        episodes=len(rows),
        sections=named,
        table=summary_table(summary or {}),
        rules=sorted({section.rule for section in sections if section.rule}),
        slugs={section["name"]: section["slug"] for section in named},
        figures=[_add_figure(written, number, path) for number, path in enumerate(figures)],
        downloads={
            "CSV": ("episodes.csv", written.add("episodes.csv", as_csv(rows))),
            "JSON": ("episodes.json", written.add("episodes.json", as_json(rows))),
        },
        style=written.style("assets/report.css", report_asset("report.css")),
        scripts=scripts,
        policy=written.policy,
    )
    page = directory / "index.html"
    page.write_text(whole(html), "utf-8")
    return page


def _batches(sections: Sequence[ReportSection]) -> Iterator[list[tuple[int, Trajectory]]]:
    """Yields (section number, trajectory) pairs of all sections, in batches of `SHARD`."""
    stream = ((number, trajectory) for number, section in enumerate(sections) for trajectory in section.trajectories)
    while batch := list(islice(stream, SHARD)):
        yield batch


def report_asset(name: str) -> bytes:
    """Returns a file of the report's page. A server's page uses some of them too."""
    return (files("vitar_jax.evaluation") / "report_assets" / name).read_bytes()


def _add_figure(written: Files, number: int, path: Path) -> dict[str, str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: figure does not exist") from None
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
