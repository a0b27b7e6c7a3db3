"""ViTAR at its own size: a model of 7 billion parameters on VQA-RAD, for slices of TPUs.

  --config.model.pretrained=lingshu-medical-mllm/Lingshu-7B   the weights that ViTAR starts from; random ones without
  --config.data.source=DIR      `VQA_RAD Dataset Public.json` and its image folder
  --config.data.processor=DIR   `tokenizer.json` and `preprocessor_config.json` of Qwen2.5-VL

GRPO's numbers are those of ViTAR's published script: 128 questions a step, each played 8 times, learning rate, betas, decay,
clips, no KL term. So is SFT's batch of 256; its learning rate and twelve passes are this project's, as the published script
cannot be what was run. So are the budgets of an image, 256 tokens, and of an episode.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import vqa_rad_small


def get_config() -> ConfigDict:
    config: Any = vqa_rad_small.get_config()
    del config.model["text"], config.model["vision"]
    config.model.update(size="lingshu_7b", dtype="bfloat16", remat="layer", attention="splash")
    config.processor.update(max_pixels=28 * 28 * 256, size_classes=((24, 64),))
    config.limits = dict(tokens=2048, turn_tokens=512, images=2)
    config.rollout.update(slots=64, extend_lengths=(512, 1024), chunk=64, quorum=8, tensor=4, dtype="bfloat16", overlap=True)
    config.stages.sft.update(
        steps=84,  # twelve times over the data
        batch_size=256,
        policy_tokens=512,
        micro_rows=4,
        logprob_chunk=512,
        optimizer=dict(learning_rate=1e-5, schedule="cosine", warmup_steps=8, final_fraction=0.0, beta2=0.95),
        checkpoint_every=20,
        log_every=1,
    )
    config.stages.grpo.update(
        steps=28,  # twice over the data
        batch_size=128,
        micro_rows=4,
        logprob_chunk=512,
        optimizer=dict(learning_rate=1e-6),
        checkpoint_every=7,
        probe_every=7,
        keep_trajectories=16,
    )
    return config
