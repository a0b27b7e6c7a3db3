"""A shortened `quickstart_masks` with a smaller model: checks that every part runs. It learns nothing worth measuring."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart_masks.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    shorten(config)
    # A model that has learnt nothing outlines nothing that could be taken away.
    del config.proof.rows["erased"], config.proof.rows["elsewhere"]
    config.proof.order = ("sft", "grpo", "wrong_image")
    return config


def shorten(config: Any) -> None:
    """Shortens a recipe with masks in place. All stages have room for two rounds, so that they share compiled programs."""
    config.model.text.update(hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=24, mrope_section=(4, 4, 4))
    config.model.vision.update(depth=1, hidden_size=32, intermediate_size=48, out_hidden_size=32)
    config.model.sam2.image_size = 96
    config.model.sam2.trunk.update(blocks_per_stage=(1, 1, 1, 1), global_attention_blocks=())
    config.rollout.update(slots=8, encode_batch=8, mask_rows=8)
    config.rollout.prefill_lengths = (24, 36)
    config.limits = dict(tokens=104, turn_tokens=30, images=2)
    config.processor.tokenizer = "data_prep.phantom.tokenizer:save_for_outlines"
    for stage in config.stages.values():
        # The gradient of the image encoder takes as long to compile as that of all else.
        stage.update(steps=2, batch_size=2, log_every=1, train=tuple(part for part in stage.train if part != "mask_encoder"))
        stage.update(tokens=104, policy_tokens=60, row_images=2)
        if "masks" in stage.objective:
            stage.objective.masks.masks = 3
        if stage.objective.name == "grpo":
            stage.objective.group_size = 2
    config.evaluation_samples = 8
    config.proof.duration = ""
