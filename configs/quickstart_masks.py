"""Reasoning whose every object carries a mask: a tiny Qwen3-VL and a tiny SAM 2 learn it together, from random weights.

A phantom shows four findings that differ in kind and size. The question is which of two is higher, further left or larger. The
model writes both with their masks and what it compares, and then the answer with its mask.

Stages:
  language  traces as text. Published models come from this stage, with which a `[SEG]` means something before it has a mask.
  sft       the same traces with the masks of their `[SEG]` tokens. Half of the questions are where a single finding is.
  grpo      episodes played for VRT's reward, the form of the trace and the masks of the answer.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("quickstart_qwen3.py")))

PARTS = ("vision", "merger", "decoder", "embeddings", "bridge", "mask_decoder", "mask_encoder")
SIDE = 48  # of the phantoms, in pixels; the language model sees them enlarged, like SAM 2
# The loss compares masks at 1/4 of SAM 2's side, with targets of which torch's nearest takes one pixel per place, the first.
# From phantoms of 96 px to maps of 24 it shifts them by 1.5 px, and a model without fault would reach an IoU of 0.64.
# Maps of the phantoms' own size lose nothing.
GROUND_SIDE = 4 * SIDE
AREAS = (200.0, 800.0)  # of pictures of 96 px: 2 to 9 % of a picture, of which less is background


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    seed = config.get_ref("seed")
    config.model.family = "sa2va_chat"
    # A random head chooses between three candidates for each mask, and only the chosen one learns.
    config.model.iou_head = "zero"
    config.model.sam2 = dict(
        trunk=dict(
            embed_dim_per_stage=(16, 32, 64, 128),
            num_attention_heads_per_stage=(1, 1, 2, 2),
            blocks_per_stage=(1, 1, 2, 1),
            window_size_per_stage=(8, 4, 6, 3),
            global_attention_blocks=(3,),
            window_positional_embedding_background_size=(6, 6),
        ),
        decoder=dict(hidden_size=64, mlp_dim=128, num_attention_heads=2, iou_head_hidden_dim=32),
        image_size=GROUND_SIDE,
    )
    config.processor.min_pixels = config.processor.max_pixels
    config.processor.tokenizer = "data_prep.phantom.tokenizer:save_for_traces"
    config.protocols = dict(vrt=dict(question="{question}"))
    config.limits = dict(tokens=64, turn_tokens=30, images=1)
    config.rollout.update(prefill_lengths=(36,), chunk=30, turn_masks=4, mask_rows=64)  # a trace has three masks
    # Kinds also differ in brightness, although neighbours overlap, so that they are easier to tell apart.
    options = dict(seed=seed, side=SIDE, areas=AREAS, graded=True)
    phantoms = dict(name="data_prep.phantom.findings:source", options=options)
    find = phantoms | dict(options=options | dict(task="find"))
    masks = dict(points=288, masks=3)  # an eighth of the pixels of a map

    config.schedule = ("language", "sft", "grpo")
    config.stages = ConfigDict()
    # Masks of states that do not tell findings apart become alike, empty or of all findings, and the mask decoder then hardly
    # reads the states: it took over 100 steps to leave that. With words first, the state at `[SEG]` holds the kind.
    config.stages.language = dict(
        sources=dict(findings=phantoms, find=find),
        protocol="vrt",
        train=("vision", "merger", "decoder", "embeddings"),
        objective=dict(name="sft"),
        steps=400,
        batch_size=32,
        policy_tokens=28,
        optimizer=dict(
            learning_rate=2e-3, schedule="cosine", warmup_steps=50, final_fraction=0.2, beta2=0.98, weight_decay=0.01
        ),
    )
    config.stages.sft = dict(
        start="language",
        sources=dict(findings=phantoms, find=find),
        protocol="vrt",
        train=PARTS,
        objective=dict(name="sft", masks=masks | dict(dice=2.0)),
        steps=600,  # of 1.7 s of one core each
        batch_size=32,  # more steps in the same time than with 64
        policy_tokens=28,
        optimizer=dict(
            learning_rate=1e-3, schedule="cosine", warmup_steps=50, final_fraction=0.05, beta2=0.98, weight_decay=0.01
        ),
    )
    config.stages.grpo = dict(
        start="sft",
        sources=dict(findings=phantoms),
        protocol="vrt",
        train=PARTS,
        steps=60,  # of 64 rows, each as long as two of the first stage: a fifth of its time
        batch_size=8,
        objective=dict(
            name="grpo",
            group_size=8,
            mean="sequences",
            epsilon=1e-4,
            rewards=dict(vrt=dict(function="vrt")),
            masks=masks,
        ),
        optimizer=dict(learning_rate=3e-4, schedule="cosine", warmup_steps=5, weight_decay=0.0, final_fraction=0.1),
        keep_trajectories=8,
    )
    config.evaluation = phantoms | dict(split="test", options=options | dict(length=512))
    config.evaluation_samples = 512
    of_its_masks = dict(stage="grpo", of="grpo", is_control=True)
    config.proof = dict(
        title="The quickstart with masks: what was each object, and which one answers?",
        rows=dict(
            sft=dict(label="after SFT", stage="sft"),
            grpo=dict(label="after GRPO", stage="grpo"),
            wrong_image=dict(
                label="after GRPO, another phantom's picture", stage="grpo", control="wrong_image", is_control=True
            ),
            erased=dict(label="after GRPO, its evidence blurred", control="erase_masks", **of_its_masks),
            elsewhere=dict(label="after GRPO, as much blurred elsewhere", control="erase_elsewhere", **of_its_masks),
        ),
        order=("sft", "grpo", "wrong_image", "erased", "elsewhere"),
        episode="grpo",
        measures=("r_lq", "r_sq", "a_miou"),
        rewards="grpo",
        chance=0.5,
        curves=("actor/loss", "actor/masks/iou", "reward/format", "reward/answer"),
        duration="26 CPU minutes",
        images=True,  # phantoms are synthetic
        conclusion="data_prep.phantom.proof:what_masks_showed",
    )
    return config
