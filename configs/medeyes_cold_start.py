"""MedEyes on phantoms from weights that have never seen an episode's format: which arms start to follow it, and how fast?

  bash launch/quickstart.sh --config=configs/medeyes_cold_start.py --workdir=runs/medeyes_cold_start

Every arm starts from the warm-up of `medeyes_quickstart`, whose answers are single words. The expert's scans miss 30 % of the
spots, so that some of its searches are wrong: searches that are all worth the same would teach the published form nothing.

Stages:
  warmup     short questions about the image, from random weights.
  grpo       GRPO alone. No episode has a reward, so its gradient is exactly 0.
  published  GRPO over both streams as MedEyes publishes it.
  mixed      GRPO over both streams with the policy's statistics, and a supervised term on the searches that are right.
  dialogues  SFT on all of the expert's dialogues alone, right and wrong.

Probes play held-out phantoms every ten updates, in all arms alike. The conclusion names the first probe in which half of the
episodes are in the format.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("medeyes_quickstart.py")))

STEPS = 300  # of each arm
TRACES = "data_prep.phantom.gazes:poor_searches"
ARMS = {name: _BASE["ARMS"][name] for name in ("grpo", "published", "mixed", "dialogues")}


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed, stages = config.get_ref("seed"), config.stages
    for name in ("one_gaze", *_BASE["ARMS"]):
        del stages[name]
    published = _BASE["experts"](TRACES, scope="stream")
    for name, experts in dict(grpo=None, published=published, mixed=_BASE["mixed"](TRACES, steps=STEPS)).items():
        stages[name] = _BASE["grpo"](seed, experts)
    stages.dialogues = _BASE["arm"](
        sources=_BASE["search"](seed, "data_prep.phantom.gazes:dialogues", misses=0.3),  # as in `poor_searches`
        objective=dict(name="sft", rewards=stages.grpo.objective.rewards),
        batch_size=8 * 6,
    )
    for name in ARMS:
        stages[name].update(start="warmup", steps=STEPS, probe_every=10)
    config.schedule = ("warmup", *ARMS)
    config.proof.rows = {name: dict(label=label, stage=name) for name, label in ARMS.items()}
    config.proof.update(
        title="MedEyes on phantoms: which arms start from weights that do not know the format?",
        duration="",
        order=tuple(ARMS),
        measures=(*config.proof.measures, "vitar_jax.learning.gaze_reward:follows_grammar"),
        curves=("probe/reward/grammar", "probe/reward/answer", *config.proof.curves),
        conclusion="data_prep.phantom.proof:what_started",
    )
    return config
