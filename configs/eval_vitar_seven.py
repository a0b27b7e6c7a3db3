"""Evaluates a checkpoint that plays ViTAR's protocol on seven medical benchmarks, in one table.

  python -m vitar_jax.evaluate --config=configs/eval_vitar_seven.py --workdir=runs/seven --checkpoint=RUN/grpo/model \
      --config.data.sets=DIR --config.data.processor=DIR

--config.data.sets is the folder where `python -m data_prep.build` has built them. No public source lists the seven benchmarks
of ViTAR's paper. These are the seven on which Lingshu-7B, the model that ViTAR starts from, reports results. They include every
benchmark that ViTAR's published evaluation code reads. Only the English part of SLAKE is used, as in ViTAR's bundle.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_grpo_7b.py")))


def held_out(config: Any, name: str, split: str = "test", **options: str) -> dict:
    """Returns a benchmark of a built set in `config.data.sets`."""
    options = dict(set=name, data_dir=config.data.get_ref("sets"), **options)
    return dict(source=dict(name="data_prep.built:source", split=split, options=options))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.benchmarks = dict(
        # Each may name its `protocol`, `rules` and `primary` rule too.
        vqa_rad=held_out(config, "vqa_rad"),
        slake=held_out(config, "slake", language="en"),
        path_vqa=held_out(config, "path_vqa"),
        pmc_vqa=held_out(config, "pmc_vqa", "test_clean"),
        omnimedvqa=held_out(config, "omnimedvqa"),
        mmmu_medical=held_out(config, "mmmu_medical", "validation"),
        medxpertqa_mm=held_out(config, "medxpertqa_mm"),
    )
    return config
