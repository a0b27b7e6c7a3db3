"""Reasoning whose every object carries a mask: a tiny Qwen3-VL and a tiny SAM 2 learn it together, from random weights.

A phantom shows four findings that differ in kind and size. The question is which of two is higher, further left or larger. The
model writes both with their masks and what it compares, and then the answer with its mask.

Stages:
  sft   traces: the language, and the masks of their `[SEG]` tokens.
  grpo  episodes played for VRT's reward, the form of the trace and the masks of the answer.
"""

from ml_collections import ConfigDict

PARTS = ("vision", "merger", "decoder", "embeddings", "bridge", "mask_decoder", "mask_encoder")
SIDE = 96  # of the phantoms, in pixels


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    seed = config.get_ref("seed")  # the phantoms depend on the run's seed
    config.model = ConfigDict()
    config.model.family = "sa2va_chat"
    config.model.text = dict(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        mrope_section=(4, 6, 6),
        rope_theta=100.0,  # at 5e6 the frequencies of the width would barely rotate over a 3 x 3 grid
        tie_word_embeddings=True,
    )
    config.model.vision = dict(
        depth=2,
        hidden_size=64,
        intermediate_size=192,
        num_heads=2,
        out_hidden_size=64,
        num_position_embeddings=36,
        deepstack_visual_indexes=(0,),
    )
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
        image_size=SIDE,
    )
    config.model.patch_filters = "zero_mean"
    config.processor = dict(
        tokenizer="data_prep.phantom.tokenizer:save_for_traces",
        min_pixels=4096,
        max_pixels=SIDE**2,
        image_mean=(0.26, 0.26, 0.26),
        image_std=(0.08, 0.08, 0.08),
        size_classes=((1, 36),),  # 36 patches of 16 x 16 pixels, 9 tokens
    )
    config.protocols = dict(vrt=dict(question="{question}"))
    config.limits = dict(tokens=64, turn_tokens=30, images=1)
    config.rollout = dict(slots=64, prefill_lengths=(36,), prefill_rows=16, encode_batch=16, chunk=30, quorum=64)
    config.rollout.update(overlap=False, workers=1)  # on a CPU, as in `quickstart.py`
    config.rollout.update(turn_masks=4, mask_rows=64)  # a trace has three masks
    sources = dict(findings=dict(name="data_prep.phantom.findings:source", options=dict(seed=seed, side=SIDE)))
    masks = dict(points=288, masks=3)  # half the pixels of a map

    config.schedule = ("sft", "grpo")
    config.stages = ConfigDict()
    config.stages.sft = dict(
        sources=sources,
        protocol="vrt",
        train=PARTS,
        objective=dict(name="sft", masks=masks),
        steps=1000,
        batch_size=64,
        policy_tokens=28,
        optimizer=dict(
            learning_rate=3e-3, schedule="cosine", warmup_steps=50, final_fraction=0.05, beta2=0.98, weight_decay=0.01
        ),
    )
    config.stages.grpo = dict(
        start="sft",
        sources=sources,
        protocol="vrt",
        train=PARTS,
        steps=150,
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
    config.evaluation = dict(
        name="data_prep.phantom.findings:source", split="test", options=dict(seed=seed, side=SIDE, length=512)
    )
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
        images=True,  # phantoms are synthetic
        conclusion="data_prep.phantom.proof:what_masks_showed",
    )
    return config
