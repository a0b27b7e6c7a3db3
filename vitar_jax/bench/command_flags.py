"""The flags of `python -m vitar_jax.bench`."""

from absl import flags

from vitar_jax.experiment.recipe import Recipe
from vitar_jax.runtime import config_flag


def define_flags() -> None:
    flags.DEFINE_list(
        "sizes",
        [],
        "model, rollout, train, masks, attention: Comma-separated sizes: 10m, 150m, qwen3_10m, qwen3_150m, 3b, 7b with model; "
        "quickstart, 10m, 7b with rollout; quickstart, 10m with train; hiera_tiny_256, hiera_tiny, hiera_large with masks; "
        "3b, 7b with attention (default: those that suit the device).",
    )
    flags.DEFINE_integer("rounds", 8, "All but data, device and parser: Number of timings of each side.", lower_bound=1)
    flags.DEFINE_integer(
        "steps",
        None,
        "data, gaze, rollout, memory: Number of batches per measurement (default: 8, 1,000 with memory).",
        lower_bound=1,
    )
    flags.DEFINE_integer("threads", 0, "Number of CPU cores to use. 0 means all.")
    flags.DEFINE_boolean("try_compile", True, "model, rollout, train: Also try torch.compile for torch, which takes minutes.")
    flags.DEFINE_string("images", "", "processing, evidence, gaze: Folder of images (default: generated grey JPEGs).")
    flags.DEFINE_integer(
        "count",
        None,
        "serve, processing, evidence, parser, gaze: Number of inputs (default: 64 requests, 32 images, 8 with evidence, "
        "1,000,000 strings, 10,000 questions of traces and 300 to search).",
        lower_bound=1,
    )
    flags.DEFINE_string("checkpoint", "", "serve, rollout: Checkpoint to serve or to play, with its tokenizer: a directory.")
    flags.DEFINE_integer(
        "draft_tokens", 0, "rollout: Play --checkpoint with this rollout.draft_tokens and without. 0 means not.", lower_bound=0
    )
    flags.DEFINE_list("clients", ["1", "8", "32"], "serve: Comma-separated numbers of clients at a time.")
    flags.DEFINE_integer("tokens", 32, "serve: Maximum number of tokens per turn.", lower_bound=1)
    flags.DEFINE_string("searcher", "", "gaze: package.module:name or FILE.py:name of a function of a sample (default: none).")
    flags.DEFINE_integer("seed", 0, "parser: Seed of the generated strings.")
    flags.DEFINE_list("workers", ["1", "2"], "processing, data: Comma-separated numbers of parallel workers to measure.")
    config_flag.define(
        Recipe,
        "Recipe file: a quickstart's with rollout and train, any with data, with probes with evidence, with "
        "experts with gaze, with GRPO with memory.",
    )
    flags.DEFINE_float("minutes", 10.0, "device: Time to fit into, in minutes.", lower_bound=0.0)
    flags.DEFINE_string("topology", "v5e:8x8", "data: TPU slice to make batches for, as in vitar_jax.plan.")
    flags.DEFINE_float(
        "mfu",
        0.5,
        "data: Fraction of the slice's peak FLOP/s that a step is assumed to reach.",
        lower_bound=0.01,
        upper_bound=1.0,
    )
    flags.DEFINE_string("figure", "", "memory: Image file to draw the memory to, such as memory.png (default: none).")
    flags.DEFINE_string("output", "", "JSON file to write all measurements to (default: none, or device.json with device).")
