"""`vitar_7b` with adapters on one GPU of 80 GB: the weights lie frozen in bf16, and once more for rollout.

Ours: rank 64 on every projection of the decoder, ten times the rate of the full run, and batches of an eighth. ViTAR trains
all weights on eight GPUs.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_7b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.model.attention = "cudnn"
    config.rollout.tensor = 1
    adapters = dict(train=("decoder",), lora=dict(rank=64, alpha=128.0), micro_rows=2)
    # cuDNN's attention takes one example a row.
    config.stages.sft.objective.pack = False
    config.stages.sft.update(**adapters, batch_size=32, steps=375, row_images=0)
    config.stages.sft.optimizer.update(learning_rate=1e-4, warmup_steps=38)
    config.stages.grpo.update(**adapters, batch_size=16)
    config.stages.grpo.optimizer.learning_rate = 1e-5
    return config
