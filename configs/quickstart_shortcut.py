"""A shortcut on phantoms: does GRPO still look where the question gives the answer away, and does paying for the image help?

The question names a texture, "Which texture is it, rows?". In 80 % of the training samples it is the right one, in the held-out
samples never. Sizes and warm-up are those of `quickstart`.

Stages:
  warmup          short questions about the image, from random weights.
  sft             demonstrations of two turns, whose question says nothing: it names each texture equally often. It is short,
                  so that the shortcut is right more often than looking when the arms start.
  grpo            GRPO, paid for right answers alone.
  counterfactual  the same, paid for what it earns above episodes without the lesion (`learning/counterfactual.py`).

Both arms start from the weights of `sft` and make the same number of updates.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))

STEPS = 320  # of each arm


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed = config.get_ref("seed")
    config.limits.tokens = 108  # the question has four tokens more
    stages = config.stages
    del stages["one_look"]
    stages.sft.update(
        sources=_shortcut(seed, given_away=0.25),
        steps=300,
        tokens=92,
        optimizer=_BASE["_adamw"](3e-3, steps=300),
        probe_every=0,
    )
    stages.grpo = _grpo(seed)
    # Without the lesion, the picture stays one that the policy also sees when its box misses the lesion, unlike a grey one. A
    # weight of 2 pays nothing as soon as half of the answers without the lesion are right.
    stages.counterfactual = _grpo(seed, dict(intervention="region_erased", episodes=4, weight=2.0))
    config.schedule = ("warmup", "sft", "grpo", "counterfactual")
    config.evaluation.options = dict(task="shortcut", seed=seed)
    arms = dict(sft="two looks, after SFT", grpo="GRPO", counterfactual="GRPO above play without the lesion")
    rows = {name: dict(label=label, stage=name) for name, label in arms.items()}
    rows |= {
        f"{name}_blank": dict(label=f"{label}, blank image", stage=name, control="blank", is_control=True)
        for name, label in arms.items()
    }
    config.proof = dict(
        title="A shortcut in the question: does the policy still look?",
        rows=rows,
        order=tuple(rows),
        episode="counterfactual",
        measures=("data_prep.phantom.proof:repeats", "centre_error_px"),
        rewards="grpo",
        chance=0.25,
        curves=("reward/mean", "probe/reward/mean", "probe/tool_turns", "counterfactual/added"),
        images=True,  # phantoms are synthetic
        conclusion="data_prep.phantom.proof:what_the_shortcut_did",
    )
    return config


def _shortcut(seed: Any, **options: Any) -> dict:
    """Returns the sources of a stage."""
    return dict(shortcut=dict(name="data_prep.phantom:source", options=dict(task="shortcut", seed=seed, **options)))


def _grpo(seed: Any, counterfactual: dict | None = None) -> dict:
    """Returns an arm."""
    objective = dict(
        name="grpo",
        group_size=8,
        clip_low=0.2,
        clip_high=0.2,
        rewards=dict(vitar=dict(function="vitar", weights=dict(action=0.0, terminate=0.0))),
        counterfactual=counterfactual,
    )
    return dict(
        start="sft",
        sources=_shortcut(seed),
        protocol="vitar",
        steps=STEPS,
        batch_size=8,
        objective=objective,
        optimizer=dict(learning_rate=5e-4, schedule="cosine", warmup_steps=5, weight_decay=0.0, final_fraction=0.1),
        probe_every=40,
        probe_samples=128,
        probe_interventions=("blank", "region_erased"),
        keep_trajectories=12,
    )
