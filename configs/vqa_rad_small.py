"""VQA-RAD with the real tokenizer and real image processing, and a model small enough for a laptop.

This recipe shows that training runs end to end on real data. A model of this size, from random weights, learns which answers
questions have, and the format of an episode. Evaluate it with `--control=blank` and `--control=wrong_image`, too, which show
how much of that is language. Two folders are required:

  --config.data.source=DIR      folder with `VQA_RAD Dataset Public.json` and its image folder
  --config.data.processor=DIR   folder with `tokenizer.json` and `preprocessor_config.json` of Qwen2.5-VL

Stages:
  answers  questions and plain answers, ten times each. The format of an episode takes 60 tokens, an answer three, so that
           answers are learnt ten times faster alone.
  sft      demonstrations: direct answers, and episodes of two turns whose boxes are templates.
  grpo     episodes of two turns, played for ViTAR's reward.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    data = config.data = ConfigDict(dict(source="", processor=""))
    directory, processor = data.get_ref("source"), data.get_ref("processor")
    config.model = ConfigDict()
    config.model.text = dict(
        vocab_size=151_680,  # the tokenizer has 151,665 tokens
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(2, 3, 3),
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )
    config.model.vision = dict(
        depth=2,
        hidden_size=64,
        intermediate_size=192,
        num_heads=2,
        out_hidden_size=64,
        fullatt_block_indexes=(1,),
        window_size=112,
    )
    config.processor = dict(
        tokenizer=processor,
        image=processor,
        max_pixels=28 * 28 * 36,  # an image of VQA-RAD takes 27 to 36 tokens
        size_classes=((4, 64),),  # fits every image, also marked or zoomed
    )
    config.protocols = dict(
        vitar=dict(
            system="You are an assistant for medical images. Think, then act, and write one JSON object: "
            '{"thought": "...", "actions": [{"name": "...", "arguments": {...}}]}. '
            "First mark or zoom a box of the image; when you have looked again, Terminate with your answer.",
            tools=("mark", "zoom"),
            observation="This is the region you asked for. Look again, then answer.",
        ),
        plain=dict(system="Answer."),
    )
    config.limits = dict(tokens=320, turn_tokens=60, images=2)
    config.rollout = dict(slots=16, prefill_lengths=(64, 144), chunk=60, quorum=16, overlap=False)

    config.schedule = ("answers", "sft", "grpo")
    config.stages = ConfigDict()
    config.stages.answers = dict(
        sources=dict(questions=dict(name="data_prep.sets.vqa_rad:source", options=dict(directory=directory))),
        protocol="plain",
        objective=dict(name="sft"),
        steps=560,
        batch_size=32,
        tokens=96,
        policy_tokens=8,  # average per example; answers average 3.4
        row_images=1,
        logprob_chunk=64,
        optimizer=dict(
            learning_rate=3e-3, schedule="cosine", warmup_steps=30, final_fraction=0.05, beta2=0.98, weight_decay=0.05
        ),
        log_every=20,
        probe_every=280,
        probe_samples=64,
    )
    config.stages.sft = dict(
        start="answers",
        sources=dict(
            direct=_demonstrated(directory, "direct", demonstrations="direct"),
            marked=_demonstrated(directory, "vitar", demonstrations="two_rounds", tool="mark"),
            zoomed=_demonstrated(directory, "vitar", demonstrations="two_rounds", tool="zoom"),
        ),
        protocol="vitar",
        objective=dict(name="sft"),
        steps=200,
        batch_size=6,
        logprob_chunk=64,
        policy_tokens=76,  # average per example; a batch, with two examples of each source, averages about 61
        optimizer=dict(learning_rate=3e-3, schedule="cosine", warmup_steps=10, final_fraction=0.05, beta2=0.98),
        log_every=10,
        probe_every=200,
        probe_samples=16,
    )
    config.stages.grpo = dict(
        start="sft",
        sources=dict(questions=dict(name="data_prep.sets.vqa_rad:source", options=dict(directory=directory))),
        protocol="vitar",
        steps=10,
        batch_size=2,
        logprob_chunk=64,
        objective=dict(name="grpo", group_size=8),
        optimizer=dict(learning_rate=2e-4, schedule="cosine", warmup_steps=2, weight_decay=0.0),
        log_every=1,
        probe_every=10,
        probe_samples=16,
        keep_trajectories=8,
    )
    config.evaluation = dict(name="data_prep.sets.vqa_rad:source", split="test", options=dict(directory=directory))
    return config


def _demonstrated(directory: object, protocol: str, **options: str) -> dict:
    return dict(name="data_prep.sets.vqa_rad:source", protocol=protocol, options=dict(directory=directory, **options))
