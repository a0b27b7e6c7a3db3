"""A shortened quickstart: checks in minutes that every part runs. It is too short to learn anything worth measuring."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))


def get_config() -> ConfigDict:
    config = _BASE["get_config"]()
    stages = {
        "warmup": dict(steps=20, batch_size=32),
        "sft": dict(steps=90, batch_size=32, probe_every=30, probe_samples=16),
        "grpo": dict(steps=6, probe_every=0),
        "one_look": dict(steps=20, batch_size=32),
    }
    for stage in stages.values():
        stage.update(checkpoint_every=40, log_every=max(1, stage["steps"] // 10))
    config.update({"stages": stages, "evaluation_samples": 64})
    config.proof.duration = "2 minutes on two CPU cores"
    return config
