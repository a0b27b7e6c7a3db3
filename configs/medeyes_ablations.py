"""Ablations of MedEyes on phantoms: the rows of the paper's tables 2, 3 and 5, with the paper's order beside ours.

  bash launch/medeyes_ablations.sh

Each row is a stage that starts from the same weights and makes the same number of updates. It sees each phantom four times, so
that replay has earlier episodes. Phantoms show three spots, and an episode may have five gazes.
`data_prep/phantom/ablations.py` defines the expert of each row.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("medeyes_quickstart.py")))

SPOTS = 3
STEPS = 200  # of each arm
LENGTH = 8 * STEPS // 4  # number of phantoms
SEARCHES = {"searches_2": 2, "searches_4": 4, "searches_8": 8}
# The order in which they run and are drawn. `full` has the paper's six searches and four gazes.
ARMS = (
    *("full", "without_navigator", "without_sampler", "without_expert", "scan_alone", "drill_alone"),
    *(*SEARCHES, "gazes_2", "gazes_3", "gazes_5", "random_regions", "replay_newest", "replay_best"),
)


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed = config.get_ref("seed")
    config.protocols.medeyes.max_turns = 6
    config.limits = dict(tokens=256, turn_tokens=28, images=6)
    for name in _BASE["ARMS"]:
        del config.stages[name]
    config.stages.one_gaze.sources.search.options.spots = SPOTS
    config.evaluation.options.spots = SPOTS
    for name in ARMS:
        traces = f"data_prep.phantom.ablations:{'full' if name in SEARCHES else name}"
        experts = _BASE["mixed"](traces, SEARCHES.get(name, 6), STEPS)
        if name.startswith("replay_"):
            experts.update(traces=(), replay=name.removeprefix("replay_"))
        chosen = None if name == "without_expert" else experts
        config.stages[name] = _BASE["grpo"](seed, chosen, spots=SPOTS, length=LENGTH) | dict(steps=STEPS)
    config.schedule = ("warmup", "one_gaze", *ARMS)
    config.proof.rows = {name: dict(label=name.replace("_", " "), stage=name) for name in ("one_gaze", *ARMS)}
    config.proof.update(
        title="Ablations of MedEyes on phantoms",
        order=("one_gaze", *ARMS),
        episode="full",
        rewards="full",
        conclusion="data_prep.phantom.ablations:tables",
    )
    return config
