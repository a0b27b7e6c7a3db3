"""Asks a checkpoint one question about one image and prints how it looked, thought and answered.

Examples:
  python -m vitar_jax.infer --checkpoint=runs/quickstart/grpo/model --image=phantom.png --question="Which texture?" \\
      --options="flat,rows,columns,checks"
  python -m vitar_jax.infer --checkpoint=DIR --image=xray.png --question="Is the heart enlarged?" --output=looks

Every edited image that the model saw is saved in --output.
"""

from pathlib import Path

import jax
from absl import flags, logging

from vitar_jax import cli
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import ConfigError
from vitar_jax.inference import load_settings
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.folder import Folder
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.recipe import banned_tokens
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.view import rollout_view


def main() -> None:
    if flags.FLAGS.checkpoint is None or flags.FLAGS.image is None or flags.FLAGS.question is None:
        raise ConfigError("--checkpoint=DIR, --image=FILE and --question=TEXT must be given; --help shows an example")
    logging.set_verbosity(logging.WARNING)
    checkpoint = Folder.open(flags.FLAGS.checkpoint)
    config = ModelConfig.from_pretrained(checkpoint)
    with checkpoint.small_files() as directory:
        settings = load_settings(directory, config)
    protocol = settings.protocol(flags.FLAGS.protocol)
    processor = settings.processor
    sample = Sample(
        sample_id=str(flags.FLAGS.image),
        question=flags.FLAGS.question,
        images=(flags.FLAGS.image,),
        answer="",
        options=tuple(zip("ABCDEFGHIJ", flags.FLAGS.options, strict=False)),
    )
    episode = Episode(sample, protocol, processor, settings.limits, Sampling(flags.FLAGS.temperature, seed=flags.FLAGS.seed))
    engine = Engine(
        RolloutConfig(slots=1, extend_lengths=(64, 512), encode_batch=1),
        processor,
        settings.limits,
        banned_tokens(processor.chat, config.text.vocab_size),
    )
    view = rollout_view(load_pretrained(checkpoint), config.dtype)
    with jax.default_matmul_precision("highest"):
        list(engine.play(view, [[episode]]))
    _tell(episode)


def _tell(episode: Episode) -> None:
    for number, turn in enumerate(episode.turns, start=1):
        print(f"{'thought' if number == 1 else 'rethought'}: {turn.thought if turn.thought is not None else turn.text}")
        if turn.action is not None:
            print(f"action: {turn.action.get('name')} {turn.action.get('arguments')}")
        if turn.error is not None:
            print(f"tool error: {turn.error[1]}")
        if turn.image is not None:
            output = Path(flags.FLAGS.output)
            output.mkdir(parents=True, exist_ok=True)
            path = output / f"{Path(flags.FLAGS.image).stem}_look{number}.png"
            episode.images[turn.image].pixels.save(path)
            print(f"looked at: {path}")
    print(f"answer: {episode.predicted_answer if episode.predicted_answer is not None else 'none'}")


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Checkpoint with its tokenizer: a directory, a gs:// URL or a hub repository.")
    flags.DEFINE_string("image", None, "The image, in any common format or DICOM.")
    flags.DEFINE_string("question", None, "The question.")
    flags.DEFINE_list("options", [], "Answers to choose from, separated by commas; they get letters.")
    flags.DEFINE_string("protocol", "", "How the model plays; by default as it was trained.")
    flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.")
    flags.DEFINE_integer("seed", 0, "Seed of the draw where the temperature is above 0.")
    flags.DEFINE_string("output", "looks", "Directory for the images that tools return.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
