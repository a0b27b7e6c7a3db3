"""Asks a checkpoint questions about images: a file of questions, one question, or a conversation.

Examples:
  python -m vitar_jax.infer --checkpoint=DIR --input=questions.csv --images=DIR --output=answers
  python -m vitar_jax.infer --checkpoint=runs/quickstart/grpo/model --image=phantom.png --question="Which texture?" \\
      --options="flat|rows|columns|checks"
  python -m vitar_jax.infer --checkpoint=DIR --interactive
  python -m vitar_jax.infer --endpoint=http://localhost:8000/v1 --model=NAME --protocol=zoom --input=questions.csv

A file is CSV or JSONL with a column `question` and optional columns `image` or `images`, `options`, `answer` and `id`;
`vitar_jax/data/questions.py` shows both formats. OUTPUT/answers.jsonl has one line per question. You can stop the command at
any time; rerunning it, on any number of processes, keeps finished answers and retries failures.

Each image that a tool returned is saved in --output. So is each mask of an object: as PNG, and in one JSON file per command, or
per conversation, with run lengths in COCO's form, area and longest diameter, also in mm if a DICOM file states the spacing.

--endpoint plays a model that others serve, by chat completions; tools run here. OUTPUT/replies.jsonl keeps its replies, so that
nothing is asked twice. With --checkpoint, the model's own, and a server that returns token ids, records have its tokens.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import flags, logging

import vitar_jax
from vitar_jax.data import questions
from vitar_jax.data.options import Options
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.mask_files import Played, SavedMask, save_masks
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import FRAMES, UNITS
from vitar_jax.episodes.sample import Sample, question_sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.episodes.trajectory_files import read_records
from vitar_jax.errors import ConfigError, VitarError
from vitar_jax.rollout.offline import kinds, play_samples, read_failures
from vitar_jax.runtime import cli
from vitar_jax.runtime.crash_safe import atomic_replace
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.help import subject

if TYPE_CHECKING:
    from vitar_jax.rollout.endpoint_player import EndpointPlayer
    from vitar_jax.rollout.player import Player


def load_player(slots: int) -> "Player | EndpointPlayer":
    """Loads the player that the flags describe. An endpoint's replies are kept in --output."""
    given = flags.FLAGS
    sampling = Sampling(given.temperature, given.top_p, given.seed)
    if given.endpoint:
        from vitar_jax.rollout.endpoint_player import EndpointPlayer

        asked = {"protocol": given.protocol, "max_pixels": given.max_pixels, "checkpoint": given.checkpoint or ""}
        return EndpointPlayer.open(directory=Path(given.output), sampling=sampling, **asked, **cli.endpoint_flags())
    return vitar_jax.load_player(
        given.checkpoint,
        protocol=given.protocol,
        slots=slots,
        tensor=given.tensor,
        sampling=sampling,
        **cli.loading_flags(),
    )


def options_of(written: str) -> list[str]:
    """Returns the answers in a text that separates them by |, or by commas if it has no |.

    Raises:
      DataError: If there is only one answer, if one is empty, or if there are more answers than letters.
    """
    if not written.strip():
        return []
    pairs = Options.of(written if "|" in written else written.split(","), "--options").pairs
    return [answer.strip() for _, answer in pairs]


def answer_file(output: Path) -> None:
    """Plays all questions in --input and writes OUTPUT/answers.jsonl."""
    samples = questions.read(flags.FLAGS.input, flags.FLAGS.images, flags.FLAGS.boxes)
    player = load_player(flags.FLAGS.slots)
    for note, count in Counter(filter(None, map(player.note, samples))).items():
        cli.say(f"note: {note} ({count} of {len(samples)} questions)")
    play_samples(player, samples, count=len(samples), directory=output, title="answers")
    if is_main():
        _write_answers(output, samples)
    wait_for_all("answers are written")


