"""MedEyes on phantoms from weights that have never seen an episode's format: which arms start to follow it, and how fast?

Every arm starts from the warm-up of `medeyes_quickstart`, whose answers are single words. The expert's scans miss 30 % of the
spots, so that some of its searches are wrong.

Stages:
  warmup       short questions about the image, from random weights.
  grpo         GRPO alone. No episode has a reward, so its gradient is exactly 0.
  published    GRPO over both streams as MedEyes publishes it.
  mixed        GRPO over both streams with the policy's statistics, and a supervised term on the searches that are right.
  mixed_all    the same, but the supervised term learns from all searches.

  python -m vitar_jax.quickstart --config=configs/medeyes_cold_start.py --workdir=runs/medeyes_cold_start
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("medeyes_quickstart.py")))

TRACES = "data_prep.phantom.gazes:poor_searches"
ARMS = {
    "grpo": "GRPO alone",
    "published": "two streams as published",
    "mixed": "policy's statistics, SFT term on right",
    "mixed_all": "policy's statistics, SFT term on all",
}


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed, stages = config.get_ref("seed"), config.stages
    for name in ("one_gaze", *_BASE["ARMS"]):
        del stages[name]
    streams = {
        "grpo": None,
        "published": _BASE["experts"](TRACES, scope="stream"),
        "mixed": _BASE["mixed"](TRACES),
        "mixed_all": _BASE["mixed"](TRACES) | dict(supervise="all"),
    }
    for name in ARMS:
        stages[name] = _BASE["grpo"](seed, streams[name]) | dict(start="warmup")
    config.schedule = ("warmup", *ARMS)
    config.proof.rows = {name: dict(label=label, stage=name) for name, label in ARMS.items()}
    config.proof.update(
        title="MedEyes on phantoms: which arms start from weights that do not know the format?",
        order=tuple(ARMS),
        measures=(*config.proof.measures, "vitar_jax.learning.gaze_reward:follows_grammar"),
        curves=("reward/grammar", *config.proof.curves),
        conclusion="data_prep.phantom.proof:what_started",
    )
    return config
