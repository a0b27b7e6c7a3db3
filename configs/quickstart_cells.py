"""Does looking twice pay on real images? A tiny Qwen2.5-VL learns to look twice at blood smears, from random weights.

The smears are those of BCCD, whose published folder is required: --config.data.source=DIR. A platelet has about 5 pixels in the
first view. `data_prep.smears` describes the questions. Stages and sizes are those of `quickstart.py`, but these:

  processor  brightness and contrast of smears; the first view has 84 x 56 pixels (6 tokens)
  stages     questions about smears in place of phantoms; a longer warm-up, because cells are harder to see than phantoms' spots
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed = config.get_ref("seed")
    data = config.data = ConfigDict(dict(source=""))
    directory = data.get_ref("source")

    def smears(task: str) -> dict:
        return dict(smears=dict(name="data_prep.smears:source", options=dict(task=task, seed=seed, directory=directory)))

    config.processor.update(
        tokenizer="data_prep.smears:save_tokenizer",
        image_mean=(0.738, 0.696, 0.711),
        image_std=(0.062, 0.102, 0.081),
    )
    stages = config.stages
    for name, stage in stages.items():
        stage.sources = ConfigDict(smears("warmup" if name == "warmup" else "look"))
    stages.warmup.steps = 900
    config.evaluation = dict(name="data_prep.smears:source", split="test", options=dict(directory=directory))
    config.evaluation_samples = 0
    forced = dict(stage="grpo", thought="data_prep.smears:thought", is_control=True)
    proof = config.proof
    proof.title = "Blood smears: does looking twice pay on real images?"
    proof.rows = dict(
        one_look=dict(label="one look", stage="one_look"),
        two_looks_sft=dict(label="two looks, after SFT", stage="sft"),
        two_looks_grpo=dict(label="two looks, after GRPO", stage="grpo"),
        random_box=dict(label="two looks, random box", look="random", **forced),
        oracle_box=dict(label="two looks, box from the truth", look="truth", **forced),
        blank=dict(label="two looks, blank image", stage="grpo", control="blank", is_control=True),
        region_erased=dict(label="two looks, region erased", stage="grpo", control="region_erased", is_control=True),
    )
    proof.order = ("one_look", "two_looks_sft", "two_looks_grpo", "random_box", "oracle_box", "blank", "region_erased")
    proof.images = False
    proof.duration = ""
    proof.chance = 0.424  # of always giving the most frequent answer of each kind of question
    proof.conclusion = "data_prep.smears:what_looking_pays"
    proof.measures = ("iou", *(f"data_prep.smears:{kind}_right" for kind in ("part", "finding", "count")))
    return config