def _write_answers(output: Path, samples: Sequence[Sample]) -> None:
    """Writes one line per question, in the order of the questions."""
    answers, masks = {}, {}
    for record in read_records(output):
        answers[record["sample_id"]] = _answer(record)
        masks[record["sample_id"]] = [[ObjectMask.from_json(one) for one in turn.get("masks", [])] for turn in record["turns"]]
    numbered = enumerate(samples, start=1)
    played = (Played(number, one, masks[one.sample_id]) for number, one in numbered if any(masks.get(one.sample_id, [])))
    saved = save_masks(output / "masks.json", played)
    failures = {failure.sample_id: failure for failure in read_failures(output)}
    ends = Counter()
    path = output / "answers.jsonl"
    with atomic_replace(path) as partial, partial.open("w") as file:
        for number, sample in enumerate(samples, start=1):
            answer = answers.get(sample.sample_id, _NO_ANSWER)
            failure = failures.get(sample.sample_id)
            line = {"id": sample.sample_id, "question": sample.question, **answer, **_mask_files(saved.get(number, []), output)}
            file.write(json.dumps(line | {"failure": f"{failure.kind}: {failure.message}" if failure else None}) + "\n")
            ends[answer["end_reason"] or "failed"] += 1
    print(f"questions: {', '.join(f'{end} {n}' for end, n in ends.most_common())}")
    print(f"failures: {kinds(failures.values())}")
    print(f"answers: {path}")
    if files := [one for found in saved.values() for one in found if one.path]:
        print(f"masks: {len(files)} in {output / 'masks.json'}")


def _mask_files(saved: Sequence[SavedMask], output: Path) -> dict[str, list[str]]:
    """Returns the field of an answer with masks."""
    return {"masks": [str(one.path.relative_to(output)) for one in saved if one.path]} if saved else {}


_NO_ANSWER: dict[str, Any] = {"predicted_answer": None, "end_reason": None, "boxes": [], "looks": []}


