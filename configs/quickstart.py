"""The quickstart: a tiny Qwen2.5-VL learns from scratch to look, zoom, look again and answer.

Stages:
  warmup    short questions about the image (where is the spot, which texture does this crop have). It replaces the
            pretraining of a real model.
  sft       demonstrations of two turns.
  grpo      episodes of two turns, played for ViTAR's reward.
  one_look  the baseline: starts from `warmup` too and answers from the first view, with as many steps as `sft` and `grpo`
            together.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    seed = config.get_ref("seed")  # the phantoms depend on the run's seed
    config.model = ConfigDict()
    config.model.text = dict(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        mrope_section=(4, 6, 6),
        rope_theta=100.0,  # at 1e6 the frequencies of the width would barely rotate over a 3 x 3 grid
        tie_word_embeddings=True,
    )
    config.model.vision = dict(
        depth=2,
        hidden_size=64,
        intermediate_size=192,
        num_heads=2,
        out_hidden_size=64,
        fullatt_block_indexes=(0, 1),
        window_size=504,  # larger than any image, so all layers use full attention
    )
    config.model.patch_filters = "zero_mean"
    config.processor = dict(
        tokenizer="data_prep.phantom.tokenizer:save",
        min_pixels=3136,
        max_pixels=7100,
        image_mean=(0.26, 0.26, 0.26),
        image_std=(0.08, 0.08, 0.08),
        size_classes=((1, 36),),  # an image of 84 x 84 pixels: 36 patches, 9 tokens
    )
    config.protocols = dict(
        vitar=dict(
            system="Look twice.",
            tools=("zoom",),
            observation="Closer view.",
        ),
        direct=dict(system="Look once."),
        plain=dict(system="Look."),
    )
    config.limits = dict(tokens=104, turn_tokens=28, images=2)
    # On a CPU all slots advance in lockstep, because larger device calls save more time than idle slots cost.
    config.rollout = dict(slots=64, prefill_lengths=(24, 40), prefill_rows=16, encode_batch=16, chunk=28, quorum=64)
    config.rollout.update(overlap=False, workers=1)  # images this small take less time than a thread switch
    look = dict(name="data_prep.phantom:source", options=dict(task="look", seed=seed))
    warmup = dict(name="data_prep.phantom:source", options=dict(task="warmup", seed=seed, warmup_where=0.6, where_crops=0.15))

    config.schedule = ("warmup", "sft", "grpo", "one_look")
    config.stages = ConfigDict()
    config.stages.warmup = dict(
        sources=dict(warmup=warmup),
        protocol="plain",
        objective=dict(name="sft"),
        steps=600,
        batch_size=128,
        tokens=48,
        policy_tokens=12,
        row_images=1,  # the batch of a stage without looks has room for the images of its samples alone
        optimizer=_adamw(3e-3, steps=600),
    )
    config.stages.sft = dict(
        start="warmup",
        sources=dict(look=look),
        protocol="vitar",
        objective=dict(name="sft"),
        steps=600,
        batch_size=64,
        tokens=88,
        policy_tokens=34,
        optimizer=_adamw(3e-3, steps=600),
        probe_every=100,
    )
    config.stages.grpo = dict(
        start="sft",
        sources=dict(look=look),
        protocol="vitar",
        steps=400,
        batch_size=8,
        objective=dict(
            name="grpo",
            group_size=8,
            clip_low=0.2,
            clip_high=0.2,
            # ViTAR's reward plus the overlap (IoU) with the lesion, without which boxes shrink but drift off centre.
            rewards=dict(vitar=dict(function="vitar", weights=dict(iou=2.0))),
        ),
        optimizer=dict(learning_rate=5e-4, schedule="cosine", warmup_steps=5, weight_decay=0.0, final_fraction=0.1),
        probe_every=50,
        probe_interventions=("blank", "region_erased"),
        keep_trajectories=8,
    )
    config.stages.one_look = dict(
        start="warmup",
        sources=dict(look=look),
        protocol="direct",
        objective=dict(name="sft"),
        steps=1000,
        batch_size=64,
        tokens=56,
        policy_tokens=12,
        row_images=1,
        optimizer=_adamw(3e-3, steps=1000),
        checkpoint_every=250,
    )
    config.evaluation = dict(name="data_prep.phantom:source", split="test", options=dict(task="look", seed=seed))
    config.evaluation_samples = 512
    forced = dict(stage="grpo", thought="data_prep.phantom.proof:spot", is_control=True)
    config.proof = dict(
        title="The quickstart: does looking twice pay?",
        duration="10 to 15 minutes on two CPU cores",
        rows=dict(
            one_look=dict(label="one look", stage="one_look"),
            two_looks_sft=dict(label="two looks, after SFT", stage="sft"),
            two_looks_grpo=dict(label="two looks, after GRPO", stage="grpo"),
            random_box=dict(label="two looks, random box", look="random", **forced),
            oracle_box=dict(label="two looks, gold box", look="truth", **forced),
            probe=dict(label="probe of the first view", baseline="data_prep.phantom.proof:probe", is_control=True),
        ),
        order=("one_look", "two_looks_sft", "two_looks_grpo", "random_box", "oracle_box", "probe"),
        episode="two_looks_grpo",
        measures=("iou", "centre_error_px", "tight_box_share"),
        rewards="grpo",
        chance=0.25,
        curves=("actor/loss", "reward/mean", "probe/reward/accuracy"),
        images=True,  # phantoms are synthetic
        conclusion="data_prep.phantom.proof:what_grpo_changed",
    )
    return config


def _adamw(learning_rate: float, steps: int) -> dict:
    return dict(
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=min(50, steps // 10),
        final_fraction=0.05,
        beta2=0.98,
        weight_decay=0.01,
    )
