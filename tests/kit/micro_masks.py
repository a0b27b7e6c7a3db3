"""The shortened quickstart of masks, played by a policy that writes nothing but `[SEG]` and the tags of an answer.

Random weights would hardly ever write an answer with a mask. Only the sampler is kept from all other tokens, so that training
takes the compiled programs of the shortened quickstart.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tests.kit.recipes import load_config
from vitar_jax.episodes.trace_parser import SEG
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import open_workdir
from vitar_jax.learning.rewards import reward
from vitar_jax.rollout.engine import Engine

TAGS = "\n\n<answer>", "</answer>"  # each of which is one token


@reward("has_answer_mask", has_answer_mask=1.0)
def has_answer_mask(trajectory: Trajectory) -> dict[str, float]:
    """Returns whether an answer has a mask, whatever it shows: random masks earn nothing of VRT's reward."""
    parts = [one.part for turn in trajectory.turns for one in turn.masks if one.mask is not None]
    return {"has_answer_mask": float("answer" in parts)}


def get_config() -> ConfigDict:
    config: Any = load_config("quickstart_masks_smoke")
    config.schedule = ("sft", "grpo")  # without the stage that makes no masks
    del config.stages.language, config.stages.sft.start
    for stage in config.stages.values():
        stage.update(checkpoint_every=1, keep_trajectories=4)
    config.stages.grpo.objective.rewards.mask = dict(function="has_answer_mask")
    return config


def start(workdir: Path) -> Run:
    config = get_config()
    open_workdir(config, workdir)
    run = Run(Recipe.from_config(config), workdir)
    run.engine = writing(run, *TAGS, SEG)
    return run


def writing(run: Run, *texts: str) -> Engine:
    """Returns an engine whose turns are made of these texts, each of which is one token."""
    chat = run.processor.chat
    kept = [token for text in texts for token in chat.turn(text, (SEG,))[:-1]]
    assert len(kept) == len(texts)
    return Engine(run.recipe.rollout, run.processor, run.recipe.limits, ~np.isin(np.arange(len(run.banned)), kept))
