"""Checkpoints with random weights, as a stage leaves them."""

from pathlib import Path

from ml_collections import ConfigDict

from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.models.pretrained import save_pretrained
from vitar_jax.rollout.checkpoint_settings import save_settings


def save_random(config: ConfigDict, workdir: Path) -> Path:
    """Writes the random weights of a recipe and its settings, and returns their folder."""
    run = Run(Recipe.from_config(config), workdir)
    save_pretrained(build.random_model(run.recipe, run.model_config), workdir / "model")
    save_settings(workdir / "model", run.processor, run.recipe.limits, run.recipe.all_protocols, "vitar")
    return workdir / "model"
