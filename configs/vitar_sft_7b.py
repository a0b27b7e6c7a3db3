"""The first stage of `vitar_7b` alone: supervised fine-tuning on interactive examples."""

from typing import Any

from ml_collections import ConfigDict

from configs import vitar_7b


def get_config() -> ConfigDict:
    config: Any = vitar_7b.get_config()
    config.schedule = ("sft",)
    del config.stages["grpo"]
    return config
