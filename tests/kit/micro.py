"""The quickstart's recipe, small enough to train in a test: the three kinds of stage, for a few steps each."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_QUICKSTART = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "quickstart.py"))


def get_config() -> ConfigDict:
    config: Any = _QUICKSTART["get_config"]()
    config.model.text.update(hidden_size=32, intermediate_size=48, num_hidden_layers=1, mrope_section=(2, 3, 3))
    config.model.vision.update(depth=1, hidden_size=32, intermediate_size=48, out_hidden_size=32, fullatt_block_indexes=(0,))
    config.rollout.update(slots=4, encode_batch=4)
    config.schedule = ("warmup", "sft", "grpo")
    del config.stages["one_look"]
    del config["proof"]
    for stage, steps in (("warmup", 1), ("sft", 4), ("grpo", 4)):
        config.stages[stage].update(steps=steps, batch_size=4, checkpoint_every=2, log_every=1, probe_every=0)
        # Epsilon is larger than in training, because Adam would divide noise by noise where gradients are nearly 0.
        config.stages[stage].optimizer.update(warmup_steps=1, epsilon=1e-4)
    config.stages.grpo.update(batch_size=2, keep_trajectories=4, probe_every=2, probe_samples=4, probe_interventions=())
    config.stages.grpo.objective.group_size = 2
    config.stages.grpo.objective.alarms = dict(box_area=-1.0)  # the first step raises this alarm
    config.evaluation_samples = 6
    config.loader_threads = 1
    return config
