"""ViTAR's stages on data of your own, from Qwen2.5-VL-3B: SFT on curated demonstrations, then GRPO on curated questions.

  python -m data_prep.curate --format=coco --annotations=boxes.json --images=IMAGES --output=CURATED --interactive=0.25
  python -m data_prep.build own --source=CURATED/questions.jsonl --data_dir=DATA

  --config.data.demonstrations=CURATED/interactive.jsonl
  --config.data.sets=DATA       folder of the second command, which splits the questions by patient
  --config.data.processor=DIR   folder with `tokenizer.json` and `preprocessor_config.json` of Qwen2.5-VL
  --config.model.pretrained=Qwen/Qwen2.5-VL-3B-Instruct

Batches are smaller than those of `vitar_3b`, whose other settings are the same.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_3b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.data.demonstrations = ""
    own = dict(name="data_prep.built:source", options=dict(set="own", data_dir=config.data.get_ref("sets")))
    config.stages.sft.sources = dict(
        shown=dict(name="questions", protocol="vitar", options=dict(file=config.data.get_ref("demonstrations")))
    )
    config.stages.sft.update(batch_size=32, steps=100)
    config.stages.grpo.sources = dict(asked=own)
    config.stages.grpo.batch_size = 32
    config.evaluation = dict(own, split="test")
    return config
