"""MedEyes (arXiv 2511.22018) at full size: GRPO over two streams, from Qwen2.5-VL-3B, on TPU slices.

  --config.data.sets=DIR        folder where `python -m data_prep.build` has built vqa_rad, slake and path_vqa
  --config.data.traces="('DIR','DIR')"   folders with an expert's searches of the three sets, as from
                                `python -m data_prep.gaze --set=vqa_rad --data_dir=DIR --split=train --expert=... --output=DIR`
  --config.data.processor=DIR   folder with `tokenizer.json` and `preprocessor_config.json` of Qwen2.5-VL
  --config.model.pretrained=Qwen/Qwen2.5-VL-3B-Instruct   weights that MedEyes starts from (default: random weights)

Comments mark where a value comes from. "Paper": the paper, by its abstract, its figures and notes that quote it. "Published
code": github.com/zhcz328/MedEyes at 4faf286, which cannot train. "Ours": both leave the value open, or it cannot be right.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_3b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.data.traces = ()
    sets, traces = config.data.get_ref("sets"), config.data.get_ref("traces")
    # Ours: 256 tokens per image, five images (four gazes), and the text of five turns. Published code: 336 x 336 pixels, the
    # size that its expert takes, and 1,024 tokens of response.
    config.limits = dict(tokens=3072, turn_tokens=256, images=5)

    def questions(name: str, **options: str) -> dict:
        return dict(name="data_prep.built:source", options=dict(set=name, data_dir=sets, **options))

    config.schedule = ("grpo",)
    config.stages = ConfigDict()
    config.stages.grpo = dict(
        # Ours: the paper does not name its training data. Published code: each set's own training split, separately.
        sources=dict(
            vqa_rad=questions("vqa_rad"), slake=questions("slake", language="en"), path_vqa=questions("path_vqa")
        ),
        protocol="medeyes",  # paper: at most four gazes
        steps=80,  # paper
        # Ours: questions per step, a multiple of a slice's chips. Paper: 98; 80 steps of 98 questions are its three epochs of
        # 2,600, but it could also count episodes (7 questions of 8 + 6).
        batch_size=96,
        objective=dict(
            name="grpo",
            group_size=8,  # paper
            mean="sequences",  # paper: every episode is weighted by the inverse of its length
            clip_low=0.2,  # published code, as are the next three
            clip_high=0.2,
            kl_coefficient=0.0,
            epsilon=1e-6,
            entropy_coefficient=0.0,  # ours: none is mentioned
            # Ours: the objective assumes the policy's own probabilities. Published code: 0.7 and 0.9.
            temperature=1.0,
            top_p=1.0,
            rewards=dict(medeyes=dict(function="medeyes")),  # paper: 0.7 answer + 0.2 grammar + 0.1 diversity
            experts=dict(
                traces=traces,
                searches=6,  # paper
                scope="stream",  # paper: each stream has its own mean and std; ours: of a question, as in GRPO
                shape="none",  # paper: the policy's probability over the expert's, which is 1
                clip=True,  # paper
                missing="skip",  # ours: a question whose image or answer the expert could not handle stays a question
            ),
        ),
        micro_rows=2,
        logprob_chunk=512,
        # Paper: AdamW at 1e-6. Published code: weight decay, clip_norm 1.0. Ours: a constant rate, because the published code's
        # 500 steps of warm-up exceed the paper's 80 steps, and its training script does not use them.
        optimizer=dict(learning_rate=1e-6, schedule="constant", weight_decay=0.01, clip_norm=1.0),
        checkpoint_every=10,
        log_every=1,
        probe_every=20,
        keep_trajectories=14,  # the episodes and searches of one question
    )
    config.evaluation = questions("vqa_rad") | dict(split="test")
    return config
