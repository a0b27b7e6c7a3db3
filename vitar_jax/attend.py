"""Where a checkpoint looks in finished trajectories: attention on images and boxes, before and after the look.

Examples:
  python -m vitar_jax.attend --checkpoint=runs/quickstart/grpo/model \\
      --trajectories=runs/quickstart/evaluation/two_looks_grpo --output=runs/attention --maps=4

--trajectories is a directory that training, evaluation or inference left. OUTPUT/attention.jsonl gets a line a turn
(`evaluation/attention.py` says what is measured), OUTPUT/attention.json means over trajectories with 95 % intervals, which are
also printed, and OUTPUT/maps heat maps over the images.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from vitar_jax.episodes.trajectory import Trajectory, read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.attention import AttentionReader, measure
from vitar_jax.evaluation.attention_summary import summarise, table
from vitar_jax.evaluation.figures import attention_figure
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.processing.banned import fingerprint
from vitar_jax.rollout.checkpoint import Checkpoint
from vitar_jax.runtime import cli
from vitar_jax.runtime.crash_safe import atomic_replace


def load_reader() -> AttentionReader:
    """The checkpoint of the flags, its weights spread over all devices."""
    checkpoint = Checkpoint.open(flags.FLAGS.checkpoint, dtype=flags.FLAGS.dtype)
    return AttentionReader(
        checkpoint.model(make_mesh()),
        checkpoint.settings.processor,
        banned_sha256=fingerprint(checkpoint.banned),
        rows=flags.FLAGS.rows,
    )


def measure_all(reader: AttentionReader, trajectories: Iterable[Trajectory], output: Path) -> Iterator[dict[str, Any]]:
    """Records of the turns of all trajectories; their lines, and maps, are written as it goes."""
    given = flags.FLAGS
    with atomic_replace(output / "attention.jsonl") as partial, partial.open("w") as file:
        for number, trajectory in enumerate(tqdm(trajectories, "attention", unit="trajectory", mininterval=1.0, delay=1.0)):
            records = measure(
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
        raise ConfigError("--checkpoint=DIR, --trajectories=DIR and --output=DIR must be given; --help shows an example")
    if jax.process_count() > 1:
        raise ConfigError("vitar_jax.attend is for one process")
    trajectories = itertools.islice(read_trajectories(Path(given.trajectories)), given.limit or None)
    first = list(itertools.islice(trajectories, 1))  # before a checkpoint is loaded for nothing
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
    flags.DEFINE_string("trajectories", None, "Directory with trajectories.jsonl.")
    flags.DEFINE_string("output", None, "Directory for results.")
    flags.DEFINE_integer("limit", 0, "The first so many trajectories; 0: all.", lower_bound=0)
    flags.DEFINE_integer("maps", 0, "Trajectories of which heat maps are drawn.", lower_bound=0)
    flags.DEFINE_integer("random_boxes", 32, "Random boxes that a box is compared with.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the random boxes.", lower_bound=0)
    flags.DEFINE_integer("rows", 128, "Query tokens whose attention exists at one time.", lower_bound=1)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of weights and of computation.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
