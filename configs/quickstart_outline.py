"""Looking twice at one's own masks: does a model that sees them outlined before it answers do better than one that does not?

The first of two arms is `quickstart_masks.py`, whose numbers are all taken over. The second has a copy of each stage, with as
many steps and samples, in which a trace has two rounds: the model reasons with masks, sees them outlined on the picture, and
reasons and answers with masks.

Stages:
  language, sft, grpo                          one round, the protocol `vrt`.
  outline_language, outline_sft, outline_grpo  two rounds, the protocol `outline`.

The proof pairs the arms on the same held-out phantoms. A control shows the second arm its picture again without the outlines.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart_masks.py")))

OBSERVATION = "Outlined."  # one token
TOKENS = 104  # of an episode of two rounds, of which a demonstration takes at most 96
POLICY_TOKENS = 48  # of a demonstration of two rounds, at most 47
MASKS = 5  # of a trace in two rounds: two in the first, three in the second


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.processor.tokenizer = "data_prep.phantom.tokenizer:save_for_outlines"
    outline = dict(question="{question}", observation=OBSERVATION)
    config.protocols.outline = outline
    config.protocols.unmarked = outline | dict(
        parser="outline",
        system="",
        tools=("data_prep.phantom.proof:unmarked",),
        max_turns=2,
        allowed_tokens=("[SEG]", "<think>", "</think>"),
    )
    one_round = dict(config.limits)
    config.limits.update(tokens=TOKENS, images=2)
    config.rollout.prefill_lengths = (24, *config.rollout.prefill_lengths)  # an observation, and a prompt

    first = tuple(config.schedule)
    config.schedule = (*first, *map("outline_{}".format, first))
    for name in first:
        stage = config.stages[name]
        for source in stage.sources.values():
            source.options.outline = True  # a protocol of one round ignores the first
        twice = stage.to_dict()
        for source in twice["sources"].values():
            source["options"]["seed"] = config.get_ref("seed")
        twice["protocol"] = "outline"
        if twice.get("start"):
            twice["start"] = f"outline_{twice['start']}"
        if stage.objective.name == "sft":
            stage.update(tokens=one_round["tokens"], row_images=one_round["images"])
            twice["policy_tokens"] = POLICY_TOKENS
            if "masks" in stage.objective:
                twice["objective"]["masks"]["masks"] = MASKS
        config.stages[f"outline_{name}"] = twice

    config.proof.title = "The quickstart of outlines: does it pay to look twice at one's own masks?"
    config.proof.rows = dict(
        sft=dict(label="one round, after SFT", stage="sft"),
        grpo=dict(label="one round, after GRPO", stage="grpo"),
        outline_sft=dict(label="two rounds, after SFT", stage="outline_sft"),
        outline_grpo=dict(label="two rounds, after GRPO", stage="outline_grpo"),
        unmarked=dict(label="two rounds, without outlines", stage="outline_grpo", protocol="unmarked", is_control=True),
    )
    config.proof.order = ("sft", "grpo", "outline_sft", "outline_grpo", "unmarked")
    config.proof.update(episode="outline_grpo", rules=("vrt/1",), conclusion="")
    config.proof.compared = (("sft", "outline_sft"), ("grpo", "outline_grpo"), ("unmarked", "outline_grpo"))
    return config
