"""The shortened quickstart of masks with more steps, for `tests/soak.py`: its policy should have learnt to write traces."""

from typing import Any

from ml_collections import ConfigDict

from tests.kit.recipes import load_config


def get_config() -> ConfigDict:
    config: Any = load_config("quickstart_masks_smoke")
    del config["proof"]
    config.stages.sft.optimizer.learning_rate = 3e-3  # the language alone has to be learnt
    for name, steps, batch_size in (("sft", 120, 32), ("grpo", 40, 2)):
        config.stages[name].update(steps=steps, batch_size=batch_size, checkpoint_every=3, log_every=2, keep_trajectories=4)
    return config
