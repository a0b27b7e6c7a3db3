"""Trains a model: runs the stages of a recipe in order, and resumes each where it stopped.

Examples:
  python -m vitar_jax.train --config=configs/quickstart.py --workdir=runs/mine
  python -m vitar_jax.train --config=configs/quickstart.py --workdir=runs/mine --config.stages.sft.steps=100
  python -m vitar_jax.train --config=configs/vqa_rad_small.py --workdir=runs/vqa \\
      --config.data.source=VQA_RAD_DIR --config.data.processor=QWEN_DIR

A finished stage leaves WORKDIR/STAGE/model, a checkpoint for `transformers`, `vitar_jax.infer` and `vitar_jax.evaluate`.
If the stage has probes, WORKDIR/STAGE/best is the checkpoint of the held-out probe with the highest mean reward.
WORKDIR/STAGE/report shows the episodes that were kept, with their images if --show_images is given. Metrics go to
TensorBoard, to the log and to WORKDIR/STAGE/metrics.jsonl.
"""

from pathlib import Path

from absl import flags

from vitar_jax.errors import ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import log_to, open_workdir
from vitar_jax.runtime import cli, config_flag
from vitar_jax.runtime.help import subject


def main() -> None:
    if flags.FLAGS.config is None or flags.FLAGS.workdir is None:
        raise ConfigError("--config=FILE and --workdir=DIR must be given; --help shows examples")
    workdir = Path(flags.FLAGS.workdir)
    recipe = Recipe.from_config(flags.FLAGS.config)
    recipe.open_sources()
    open_workdir(flags.FLAGS.config, workdir)
    log_to(workdir)
    cli.say(flags.FLAGS.config.copy_and_resolve_references())
    run = Run(recipe, workdir, images=flags.FLAGS.show_images)
    run.train()
    cli.say(f"all stages are done; models are in {', '.join(str(run.model_dir(s)) for s in recipe.schedule)}")


def define_flags() -> None:
    with subject("The run"):
        config_flag.define(Recipe, "Recipe file, for example configs/quickstart.py.")
        flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and models go.")
        flags.DEFINE_bool("show_images", False, "Show the episodes' images, which may be patients', in reports.")


if __name__ == "__main__":
    define_flags()
    cli.run(main, preemptible=True)
