"""`vitar_7b` with LoRA adapters on one 80 GB GPU, which holds the frozen weights in bf16 and a second copy for rollout.

Ours: rank 64 on every projection of the decoder, ten times the learning rate of the full run, and smaller batches (a quarter of
the rows in SFT, an eighth of the questions in GRPO). ViTAR trains all weights on eight GPUs.
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
    # cuDNN's attention takes one example per row.
    config.stages.sft.objective.pack = False
    config.stages.sft.update(**adapters, batch_size=32, steps=375, row_images=0)
    config.stages.sft.optimizer.update(learning_rate=1e-4, warmup_steps=38)
    config.stages.grpo.update(**adapters, batch_size=16)
    config.stages.grpo.optimizer.learning_rate = 1e-5
    return config
