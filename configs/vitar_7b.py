"""ViTAR (arXiv 2510.10052) at full size: SFT on interactive examples, then GRPO, from Lingshu-7B, on TPU slices.

  --config.data.sets=DIR        folder where `python -m data_prep.build` has built vitar_1k, vitar_16k and vqa_rad
  --config.data.processor=DIR   folder with `tokenizer.json` and `preprocessor_config.json` of Qwen2.5-VL
  --config.model.pretrained=lingshu-medical-mllm/Lingshu-7B   weights that ViTAR starts from (default: random weights)

Comments mark where a value comes from. "ViTAR": its published scripts (train_ViTAR_SFT.sh, train_ViTAR_RL.sh, and the defaults
of verl 0.2 that they keep). "Ours": the scripts leave the value open, or cannot have been run as published. The SFT script
reads only text and takes four steps over the data.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config: Any = ConfigDict()
    config.seed = 0
    data = config.data = ConfigDict(dict(sets="", processor=""))
    sets, processor = data.get_ref("sets"), data.get_ref("processor")
    config.model = dict(size="lingshu_7b", dtype="bfloat16", remat="layer", attention="splash")
    # Ours: 256 tokens per image; two images and the text of three turns per episode. ViTAR: 12,845,056 pixels, 8,192 tokens of
    # prompt and 20,480 of response, which few episodes approach. The size class has room for images up to 9 to 1; thinner
    # ones are skipped.
    config.processor = dict(tokenizer=processor, image=processor, max_pixels=28 * 28 * 256, size_classes=((24, 64),))
    config.limits = dict(tokens=2048, turn_tokens=512, images=2)
    config.rollout = dict(slots=64, prefill_lengths=(512, 1024), chunk=64, tensor=4, dtype="bfloat16")

    config.schedule = ("sft", "grpo")
    config.stages = ConfigDict()
    config.stages.sft = dict(
        sources=dict(interactive=dict(name="data_prep.built:source", options=dict(set="vitar_1k", data_dir=sets))),
        protocol="vitar",
        steps=48,  # ours: twelve epochs of a thousand examples, as the name of the model that ViTAR's RL starts from suggests
        objective=dict(name="sft", pack=True),
        batch_size=128,  # rows of about two examples each; ViTAR: 256 examples
        row_images=4,
        policy_tokens=768,
        micro_rows=2,
        logprob_chunk=512,
        optimizer=dict(
            learning_rate=1e-5,  # ours; ViTAR: 1e-6
            schedule="cosine",  # ViTAR, as are the next four
            warmup_steps=5,
            final_fraction=0.0,
            beta2=0.95,
            weight_decay=0.01,
        ),
        checkpoint_every=12,
        log_every=1,
    )
    config.stages.grpo = dict(
        start="sft",
        sources=dict(questions=dict(name="data_prep.built:source", options=dict(set="vitar_16k", data_dir=sets))),
        protocol="vitar",
        steps=250,  # ViTAR: two epochs of 16,000 questions; it keeps the weights of step 150
        batch_size=128,  # ViTAR; questions per step
        objective=dict(
            name="grpo",
            group_size=8,  # ViTAR's script; another of its runs used 16
            clip_low=0.2,  # ViTAR, as are the next six
            clip_high=0.2,
            dual_clip=3.0,
            kl_coefficient=0.0,
            entropy_coefficient=0.0,
            temperature=1.0,
            top_p=1.0,
        ),
        micro_rows=4,
        logprob_chunk=512,
        optimizer=dict(learning_rate=1e-6, schedule="constant", weight_decay=0.01),  # ViTAR, with betas 0.9 and 0.999
        checkpoint_every=10,
        log_every=1,
        probe_every=25,
        keep_trajectories=16,
    )
    config.evaluation = dict(name="data_prep.built:source", split="test", options=dict(set="vqa_rad", data_dir=sets))
    return config
