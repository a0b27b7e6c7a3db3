"""Asks a checkpoint questions about images: a file of them, one, or a conversation.

Examples:
  python -m vitar_jax.infer --checkpoint=DIR --input=questions.csv --images=DIR --output=answers
  python -m vitar_jax.infer --checkpoint=runs/quickstart/grpo/model --image=phantom.png --question="Which texture?" \\
      --options="flat,rows,columns,checks"
  python -m vitar_jax.infer --checkpoint=DIR --interactive

A file is CSV or JSONL with a column `question` and, as far as wanted, `image` or `images`, `options`, `answer` and `id`;
`data_prep/questions.py` shows both. OUTPUT/answers.jsonl then holds a line a question. Run again, also on another number of
processes, it goes on after the last question that was answered, and tries those again that could not be asked.

Every edited image that the model saw is saved in --output.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging

from vitar_jax.data import questions
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory, read_records
from vitar_jax.errors import ConfigError, VitarError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.qwen2_5_vl import abstract_model
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, regrouped, shardings
from vitar_jax.processing.banned import banned_tokens, fingerprint
from vitar_jax.rollout.checkpoint_settings import load_settings, play_settings
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.offline import kinds, play_samples, read_failures
from vitar_jax.rollout.weights import Resharder, RolloutView
from vitar_jax.runtime import cli
from vitar_jax.runtime.crash_safe import atomic_replace
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.remote import CheckpointFolder


class Model:
    """A checkpoint that plays as the flags say."""

    def __init__(self, slots: int):
        self.folder = CheckpointFolder.open(flags.FLAGS.checkpoint)
        self.config = ModelConfig.from_pretrained(self.folder, dtype=flags.FLAGS.dtype)
        with self.folder.small_files() as directory:
            settings = load_settings(directory, self.config)
        self.protocol = settings.protocol(flags.FLAGS.protocol)
        self.processor, self.limits = settings.processor, settings.limits
        self.sampling = Sampling(flags.FLAGS.temperature, flags.FLAGS.top_p, flags.FLAGS.seed)
        self.banned = banned_tokens(self.processor.chat, self.config.text.vocab_size)
        lengths = tuple(sorted({min(n, self.limits.tokens) for n in (64, 512)}))
        rollout = RolloutConfig(slots, lengths, encode_batch=min(slots, 8), dtype=flags.FLAGS.dtype, tensor=flags.FLAGS.tensor)
        self.engine = Engine(rollout, self.processor, self.limits, self.banned)

    def load(self) -> RolloutView:
        """The weights, on as many devices of this process as there are slots for."""
        rollout, rules, abstract = self.engine.config, ShardingRules(), abstract_model(self.config)
        mesh = make_mesh(devices=jax.local_devices()[: rollout.slots * rollout.tensor])
        resharder = Resharder(abstract, regrouped(mesh, rollout.tensor), rules, dtype=rollout.dtype)
        return resharder(load_pretrained(self.folder, dtype=rollout.dtype, shardings=shardings(abstract, mesh, rules)))

    def begin(self, sample: Sample) -> Episode:
        return Episode(sample, self.protocol, self.processor, self.limits, self.sampling)

    def finish(self, episode: Episode) -> Trajectory:
        return episode.trajectory(stream="on_policy", policy_version=0, banned_sha256=fingerprint(self.banned))


def answer_file(output: Path) -> None:
    """Plays all questions of --input and writes OUTPUT/answers.jsonl."""
    samples = questions.read(flags.FLAGS.input, flags.FLAGS.images)
    model = Model(flags.FLAGS.slots)
    play_samples(
        model.load,
        model.engine,
        samples,
        count=len(samples),
        begin=model.begin,
        finish=model.finish,
        settings=play_settings(model.folder, model.config.dtype, model.protocol, model.limits, model.sampling),
        directory=output,
        title="answers",
    )
    if is_main():
        _write_answers(output, samples)
    wait_for_all("answers are written")


def _write_answers(output: Path, samples: Sequence[Sample]) -> None:
    """A line a question, in the order of the questions."""
    answers = {record["sample_id"]: _answer(record) for record in read_records(output)}
    failures = {failure.sample_id: failure for failure in read_failures(output)}
    ends = Counter()
    path = output / "answers.jsonl"
    with atomic_replace(path) as partial, partial.open("w") as file:
        for sample in samples:
            answer = answers.get(sample.sample_id, _NO_ANSWER)
            failure = failures.get(sample.sample_id)
            line = {"id": sample.sample_id, "question": sample.question, **answer}
            file.write(json.dumps(line | {"failure": f"{failure.kind}: {failure.message}" if failure else None}) + "\n")
            ends[answer["end_reason"] or "failed"] += 1
    print(f"questions: {', '.join(f'{end} {n}' for end, n in ends.most_common())}")
    print(f"failures: {kinds(failures.values())}")
    print(f"answers: {path}")


_NO_ANSWER: dict[str, Any] = {"predicted_answer": None, "end_reason": None, "boxes": [], "looks": []}


def _answer(record: dict[str, Any]) -> dict[str, Any]:
    """What a trajectory's record says in answer; boxes are in pixels of the image they lie on."""
    return {
        "predicted_answer": record["predicted_answer"],
        "end_reason": record["end_reason"],
        "boxes": [box for turn in record["turns"] for box in turn["boxes_original"]],
        "looks": [f"images/{image['sha256']}.png" for image in record["images"] if image["turn"] is not None],
    }


