"""Choosing a window: a tiny Qwen2.5-VL learns by GRPO which CT window shows a lesion, from random weights.

The first view shows whether the organ is lung or bone, and nothing of its lesion. One of four windows shows the lesion.

Stages:
  sft   demonstrations, which choose each window equally often.
  grpo  episodes of two turns, played for PyVision-RL's reward: right answers, and a little for the tool if they are right.

All settings are those of `quickstart.py` but these.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed = config.get_ref("seed")
    config.processor.tokenizer = "data_prep.phantom.tokenizer:save_for_windows"
    config.processor.update(image_mean=(0.4, 0.4, 0.4))
    config.protocols = dict(
        viewer=dict(system="Look.", tools=("ct_window",), max_turns=2, observation="Closer view."),
        direct=dict(system="Look once."),
    )
    config.limits = dict(tokens=104, turn_tokens=16, images=2)
    config.rollout.update(prefill_lengths=(24, 56), chunk=16)
    sources = dict(windows=dict(name="data_prep.phantom.windows:source", options=dict(seed=seed)))

    config.schedule = ("sft", "grpo")
    config.stages = ConfigDict()
    config.stages.sft = dict(
        sources=sources,
        protocol="viewer",
        objective=dict(name="sft"),
        steps=800,
        batch_size=64,
        tokens=96,
        policy_tokens=24,
        optimizer=_BASE["_adamw"](3e-3, steps=800),
        probe_every=100,
    )
    config.stages.grpo = dict(
        start="sft",
        sources=sources,
        protocol="viewer",
        steps=100,
        batch_size=8,
        objective=dict(name="grpo", group_size=8, rewards=dict(pyvision=dict(function="pyvision"))),
        optimizer=dict(learning_rate=5e-4, schedule="cosine", warmup_steps=5, weight_decay=0.0, final_fraction=0.1),
        probe_every=25,
        keep_trajectories=8,
    )
    config.evaluation = dict(name="data_prep.phantom.windows:source", split="test", options=dict(seed=seed, length=512))
    config.evaluation_samples = 512
    config.proof = dict(
        title="Which window shows the lesion?",
        rows=dict(
            sft=dict(label="after SFT", stage="sft"),
            grpo=dict(label="after GRPO", stage="grpo"),
            blank=dict(label="after GRPO, blank image, which has no windows", stage="grpo", control="blank", is_control=True),
        ),
        order=("sft", "grpo", "blank"),
        episode="grpo",
        measures=("answered", "data_prep.phantom.windows:own_window"),
        rewards="grpo",
        chance=0.25,
        curves=("actor/loss", "reward/answer", "reward/calls", "probe/reward/mean"),
        images=True,  # phantoms are synthetic
        conclusion="data_prep.phantom.proof:what_windows_showed",
    )
    return config
