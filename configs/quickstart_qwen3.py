"""The quickstart with a tiny Qwen3-VL, DeepStack included, from random weights.

All settings are those of `quickstart.py` but these:

  model      the same widths and depths in the other family; one block of the vision tower is merged for the first decoder layer
  processor  a token has 32 x 32 pixels, so the first view has 96 px (9 tokens, as there)
  phantoms   textures with a period around 448 / 96 px, which shrinking to 96 px erases
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))
VIEW = 96
PERIOD = (4.4, 4.9)


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.model.family = "qwen3_vl"
    config.model.text.update(head_dim=32)
    config.model.vision = dict(
        depth=2,
        hidden_size=64,
        intermediate_size=192,
        num_heads=2,
        out_hidden_size=64,
        num_position_embeddings=36,
        deepstack_visual_indexes=(0,),
    )
    config.processor.update(min_pixels=4096, max_pixels=VIEW**2)
    sources = [source for stage in config.stages.values() for source in stage.sources.values()]
    for source in (*sources, config.evaluation):
        source.options.update(view=VIEW, period=PERIOD)
    config.proof.title = "The quickstart with Qwen3-VL: does looking twice pay?"
    config.proof.rows.probe.baseline = "data_prep.phantom.proof:probe_of_96_px"
    return config
