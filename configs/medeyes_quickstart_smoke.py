"""A shortened `medeyes_quickstart` with a smaller model: checks that every part runs. It learns nothing worth measuring."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("medeyes_quickstart.py")))


def get_config() -> ConfigDict:
    return shorten(_BASE["get_config"]())


def shorten(config: Any) -> ConfigDict:
    """Returns one of MedEyes' proofs with a smaller model, two steps per stage and eight held-out samples."""
    config.model.text.update(hidden_size=32, intermediate_size=48, num_hidden_layers=1, mrope_section=(2, 3, 3))
    config.model.vision.update(depth=1, hidden_size=32, intermediate_size=48, out_hidden_size=32, fullatt_block_indexes=(0,))
    config.rollout.update(slots=8, encode_batch=8)
    for stage in config.stages.values():
        # One shape for all stages of SFT, so that they share one program.
        stage.update(steps=2, batch_size=2, tokens=0, policy_tokens=0, row_images=0, probe_every=0, log_every=1)
        if stage.objective.name == "grpo":
            stage.objective.group_size = 2
    config.evaluation_samples = 8
    config.proof.duration = ""
    return config
