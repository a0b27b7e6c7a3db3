"""VRT (arXiv 2512.05091) at full size: R-Sa2VA by SFT on traces, then GRPO, from Sa2VA-Qwen3-VL-4B, on TPU slices.

  --config.data.sets=DIR        folder where `python -m data_prep.build` has built vrt_80k and vrt_bench
  --config.data.processor=DIR   folder with `tokenizer.json` and `preprocessor_config.json` of Sa2VA-Qwen3-VL-4B
  --config.model.pretrained=ByteDance/Sa2VA-Qwen3-VL-4B   weights that VRT starts from (default: random weights)

Comments mark where a value comes from. "Published code": the configs vrt_sa2va_4b_qwen3_sft.py and
vrt_qwen3_4b_grpo_0801_2k_filtered.py of github.com/bytedance/Sa2VA, and the model files that they name. "Ours": they leave the
value open, or it has no counterpart here.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config: Any = ConfigDict()
    config.seed = 0
    data = config.data = ConfigDict(dict(sets="", processor=""))
    sets, processor = data.get_ref("sets"), data.get_ref("processor")
    config.model = dict(size="sa2va_qwen3_vl_4b", dtype="bfloat16", remat="layer", attention="splash")
    config.processor = dict(
        tokenizer=processor,
        image=processor,
        min_pixels=512 * 28 * 28,  # published code, as is the next: 392 to 1,568 tokens of 32 x 32 pixels
        max_pixels=2048 * 28 * 28,
        size_classes=((1, 6272),),  # four patches per token
    )
    # Ours: an image, the prompt of 120 tokens and one turn. Published code: 8,192 tokens of SFT; RL writes at most 1,024.
    config.limits = dict(tokens=3072, turn_tokens=1024, images=1)
    config.rollout = dict(slots=64, prefill_lengths=(1024, 2048), chunk=64, tensor=4, dtype="bfloat16")

    def questions(name: str, split: str) -> dict:
        return dict(name="data_prep.built:source", split=split, options=dict(set=name, data_dir=sets))

    adapters = dict(
        # Published code: on every projection of the decoder, without biases. Ours: no dropout; theirs is 0.05.
        lora=dict(rank=128, alpha=256.0),
        logprob_chunk=512,
        log_every=1,
    )
    optimizer = dict(schedule="cosine", final_fraction=0.0, weight_decay=0.05, clip_norm=1.0)  # published code, with betas
    config.schedule = ("sft", "grpo")
    config.stages = ConfigDict()
    config.stages.sft = dict(
        **adapters,
        sources=dict(traces=questions("vrt_80k", "train")),
        protocol="vrt",
        train=("decoder", "bridge", "mask_decoder"),  # published code: bridge and mask decoder whole, SAM 2's encoder frozen
        # Published code: 2.0 cross-entropy and 0.5 dice at 12,544 points of five masks, which are the defaults.
        objective=dict(name="sft", masks=dict(cross_entropy=2.0, dice=0.5, points=12_544, masks=5)),
        steps=1291,  # one epoch: the name of the published checkpoint has 5,164 steps of 16 examples
        batch_size=64,  # published code: 2 on each of 8 GPUs, gradients of 4 steps added up
        micro_rows=2,
        optimizer=dict(**optimizer, learning_rate=4e-5, warmup_steps=65),  # published code: 5 % of the steps
        checkpoint_every=100,
    )
    config.stages.grpo = dict(
        **adapters,  # published code: new ones, those of SFT are merged
        start="sft",
        sources=dict(questions=questions("vrt_80k", "train")),
        protocol="vrt",
        train=("decoder", "bridge"),  # published code: the mask decoder is frozen
        objective=dict(
            name="grpo",
            group_size=4,  # published code, as are the next seven
            temperature=1.2,
            top_p=0.9,
            surrogate="gpg",  # one update per rollout, so that the ratio is 1, without clipping
            mean="sequences",
            kl_coefficient=0.0,
            epsilon=1e-4,
            ddof=1,
            rewards=dict(vrt=dict(function="vrt")),  # published code: format and answer, 1.0 each; ours without its slips
            # Published code: these weights, on the masks of the answer of a group's best episode. `learning/grpo.py` says
            # what is ours.
            masks=dict(cross_entropy=2.0, dice=0.5),
            # Ours. Published code: 2,000 questions on which rewards varied most; the list is not published. Questions on which
            # all rewards are equal are replaced by further ones instead.
            refills=10,
        ),
        steps=62,  # published code: one epoch of 2,000 questions
        batch_size=32,  # published code: 1 per GPU, gradients of 4 steps added up; ours: 8 GPUs, as in SFT
        micro_rows=2,
        optimizer=dict(**optimizer, learning_rate=1e-5),  # published code, without warm-up
        checkpoint_every=20,  # published code
        probe_every=20,
        keep_trajectories=8,
    )
    config.evaluation = questions("vrt_bench", "test")
    # The published rule, by which R-Sa2VA has R-LQ 66.3, R-SQ 87.3 and A-mIoU 59.5 after SFT, and 67.0, 86.7 and 62.1 after RL,
    # and ours beside it.
    config.benchmarks = dict(vrt_bench=dict(source=config.evaluation, rules=("vrt", "vrt-strict"), primary="vrt"))
    return config
