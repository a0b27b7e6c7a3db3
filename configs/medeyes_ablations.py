"""Ablations of MedEyes on phantoms: the rows of the paper's tables 2, 3 and 5, with the paper's order beside ours.

  bash launch/medeyes_ablations.sh

Each row is a stage that starts from the same weights and makes as many updates, fewer than an arm of `medeyes_quickstart`. It
sees each phantom four times, so that replay has earlier episodes. Phantoms show three spots; an episode may have five gazes.
`data_prep/phantom/ablations.py` defines the expert of each row, and the table that the run writes: ablations.md.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("medeyes_quickstart.py")))

SPOTS = 3
STEPS = 120  # of each arm
LENGTH = 8 * STEPS // 4  # number of phantoms
SEARCHES = {"searches_2": 2, "searches_4": 4, "searches_8": 8}
# The order in which they run and are drawn. `full` has the paper's six searches and four gazes.
ARMS = (
    *("full", "without_navigator", "without_sampler", "without_expert", "scan_alone", "drill_alone"),
    *(*SEARCHES, "gazes_2", "gazes_3", "gazes_5", "random_regions", "replay_newest", "replay_best"),
)


def get_config(arms: tuple[str, ...] = ARMS) -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed = config.get_ref("seed")
    config.protocols.medeyes.max_turns = 6
    config.limits = dict(tokens=256, turn_tokens=28, images=6)
    for name in _BASE["ARMS"]:
        del config.stages[name]
    config.stages.one_gaze.sources.search.options.spots = SPOTS
    config.evaluation.options.spots = SPOTS
    for name in arms:
        traces = f"data_prep.phantom.ablations:{'full' if name in SEARCHES else name}"
        experts = _BASE["mixed"](traces, SEARCHES.get(name, 6), STEPS)
        if name.startswith("replay_"):
            experts.update(traces=(), replay=name.removeprefix("replay_"))
        chosen = None if name == "without_expert" else experts
        stage = _BASE["grpo"](seed, chosen, spots=SPOTS, length=LENGTH) | dict(steps=STEPS, micro_rows=16)
        stage["objective"]["packed"] = True  # few episodes have five gazes, and rows have room for five
        config.stages[name] = stage
    config.schedule = ("warmup", "one_gaze", *arms)
    config.proof.rows = {name: dict(label=name.replace("_", " "), stage=name) for name in ("one_gaze", *arms)}
    config.proof.update(
        title="Ablations of MedEyes on phantoms",
        duration="",
        order=("one_gaze", *arms),
        episode=arms[0],
        rewards=arms[0],
        conclusion="data_prep.phantom.ablations:page",
        conclusion_file="ablations.md",
    )
    return config