def answer_one(output: Path) -> None:
    """Plays the question of the flags and tells how that went."""
    options = questions.letters(flags.FLAGS.options, "--options")
    model = Model(slots=1)
    images = (flags.FLAGS.image,) if flags.FLAGS.image else ()
    episode = model.begin(Sample(flags.FLAGS.image or "question", flags.FLAGS.question, images, "", options))
    list(model.engine.play(model.load(), [[episode]]))
    tell(episode, output, Path(flags.FLAGS.image or "question").stem)


def converse(output: Path) -> None:
    """Reads questions from the terminal; each goes on with the conversation until another image begins a new one."""
    options = questions.letters(flags.FLAGS.options, "--options")
    model = Model(slots=1)
    view = model.load()
    print("/image FILE begins a conversation about another image, an empty line ends; anything else is a question.")
    image, episode, names = flags.FLAGS.image, None, itertools.count(1)
    while line := _read_line():
        if line.startswith("/image "):
            image, episode = line.removeprefix("/image ").strip(), None
            continue
        try:
            if episode is None:
                stem = f"{Path(image or 'conversation').stem}_{next(names)}"
                episode = model.begin(Sample(stem, line, (image,) if image else (), "", options))
                told = 0
            else:
                told = len(episode.turns)
                episode.ask(line)
                if episode.finished:
                    print("The conversation is too long for another question; /image FILE begins a new one.")
                    continue
            list(model.engine.play(view, [[episode]]))
            tell(episode, output, stem, told)
        except VitarError as error:
            print(f"error: {error}")


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def tell(episode: Episode, output: Path, stem: str, first: int = 0) -> None:
    """Prints the turns from the `first` on and the answer, and saves the images that tools returned."""
    for number, turn in enumerate(episode.turns[first:], start=first + 1):
        said = "thought" if number == first + 1 else "rethought"
        print(f"{said}: {turn.thought if turn.thought is not None else turn.text}")
        if turn.action is not None:
            print(f"action: {turn.action.get('name')} {turn.action.get('arguments')}")
        if turn.error is not None:
            print(f"tool error: {turn.error[1]}")
        if turn.image is not None:
            output.mkdir(parents=True, exist_ok=True)
            path = output / f"{stem}_look{number}.png"
            episode.images[turn.image].pixels.save(path)
            print(f"looked at: {path}")
    print(f"answer: {episode.predicted_answer if episode.predicted_answer is not None else 'none'}")


def main() -> None:
    given = flags.FLAGS
    ways = {answer_file: given.input, converse: given.interactive, answer_one: given.question}
    chosen = [way for way, value in ways.items() if value]
    if given.checkpoint is None or len(chosen) != 1:
        raise ConfigError(
            "--checkpoint=DIR and one of --input=FILE, --question=TEXT (with --image=FILE) and --interactive must be given; "
            "--help shows examples"
        )
    if chosen != [answer_file] and jax.process_count() > 1:
        raise ConfigError("only --input can be answered by several processes")
    logging.set_verbosity(logging.WARNING)
    with jax.default_matmul_precision("highest"):
        chosen[0](Path(given.output))


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Checkpoint with its tokenizer: a directory, a gs:// URL or a hub repository.")
    flags.DEFINE_string("input", None, "Questions: a .csv or .jsonl file.")
    flags.DEFINE_string("images", "", "Folder that image paths of --input start from; that of the file by default.")
    flags.DEFINE_string("image", None, "One image, in any common format or DICOM.")
    flags.DEFINE_string("question", None, "One question.")
    flags.DEFINE_list("options", [], "Answers to choose from, separated by commas; they get letters.")
    flags.DEFINE_bool("interactive", False, "Converse in the terminal, at first about --image, if one is given.")
    flags.DEFINE_string("output", "looks", "Directory for answers, and for the images that tools return.")
    flags.DEFINE_string("protocol", "", "How the model plays; by default as it was trained.")
    flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.")
    flags.DEFINE_float("top_p", 1.0, "Only the most likely tokens that together have this probability are drawn.")
    flags.DEFINE_integer("seed", 0, "Seed of the draw where the temperature is above 0.")
    flags.DEFINE_integer("slots", 16, "Questions of --input that are played at a time in each process.")
    flags.DEFINE_integer("tensor", 1, "Devices that share one copy of the weights.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of weights and of computation.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