def _answer(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer's fields from a trajectory's record. Boxes are in pixels of the image that their turn acts on."""
    return {
        "predicted_answer": record["predicted_answer"],
        "end_reason": record["end_reason"],
        "boxes": [box for turn in record["turns"] for box in turn["boxes_original"]],
        "looks": [f"images/{image['sha256']}.png" for image in record["images"] if image["turn"] is not None],
    }


def answer_one(output: Path) -> None:
    """Plays the question in the flags and prints its turns."""
    sample = question_sample(_images(flags.FLAGS.image), flags.FLAGS.question, options_of(flags.FLAGS.options))
    player = load_player(slots=1)
    _print_note(player.note(sample), "--options='A|B|C'")
    tell(player.finish(player.begin(sample)), output, Path(sample.sample_id).stem)


def _print_note(note: str, remedy: str) -> None:
    if note:
        print(f"note: {note}; give its answers with {remedy}")


def _images(path: str | None) -> tuple[str, ...]:
    return (path,) if path else ()


def converse(output: Path) -> None:
    """Reads questions from the terminal. Each continues the conversation until `/image` or `/options` begins a new one."""
    options = options_of(flags.FLAGS.options)
    player = load_player(slots=1)
    player.start()
    print("/image FILE begins a conversation about another image; /options A|B|C begins one with answers to choose from;")
    print("/options alone begins one without; an empty line quits; any other line is a question.")
    image, episode, names = flags.FLAGS.image, None, itertools.count(1)
    while line := _read_line():
        command, _, given = line.partition(" ")
        try:
            if command == "/image":
                image, episode = given.strip(), None
                continue
            if command == "/options":
                options, episode = options_of(given), None
                continue
            if episode is None:
                stem = f"{Path(image or 'conversation').stem}_{next(names)}"
                asked = question_sample(_images(image), line, options)
                _print_note(player.note(asked), "/options A|B|C")
                episode = player.begin(dataclasses.replace(asked, sample_id=stem))
                told = 0
            else:
                told = len(episode.turns)
                episode.ask(line)
                if episode.finished:
                    print("The conversation has no room for another question; /image FILE begins a new one.")
                    continue
            tell(player.finish(episode), output, stem, told)
        except VitarError as error:
            print(f"error: {error}")


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def tell(episode: Episode, output: Path, stem: str, first: int = 0) -> None:
    """Prints the turns from `first` on and the answer, and saves the masks and the images that tools returned."""
    played = Played(1, episode.sample, [turn.masks for turn in episode.turns])
    masks = save_masks(output / f"{stem}_masks.json", [played]).get(1, [])
    for number, turn in enumerate(episode.turns[first:], start=first + 1):
        said = "thought" if number == first + 1 else "rethought"
        print(f"{said}: {turn.thought if turn.thought is not None else turn.text}")
        for one in masks:
            if one.turn + 1 == number:
                print(one.words)
        if turn.action is not None:
            print(f"action: {turn.action.get('name')} {turn.action.get('arguments')}")
        if turn.error is not None:
            print(f"tool error: {turn.error[1]}")
        returned = [one.image for one in turn.per_call if one.image is not None]
        for place, image in enumerate(returned):
            output.mkdir(parents=True, exist_ok=True)
            path = output / f"{stem}_look{number}{f'_{place + 1}' if len(returned) > 1 else ''}.png"
            episode.images[image].pixels.save(path)
            print(f"looked at: {path}")
    print(f"answer: {episode.predicted_answer if episode.predicted_answer is not None else 'none'}")


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    ways = {answer_file: given.input, converse: given.interactive, answer_one: given.question}
    chosen = [way for way, value in ways.items() if value]
    if not (given.checkpoint or given.endpoint) or len(chosen) != 1:
        raise ConfigError(
            "infer: expected --checkpoint=DIR (or --endpoint=URL) and exactly one of --input=FILE, --question=TEXT (with "
            "--image=FILE) and --interactive; --help shows examples"
        )
    if chosen != [answer_file] and jax.process_count() > 1:
        raise ConfigError("infer: several processes need --input; --question and --interactive run in one process")
    chosen[0](Path(given.output))


def define_flags() -> None:
    with subject("Questions"):
        flags.DEFINE_string("input", None, "File of questions, .csv or .jsonl.")
        flags.DEFINE_string("images", "", "Folder of relative image paths in --input (default: the file's folder).")
        flags.DEFINE_enum("boxes", "", ["", *UNITS], "Unit of the boxes in --input (default: pixels).")
        flags.DEFINE_string("image", None, "Image of --question or --interactive, also DICOM; FILE#frame=12 chooses a frame.")
        flags.DEFINE_string("question", None, "Question to ask.")
        flags.DEFINE_string(
            "options", "", "Answers to choose from, separated by |, which get letters (default: an open question)."
        )
        flags.DEFINE_bool("interactive", False, "Converse in the terminal, first about --image if given.")
    with subject("Output"):
        flags.DEFINE_string("output", "looks", "Directory for answers, masks and images that tools return.")
    with subject("Sampling"):
        flags.DEFINE_string(
            "protocol", "", "Protocol: a name, FILE.toml or FILE.py:NAME (default: the one the checkpoint was trained with)."
        )
        flags.DEFINE_float("temperature", 0.0, "Sampling temperature; 0 takes the most likely token.")
        flags.DEFINE_float("top_p", 1.0, "Sample only from the most likely tokens whose probabilities add up to this.")
        flags.DEFINE_integer("seed", 0, "Sampling seed; no effect at temperature 0.")
    with subject("Loading a checkpoint"):
        flags.DEFINE_string("checkpoint", None, "Checkpoint with its tokenizer: a directory, a gs:// URL or a hub repository.")
        cli.define_loading_flags()
        flags.DEFINE_integer("slots", 16, "Number of questions in --input that each process plays at a time.")
        flags.DEFINE_integer("tensor", 1, "Number of devices that share one copy of the weights.")
    with subject("Playing an endpoint"):
        cli.define_endpoint_flags(FRAMES)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
