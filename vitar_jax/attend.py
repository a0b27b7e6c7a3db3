"""Measures a checkpoint's attention on images and boxes in finished trajectories, before and after each look.

Examples:
  python -m vitar_jax.attend --checkpoint=runs/quickstart/grpo/model \\
      --trajectories=runs/quickstart/evaluation/two_looks_grpo --output=runs/attention --maps=4

--trajectories is a directory that training, evaluation or inference wrote. If they were played with --max_pixels or
--stop_tokens, give the same here. OUTPUT/attention.jsonl has one line per turn, with the measures of
`evaluation/attention.py`. OUTPUT/attention.json has means over trajectories with 95 % intervals, which are also printed.
OUTPUT/maps has heat maps over the images.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags

from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.attention import AttentionReader, measure_attention
from vitar_jax.evaluation.attention_summary import summarise, table
from vitar_jax.evaluation.figures import attention_figure
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.processing.banned import fingerprint
from vitar_jax.rollout.checkpoint import Checkpoint
from vitar_jax.rollout.checkpoint_settings import options_note
from vitar_jax.runtime import cli
from vitar_jax.runtime.crash_safe import atomic_replace
from vitar_jax.runtime.help import subject
from vitar_jax.runtime.progress import progress_bar


def load_reader(checkpoint: Checkpoint) -> AttentionReader:
    """Loads the weights of a checkpoint, sharded over all devices."""
    return AttentionReader(
        checkpoint.model(make_mesh()),
        checkpoint.settings.processor,
        banned_sha256=fingerprint(checkpoint.banned),
        rows=flags.FLAGS.rows,
    )


def measure_all(reader: AttentionReader, trajectories: Iterable[Trajectory], output: Path) -> Iterator[dict[str, Any]]:
    """Yields one record per turn of each trajectory. Writes the records as lines, and heat maps of the first trajectories."""
    given = flags.FLAGS
    with atomic_replace(output / "attention.jsonl") as partial, partial.open("w") as file:
        for number, trajectory in enumerate(progress_bar("attention", unit="episode", samples=trajectories)):
            records = measure_attention(
                trajectory,
                reader.read(trajectory),
                merge_size=reader.merge_size,
                random_boxes=given.random_boxes,
                seed=given.seed,
            )
            file.write("".join(json.dumps(record) + "\n" for record in records))
            if number < given.maps:
                attention_figure(trajectory, records, output / "maps" / f"{number:04d}.png")
            yield from records


def _counting(trajectories: Iterable[Trajectory], options_only: bool, noted: Counter[str]) -> Iterator[Trajectory]:
    """Yields the trajectories, and counts notes on their questions."""
    for trajectory in trajectories:
        if note := options_note(options_only, trajectory.options):
            noted[note] += 1
        yield trajectory


def main() -> None:
    given = flags.FLAGS
    if None in (given.checkpoint, given.trajectories, given.output):
        raise ConfigError("attend: expected --checkpoint=DIR, --trajectories=DIR and --output=DIR; --help shows an example")
    if jax.process_count() > 1:
        raise ConfigError(f"attend: got {jax.process_count()} processes, expected one")
    trajectories = itertools.islice(read_trajectories(Path(given.trajectories)), given.limit or None)
    first = list(itertools.islice(trajectories, 1))  # a wrong directory fails before the weights are read
    output = Path(given.output)
    with jax.default_matmul_precision("highest"):
        checkpoint = Checkpoint.open(given.checkpoint, **cli.loading_flags())
        reader = load_reader(checkpoint)
        output.mkdir(parents=True, exist_ok=True)
        noted = Counter()
        everything = _counting(itertools.chain(first, trajectories), checkpoint.settings.options_only, noted)
        summary = summarise(measure_all(reader, everything, output))
    (output / "attention.json").write_text(json.dumps(summary, indent=2) + "\n")
    for note, count in noted.items():
        print(f"note: {note} ({count} trajectories)")
    print(table(summary))
    print(f"attention: {output}")


def define_flags() -> None:
    with subject("Input and output"):
        flags.DEFINE_string("checkpoint", None, "Checkpoint with its tokenizer: a directory, a gs:// URL or a hub repository.")
        flags.DEFINE_string("trajectories", None, "Directory that holds trajectories.jsonl.")
        flags.DEFINE_string("output", None, "Directory for results.")
        flags.DEFINE_integer("limit", 0, "Number of trajectories to measure, from the first on; 0 means all.", lower_bound=0)
        flags.DEFINE_integer("maps", 0, "Number of trajectories to draw heat maps of.", lower_bound=0)
    with subject("Measures"):
        flags.DEFINE_integer("random_boxes", 32, "Number of random boxes that each box is compared with.", lower_bound=1)
        flags.DEFINE_integer("seed", 0, "Seed of the random boxes.", lower_bound=0)
        flags.DEFINE_integer(
            "rows", 128, "Number of query tokens whose attention is computed at a time; fewer need less memory.", lower_bound=1
        )
    with subject("Loading"):
        cli.define_loading_flags()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
