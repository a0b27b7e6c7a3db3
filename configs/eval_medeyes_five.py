"""Evaluates a checkpoint that plays MedEyes' protocol on the five benchmarks of its paper (arXiv 2511.22018), in one table.

  python -m vitar_jax.evaluate --config=configs/eval_medeyes_five.py --workdir=runs/five --checkpoint=RUN/grpo/model \
      --config.data.sets=DIR --config.data.processor=DIR

--config.data.sets is the folder where `python -m data_prep.build` has built them. SLAKE is its English part, MMMU its subjects
of health and medicine. Closed and open questions are scored apart too, below the primary rule and in `scores.json`. The paper
leaves open which answers to open questions count as right; published rules for them differ by more than ten points.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("medeyes_3b.py")))
held_out = runpy.run_path(str(Path(__file__).with_name("eval_vitar_seven.py")))["held_out"]


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.stages.grpo.objective.experts = None  # an evaluation needs no traces
    del config.data["traces"]
    config.benchmarks = dict(
        # Each may name its `protocol`, `rules` and `primary` rule too.
        vqa_rad=held_out(config, "vqa_rad"),
        slake=held_out(config, "slake", language="en"),
        path_vqa=held_out(config, "path_vqa"),
        pmc_vqa=held_out(config, "pmc_vqa", "test_clean"),
        mmmu_medical=held_out(config, "mmmu_medical", "validation"),
    )
    return config
