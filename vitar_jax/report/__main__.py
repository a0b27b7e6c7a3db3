"""Opens trajectories in the report: our own, and those that other trainers wrote.

Examples:
  python -m vitar_jax.report --input=runs/quickstart/evaluation/grpo --output=report
  python -m vitar_jax.report --input=verl_dumps --output=report --frame=normalized_1000
  python -m vitar_jax.report --input=trl_output/completions --output=report --protocol=zoom
  python -m vitar_jax.report --input=runs/quickstart/grpo/trajectories --output=atif --format=atif --show_images

--input is a file or a folder, with any mix of:
  vitar_jax  our trajectories (trajectories.jsonl, with the folder images beside it)
  verl       rollout and validation dumps (STEP.jsonl)
  trl        logged completions (completions_STEP.parquet)
  miles      conversations (DUMP/trajectory/ROLLOUT.jsonl)
  rllm       episodes of its trainer and of `rllm eval` (episode_*.json)
  atif       documents of the Agent Trajectory Interchange Format
Each is known by its content, whatever its name. Pickles are not opened, and no URL is fetched.

Turns of other trainers are read for <think>, <tool_call>, <answer> and boxes, or by --protocol, as our own are. Boxes are in
pixels of the image, or in --frame. An image that a file lacks is an empty frame. What could not be read is counted, and listed
in OUTPUT/not_read.txt.

--format=atif writes one ATIF document per trajectory. Pages and documents have images only with --show_images.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from vitar_jax.episodes.protocols import PROTOCOLS, find_protocol
from vitar_jax.episodes.regions import FRAMES
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.report import MOST_IN_A_PAGE, ReportSection, write_report
from vitar_jax.report import atif
from vitar_jax.report.conversation import Context, Played
from vitar_jax.report.files import Unread, files_of, read_records
from vitar_jax.report.readers import READERS, find_reader
from vitar_jax.runtime import cli

MOST_LINES = 10  # lines about unread records that are printed; the file has all
NOT_READ = "not_read.txt"


@dataclasses.dataclass
class Opener:
    """Reads the trajectories of files, and counts what it could read and what it could not.

    Attributes:
      context: How to read records; `path` is that of the file.
      read: Number of trajectories, by the name of their reader.
      others: Number of files that hold no records, by suffix.
    """

    context: Context
    unread: Unread = dataclasses.field(default_factory=Unread)
    read: Counter[str] = dataclasses.field(default_factory=Counter)
    others: Counter[str] = dataclasses.field(default_factory=Counter)

    def trajectories(self, paths: list[Path]) -> Iterator[Played]:
        for path in paths:
            records = read_records(path, self.unread)
            if records is None:
                self.others[path.suffix or "no suffix"] += 1
                continue
            context = Context(path, self.context.protocol, self.context.frame, self.context.missing)
            unknown, first = 0, ""
            for where, record in records:
                name = find_reader(record) if isinstance(record, dict) else None
                if name is None:
                    unknown += 1
                    first = first or (", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}")[:100]
                    continue
                try:
                    found = list(READERS[name].read(record, context))
                except Exception as error:  # a damaged record can break a reader in any way
                    self.unread.add(where, error)
                    continue
                self.read[name] += len(found)
                yield from found
            if unknown:
                self.unread.add(str(path), f"{unknown} records have no known form (the first has {first})", unknown)

    def summary(self) -> list[str]:
        """Returns lines for people about what was read."""
        total = self.read.total()
        lines = [f"read: {total} trajectories ({', '.join(f'{name} {n}' for name, n in self.read.items()) or 'none'})"]
        if self.context.missing:
            reasons = self.context.missing
            lines.append(f"images: {reasons.total()} named but not there, drawn as empty frames ({next(iter(reasons))})")
        if self.others:
            lines.append(f"other files: {', '.join(f'{n} {suffix}' for suffix, n in self.others.most_common())}")
        if self.unread:
            lines.append(f"not read: {self.unread.total()}")
            lines += [f"  {line}" for line in list(self.unread)[:MOST_LINES]]
        return lines


@dataclasses.dataclass(frozen=True)
class OpenedSection(ReportSection):
    """A section whose scores are those of the records.

    Attributes:
      scores: Scores by the `id` of a trajectory, which the report asks for while it holds the trajectory.
    """

    scores: dict[int, float | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, name: str, played: Iterator[Played]) -> "OpenedSection":
        scores: dict[int, float | None] = {}

        def trajectories() -> Iterator[Trajectory]:
            for one in played:
                scores[id(one.trajectory)] = one.score
                yield one.trajectory

        return cls(name, trajectories(), rule="recorded score", scores=scores)

    def correct(self, trajectory: Trajectory) -> float | None:
        return self.scores.pop(id(trajectory))


def sections(path: Path, output: Path) -> dict[str, list[Path]]:
    """Returns the files by section: one per direct subfolder of a folder, and one for its own files. Leaves out `output`."""
    found: dict[str, list[Path]] = {}
    for one in files_of(path):
        if one.resolve().is_relative_to(output.resolve()):
            continue
        parts = one.relative_to(path).parts if path.is_dir() else ()
        found.setdefault(parts[0] if len(parts) > 1 and parts[0] != "images" else path.name or str(path), []).append(one)
    return found


def main() -> None:
    given = flags.FLAGS
    if given.input is None or given.output is None:
        raise ConfigError("report: expected --input=FILE_OR_DIR and --output=DIR; --help shows examples")
    source, output = Path(given.input), Path(given.output)
    if source.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"--output={output}: contains --input; give another folder")
    protocol = find_protocol(given.protocol, PROTOCOLS) if given.protocol else None
    frame = given.frame or (protocol.frame if protocol else "original")
    opener = Opener(Context(source, protocol=protocol, frame=frame))
    parts = sections(source, output)
    output.mkdir(parents=True, exist_ok=True)
    if given.format == "atif":
        number = 0
        for number, one in enumerate((one for paths in parts.values() for one in opener.trajectories(paths)), start=1):
            name = re.sub(r"[^\w.-]+", "-", one.trajectory.sample_id)[:60]
            atif.write(one.trajectory, one.score, output, f"{number:06d}-{name}", images=given.show_images)
        done = f"documents: {number} in {output}"
    else:
        page = write_report(
            output,
            [OpenedSection.of(name, opener.trajectories(paths)) for name, paths in parts.items()],
            title=given.title or f"Trajectories of {source.name or source}",
            images=given.show_images,
            single_file=given.single_file,
        )
        done = f"report: {page}"
    (output / NOT_READ).write_text("".join(f"{line}\n" for line in opener.unread))
    print(*opener.summary(), sep="\n")
    if not opener.read:
        first = next(iter(opener.unread), f"{source}: has no JSON and no Parquet file")
        raise DataError(f"no trajectory could be read: {first}")
    print(done)


def define_flags() -> None:
    flags.DEFINE_string("input", None, "File or folder of trajectories.")
    flags.DEFINE_string("output", None, "Folder to write to.")
    flags.DEFINE_enum("format", "report", ["report", "atif"], "Write a report, or ATIF documents.")
    flags.DEFINE_string("title", "", "Title of the report (default: the name of the input).")
    flags.DEFINE_string(
        "protocol", "", "Protocol whose parser reads other trainers' turns: a name, FILE.toml or FILE.py:NAME (default: tags)."
    )
    flags.DEFINE_enum("frame", "", ["", *FRAMES], "Frame of boxes in other trainers' turns (default: pixels of the image).")
    flags.DEFINE_bool("show_images", False, "Include images, which may show patients.")
    flags.DEFINE_bool("single_file", False, f"Write the report as a single file (at most {MOST_IN_A_PAGE} episodes).")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
