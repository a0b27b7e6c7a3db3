"""MedEyes on phantoms: does an expert's stream teach a second gaze? Sizes and warm-up are those of `quickstart`.

A phantom shows two spots that are alike in the first view. One of them has a texture, and the question is which texture. A look
at one spot allows 67 % of right answers, a look at both 100 %.

Stages:
  warmup     short questions about the image, from random weights.
  one_gaze   demonstrations of one gaze. The model then stands on the first step of the stairs, where the arms start.
  grpo       GRPO alone.
  dialogues  SFT on the expert's dialogues alone.
  published  GRPO over both streams as MedEyes publishes it: each stream's own statistics, and the clipped probability as ratio.
  mixed      GRPO over both streams with the policy's statistics, and a supervised term on the searches that are right.
  poor       the same from an expert whose scans miss 30 % of the spots.

All arms start from the same weights and make the same number of updates.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))

STEPS = 500  # of each arm
ARMS = {
    "grpo": "GRPO alone",
    "dialogues": "SFT on dialogues alone",
    "published": "two streams as published",
    "mixed": "two streams, policy's statistics, SFT term",
    "poor": "the same, expert misses 30 %",
}


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed = config.get_ref("seed")
    config.processor.tokenizer = "data_prep.phantom.tokenizer:save_for_gazes"
    del config.protocols["vitar"]
    del config.protocols["direct"]
    # Two gazes, one for each spot, and the answer. The published protocol has four.
    config.protocols.medeyes = dict(system="Search.", max_turns=3)
    config.limits = dict(tokens=144, turn_tokens=28, images=3)

    stages = config.stages
    for name in ("sft", "grpo", "one_look"):
        del stages[name]
    stages.one_gaze = dict(
        start="warmup",
        sources=search(seed),
        protocol="medeyes",
        objective=dict(name="sft"),
        steps=600,
        batch_size=64,
        tokens=80,
        policy_tokens=28,
        row_images=2,
        optimizer=_BASE["_adamw"](3e-3, steps=600),
        probe_every=100,
    )
    stages.grpo = grpo(seed)
    stages.dialogues = arm(
        sources=search(seed, "data_prep.phantom.gazes:dialogues"), objective=dict(name="sft"), batch_size=8 * 6
    )
    stages.published = grpo(seed, experts("data_prep.phantom.gazes:searches", scope="stream"))
    stages.mixed = grpo(seed, mixed("data_prep.phantom.gazes:searches"))
    stages.poor = grpo(seed, mixed("data_prep.phantom.gazes:poor_searches"))
    config.schedule = ("warmup", "one_gaze", *ARMS)
    config.evaluation = dict(name="data_prep.phantom.search:source", split="test", options=dict(task="search", seed=seed))
    labels = {"one_gaze": "start: one gaze, after SFT", **ARMS}
    config.proof = dict(
        title="MedEyes on phantoms: does an expert's stream teach a second gaze?",
        duration="50 CPU minutes",
        rows={name: dict(label=label, stage=name) for name, label in labels.items()},
        order=tuple(labels),
        episode="mixed",
        measures=("data_prep.phantom.proof:gazes", "data_prep.phantom.proof:found"),
        rewards="grpo",
        chance=1 / 3,
        curves=("reward/answer", "rollout/gazes", "actor/entropy", "expert/probability", "expert/low_probability"),
        images=True,  # phantoms are synthetic
        conclusion="data_prep.phantom.proof:what_the_expert_taught",
    )
    return config


def search(seed: Any, name: str = "data_prep.phantom.search:source", **options: Any) -> dict:
    """Returns the sources of a stage."""
    return dict(search=dict(name=name, options=dict(task="search", seed=seed, **options)))


def arm(**stage: Any) -> dict:
    """Returns a stage that starts from `one_gaze`."""
    rate = dict(learning_rate=5e-4, schedule="cosine", warmup_steps=5, weight_decay=0.0, final_fraction=0.1)
    return dict(start="one_gaze", protocol="medeyes", steps=STEPS, optimizer=rate, probe_every=50) | stage


def grpo(seed: Any, experts: dict | None = None, **options: Any) -> dict:
    """Returns an arm of GRPO. `options` are those of the phantoms."""
    objective = dict(
        name="grpo",
        group_size=8,
        clip_low=0.2,
        clip_high=0.2,
        mean="sequences",
        rewards=dict(medeyes=dict(function="medeyes")),
        experts=experts,
    )
    return arm(sources=search(seed, **options), objective=objective, batch_size=8, keep_trajectories=14)


def experts(traces: str, searches: int = 6, **mixture: Any) -> dict:
    """Returns the second stream."""
    return dict(traces=(traces,), searches=searches, **mixture)


def mixed(traces: str, searches: int = 6, steps: int = STEPS) -> dict:
    """Returns the second stream with the policy's statistics and a supervised term on the searches that are right.

    Ours. The term's weight falls in the first half, so that the policy's own episodes decide in the end. What is left of it
    keeps boxes on the spots.
    """
    return experts(traces, searches, scope="policy", supervise="right", mu_peak=0.3, mu_valley=0.1, mu_decay=steps // 2)
