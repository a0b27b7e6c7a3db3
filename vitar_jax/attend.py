"""Measures a checkpoint's attention on images and boxes in finished trajectories, before and after each look.

Examples:
  python -m vitar_jax.attend --checkpoint=runs/quickstart/grpo/model \\
      --trajectories=runs/quickstart/evaluation/two_looks_grpo --output=runs/attention --maps=4

--trajectories is a directory that training, evaluation or inference wrote. OUTPUT/attention.jsonl has one line per turn
(`evaluation/attention.py` defines the measures). OUTPUT/attention.json has means over trajectories with 95 % intervals, which
are also printed. OUTPUT/maps has heat maps over the images.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.attention import AttentionReader, measure_attention
from vitar_jax.evaluation.attention_summary import summarise, table
from vitar_jax.evaluation.figures import attention_figure
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.processing.banned import fingerprint
from vitar_jax.rollout.checkpoint import Checkpoint
from vitar_jax.runtime import cli
from vitar_jax.runtime.crash_safe import atomic_replace


def load_reader() -> AttentionReader:
    """Loads the checkpoint that the flags name, with its weights sharded over all devices."""
    checkpoint = Checkpoint.open(flags.FLAGS.checkpoint, dtype=flags.FLAGS.dtype)
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
        for number, trajectory in enumerate(tqdm(trajectories, "attention", unit="trajectory", mininterval=1.0, delay=1.0)):
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
        reader = load_reader()
        output.mkdir(parents=True, exist_ok=True)
        summary = summarise(measure_all(reader, itertools.chain(first, trajectories), output))
    (output / "attention.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(table(summary))
    print(f"attention: {output}")


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Checkpoint with its tokenizer: a directory, a gs:// URL or a hub repository.")
    flags.DEFINE_string("trajectories", None, "Directory that holds trajectories.jsonl.")
    flags.DEFINE_string("output", None, "Directory for results.")
    flags.DEFINE_integer("limit", 0, "Number of trajectories to measure, from the first on; 0 means all.", lower_bound=0)
    flags.DEFINE_integer("maps", 0, "Number of trajectories to draw heat maps of.", lower_bound=0)
    flags.DEFINE_integer("random_boxes", 32, "Number of random boxes that each box is compared with.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the random boxes.", lower_bound=0)
    flags.DEFINE_integer(
        "rows", 128, "Number of query tokens whose attention is computed at a time; fewer need less memory.", lower_bound=1
    )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of weights and computation.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
