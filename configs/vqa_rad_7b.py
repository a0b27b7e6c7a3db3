"""Supervised fine-tuning at ViTAR's size on VQA-RAD alone: real input for `vitar_jax.bench data`. The boxes are templates.

--config.data.source=DIR      folder with `VQA_RAD Dataset Public.json` and its image folder
--config.data.processor=DIR   folder with `tokenizer.json` and `preprocessor_config.json` of Qwen2.5-VL
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_sft_7b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    del config.data["sets"]
    config.data.source = ""
    directory = config.data.get_ref("source")
    options = dict(directory=directory, demonstrations="two_rounds", tool="mark")
    config.stages.sft.sources = dict(vqa_rad=dict(name="data_prep.sets.vqa_rad:source", options=options))
    config.evaluation = dict(name="data_prep.sets.vqa_rad:source", split="test", options=dict(directory=directory))
    return config
