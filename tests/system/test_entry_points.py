"""Entry points: help with examples, one line for what a user got wrong, and results that a restart completes."""

import json
from pathlib import Path
from types import ModuleType

import fsspec
import jax
import numpy as np
import pytest

from tests.kit import micro, tiny
from tests.kit.errors import Main, check_error
from tests.kit.images import dicom, noise
from tests.kit.processes import MICRO, ROOT, run_module
from vitar_jax import attend, compare, evaluate, infer, quickstart, train
from vitar_jax.episodes.actions import Answer, ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.gaze_parser import write_gaze
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory_files import JSONL, TrajectoryWriter
from vitar_jax.errors import ConfigError
from vitar_jax.experiment.program_flops import program_flops
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.models.registry import load_config
from vitar_jax.parallel.topology import H200
from vitar_jax.processing.banned import banned_tokens, fingerprint
from vitar_jax.rollout.checkpoint_settings import load_settings


def run(tmp_path: Path) -> Run:
    return Run(Recipe.from_config(micro.get_config()), tmp_path)


def test_a_batch_that_the_mesh_cannot_cut_is_named_before_the_first_stage(tmp_path: Path) -> None:
    config = micro.get_config()
    config.stages.grpo.objective.minibatches = 2  # four rows for eight devices
    with pytest.raises(ConfigError, match="objective.minibatches: 2, but a data shard has 1 rows"):
        Run(Recipe.from_config(config), tmp_path).train()
    assert not (tmp_path / "warmup").exists()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "noise.png"
    noise(120, 100).save(path)
    return path


@pytest.fixture(scope="module")
def trajectories(checkpoint: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of the checkpoint's recipe: two that look twice and one that does not."""
    directory = tmp_path_factory.mktemp("trajectories")
    config = load_config(checkpoint)
    settings = load_settings(checkpoint, config)
    chat = settings.processor.chat
    banned = fingerprint(banned_tokens(chat, config.text.vocab_size))
    answer = write_turn("shows rows", "Terminate", answer="B")
    writer = TrajectoryWriter(directory)
    for number, turns in enumerate(([zoom(10, 10, 50, 50), answer], [zoom(28, 14, 70, 56), answer], [answer])):
        sample = Sample(f"episode-{number}", "Which texture?", (str(image),), "B", boxes=(Box(20, 20, 60, 70, "original"),))
        episode = Episode(sample, settings.protocol(), settings.processor, settings.limits)
        for text in turns:
            episode.add_turn([*chat.text(text), chat.im_end], None)
        assert len(episode.turns) == len(turns) == len(episode.images)
        writer.write([episode.trajectory(stream="on_policy", policy_version=0, banned_sha256=banned)])
    return directory


def zoom(*box: float) -> str:
    return write_turn("spot upper left", "zoom", box=[list(box)])


# What a user gets wrong


@pytest.mark.parametrize(
    "module, arguments, parts",
    [
        (train, [], ["--config", "--workdir", "--help"]),
        (train, [f"--config={MICRO}"], ["--workdir"]),
        (train, ["--config=nowhere.py", "--workdir=W"], ["nowhere.py"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.sft.stpes=3"], ["'stpes', did you mean steps?"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.stf.steps=3"], ["'stf', did you mean sft?"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.sft.foo=1"], ["config.stages.sft has no key 'foo'"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.sft.steps=many"], ["many"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.sft.protocol=vitra"], ["sft", "vitra"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--wrokdir=V"], ["wrokdir"]),
        (train, [f"--config={MICRO}", "--workdir=W", "extra"], ["extra"]),
        (train, [f"--config={ROOT}/configs/vqa_rad_small.py", "--workdir=W"], ["config.data."]),
        (evaluate, [], ["--config", "--workdir"]),
        (evaluate, [f"--config={MICRO}", "--workdir=W"], ["grpo/model"]),
        (evaluate, [f"--config={MICRO}", "--workdir=W", "--checkpoint=nowhere"], ["nowhere"]),
        (evaluate, [f"--config={MICRO}", "--workdir=W", "--stage=sfd"], ["sfd", "sft"]),
        (evaluate, ["--workdir=W", "--phase=score"], ["--name"]),
        (evaluate, [f"--config={MICRO}", "--workdir=W", "--slots=2"], ["--slots: only without --config", "rollout.slots"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=scores"], ["scores", "predict"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=score"], ["samples.jsonl", "predict"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=report"], ["scores.json", "score"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=score", "--rules=exakt"], ["exakt", "did you mean exact?"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=score", "--judge=J", "--judge_requests=R"], ["--judge_requests"]),
        (
            evaluate,
            ["--workdir=W", "--name=N", "--rules=medevalkit-judge", "--phase=score", "--judge_responses=R"],
            ["need --judge and"],
        ),
        (infer, [], ["--checkpoint", "--input", "--image", "--question", "--interactive"]),
        (infer, ["--checkpoint=C", "--input=I", "--question=Q"], ["--input", "--question"]),
        (infer, ["--checkpoint=CHECKPOINT", "--input=nowhere.csv"], ["nowhere.csv"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--stop_tokens=<|x|>"], ["stop_tokens", "no token <|x|>"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--tensor=9"], ["tensor"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--temperature=-1"], ["temperature"]),
        (infer, ["--checkpoint=nowhere", "--image=I", "--question=Q"], ["nowhere"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=nowhere.png", "--question=Q"], ["nowhere.png"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=IMAGE", "--question=Q", "--protocol=vitra"], ["vitra"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=CHECKPOINT/config.json", "--question=Q"], ["config.json"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=IMAGE", "--question=" + "why " * 300], ["tokens"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--options=flat"], ["--options", "'flat'", "|"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--options=flat||rows"], ["--options", "expected text"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--attention=cudnn"], ["attention", "float32"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--max_pixels=9999999"], ["max_pixels", "7100"]),
        (quickstart, [f"--config={MICRO}", "--workdir=W"], ["config.proof"]),
        (attend, ["--checkpoint=C", "--output=W"], ["--checkpoint", "--trajectories", "--output"]),
        (attend, ["--checkpoint=CHECKPOINT", "--trajectories=nowhere", "--output=W"], ["nowhere/trajectories.jsonl"]),
        (attend, ["--checkpoint=nowhere", "--trajectories=TRAJECTORIES", "--output=W"], ["nowhere/config.json"]),
    ],
)
def test_a_mistake_is_one_line(
    module: ModuleType,
    arguments: list[str],
    parts: list[str],
    main: Main,
    checkpoint: Path,
    image: Path,
    trajectories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"CHECKPOINT": checkpoint, "IMAGE": image, "TRAJECTORIES": trajectories, "=W": f"={tmp_path / 'W'}"}
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert main(module, *arguments) == 2
    check_error(capsys.readouterr().err, *parts)
    assert not list(tmp_path.iterdir())


def test_a_bug_is_no_user_error(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "main", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(infer)


@pytest.mark.parametrize("module", [train, evaluate, infer, quickstart, attend, compare])
def test_its_documentation_has_examples(module: ModuleType) -> None:
    """absl prints it for --help."""
    assert module.__doc__ is not None and f"python -m {module.__name__} " in module.__doc__


@pytest.mark.slow
def test_help_shows_examples() -> None:
    shown = run_module("vitar_jax.infer", "--help")
    assert shown.returncode == 0 and not shown.stderr
    examples, questions = shown.stdout.index("python -m vitar_jax.infer --checkpoint"), shown.stdout.index("\nQuestions:\n")
    assert examples < questions < shown.stdout.index("--question ") < shown.stdout.index("\nLoading a checkpoint:\n")
    assert "(default: 16)" in shown.stdout


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own() -> None:
    shown = run_module("vitar_jax.infer", "--checkpoint=nowhere", "--image=I", "--question=Q")
    assert shown.returncode == 2 and not shown.stdout
    check_error(shown.stderr, "nowhere")


# Inference


@pytest.mark.slow
@pytest.mark.parametrize("suffix, remote", [(".png", False), (".dcm", False), (".png", True)], ids=["png", "dicom", "url"])
def test_infer_answers(
    suffix: str, remote: bool, main: Main, checkpoint: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".dcm":
        image = image.with_suffix(suffix)
        image.write_bytes(dicom(np.asarray(noise(120, 100))))
    place = str(checkpoint)
    if remote:
        fsspec.filesystem("memory").put(place, "/checkpoint", recursive=True)
        place = "memory://checkpoint"
    arguments = [f"--checkpoint={place}", f"--image={image}", "--question=Which texture?", "--options=flat|rows"]
    assert main(infer, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("thought: ") and lines[-1] == "answer: none"  # random weights write no JSON
    assert any(line.startswith("tool error: ") for line in lines)


@pytest.mark.parametrize(
    ("written", "answers"),
    [
        ("flat|rows|columns|checks", ["flat", "rows", "columns", "checks"]),
        ("mild, diffuse | none", ["mild, diffuse", "none"]),
        ("flat,rows", ["flat", "rows"]),
        ("A. flat|B. rows", ["flat", "rows"]),  # as in files of questions
        ("", []),
    ],
)
def test_answers_to_choose_from(written: str, answers: list[str]) -> None:
    assert infer.options_of(written) == answers


class Typed:
    """A player that notes what is begun instead of playing it."""

    def __init__(self) -> None:
        self.begun: list[Sample] = []

    def start(self) -> None: ...

    def note(self, sample: Sample) -> str:
        return "" if sample.options else "no options"

    def begin(self, sample: Sample) -> None:
        self.begun.append(sample)
        raise ConfigError("begun")


def test_answers_to_choose_from_are_typed_in_a_conversation(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["Open?", "/options flat|rows", "Which?", "/image b.png", "Which then?", "/options x", "/options", "And?", ""])
    player = Typed()
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.setattr(infer, "load_player", lambda slots: player)
    assert main(infer, "--checkpoint=C", "--image=a.png", "--interactive") == 0
    two = (("A", "flat"), ("B", "rows"))
    expected = [("Open?", "a.png", ()), ("Which?", "a.png", two), ("Which then?", "b.png", two), ("And?", "b.png", ())]
    assert [(one.question, *one.images, one.options) for one in player.begun] == expected
    shown = capsys.readouterr().out
    assert shown.count("note: no options") == 2 and "got one option, 'x'" in shown


def test_infer_tells_an_episode(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines, in the order of the episode, and the edited image on disk."""
    processor = tiny.processor(4, 12)
    sample = Sample("s", "Which texture?", (str(image),), "")
    episode = Episode(sample, PROTOCOLS["zoom"], processor, Limits(tokens=2000, turn_tokens=200))
    for text in (
        write_turn("spot upper left", "zoom", box=[[28, 14, 84, 70]]),
        write_turn("shows rows", "Terminate", answer="B"),
    ):
        episode.add_turn([*processor.chat.text(text), processor.chat.im_end], None)

    infer.tell(episode, tmp_path / "looks", "noise")
    path = tmp_path / "looks" / "noise_look1.png"
    assert capsys.readouterr().out.splitlines() == [
        "thought: spot upper left",
        "action: zoom {'box': [[28, 14, 84, 70]]}",
        f"looked at: {path}",
        "rethought: shows rows",
        "action: Terminate {'answer': 'B'}",
        "answer: B",
    ]
    saved = tiny.Image.open(path)
    assert saved.tobytes() == episode.images[1].pixels.tobytes()


def test_infer_tells_gazes_in_order(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processor = tiny.processor(4, 12)
    limits = Limits(tokens=3000, turn_tokens=400, images=5)
    episode = Episode(Sample("s", "Which?", (str(image),), ""), PROTOCOLS["medeyes"], processor, limits)
    gazes = [write_gaze(f"Look {n}.", ToolCall("Gaze", ((28, 14, 84 - n, 70),))) for n in range(2)]
    for text in (*gazes, "Rows.", write_gaze("Rows.", Answer("B"))):
        episode.add_turn([*processor.chat.text(text), processor.chat.im_end], None)
    infer.tell(episode, tmp_path, "noise")
    assert capsys.readouterr().out.splitlines() == [
        "thought: Look 0.",
        "action: Gaze {'coordinate': [28, 14, 84, 70]}",
        f"looked at: {tmp_path / 'noise_look1.png'}",
        "rethought: Look 1.",
        "action: Gaze {'coordinate': [28, 14, 83, 70]}",
        f"looked at: {tmp_path / 'noise_look2.png'}",
        "rethought: Rows.",
        "tool error: A turn is <reasoning>...</reasoning> and then <action> or <answer>.",
        "rethought: Rows.",
        "action: Terminate {'answer': 'B'}",
        "answer: B",
    ]


# Attention


@pytest.mark.slow
def test_attention_of_trajectories(
    main: Main, checkpoint: Path, trajectories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--checkpoint={checkpoint}", f"--trajectories={trajectories}", f"--output={tmp_path}", "--maps=2"]
    assert main(attend, *arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "attention.jsonl").read_text().splitlines()]
    assert [(line["sample_id"], line["turn"]) for line in lines] == [
        ("episode-0", 1), ("episode-0", 2), ("episode-1", 1), ("episode-1", 2), ("episode-2", 1),
    ]  # fmt: skip
    assert [len(line["images"]) for line in lines] == [1, 2, 1, 2, 1]
    for line in lines:  # one layer, two heads
        total = np.array(line["text"]) + sum(np.array(image["share"]) for image in line["images"])
        np.testing.assert_allclose(total, [[1.0, 1.0]], rtol=1e-4)
    means = json.loads((tmp_path / "attention.json").read_text())
    assert means["original/share"]["think"]["mean"] == pytest.approx(
        np.mean([line["images"][0]["share"] for line in lines if line["turn"] == 1]), rel=1e-4
    )
    assert {name: cell["n"] for name, cell in means["original/gold/enrichment"].items()} == {
        "think": 3, "rethink": 2, "difference": 2,
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["0000.png", "0001.png"]
    printed = capsys.readouterr().out
    assert "| attention on the edited image |  |" in printed and "control: in random boxes of the same shape" in printed


@pytest.mark.slow
def test_attention_of_the_first_trajectories(
    main: Main, options_checkpoint: Path, trajectories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose question has no options, as the checkpoint's had."""
    arguments = [f"--checkpoint={options_checkpoint}", f"--trajectories={trajectories}", f"--output={tmp_path}"]
    assert main(attend, *arguments, "--limit=1", "--rows=16", "--dtype=bfloat16", "--attention=xla") == 0
    said = capsys.readouterr().out
    assert "note: this checkpoint was trained on questions with options alone" in said and "(1 trajectories)" in said
    assert len((tmp_path / "attention.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"attention.jsonl", "attention.json"}
    for flag, wrong in (("--max_pixels=3136", "grid"), ("--stop_tokens=<|im_start|>", "banned tokens differ")):
        assert main(attend, *arguments, flag) == 2
        check_error(capsys.readouterr().err.splitlines()[-1], "episode-0", wrong)
    assert main(attend, *arguments, "--attention=splash") == 2
    check_error(capsys.readouterr().err, "attention: splash runs on a tpu")


def test_attention_of_another_checkpoints_trajectories(
    main: Main, checkpoint: Path, trajectories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.loads((trajectories / JSONL).read_text().splitlines()[0]) | {"banned_sha256": "0" * 64}
    (tmp_path / JSONL).write_text(json.dumps(line) + "\n")
    (tmp_path / "images").symlink_to(trajectories / "images")
    assert main(attend, f"--checkpoint={checkpoint}", f"--trajectories={tmp_path}", f"--output={tmp_path / 'out'}") == 2
    check_error(capsys.readouterr().err, "episode-0", "banned tokens differ from the checkpoint")
    assert not list((tmp_path / "out").glob("*.json*"))


# Training


def test_model_flop_utilisation_is_of_all_devices_at_their_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path)
    monkeypatch.setattr("vitar_jax.experiment.trainer.chip_of", lambda device: H200)
    scalars = made._more_scalars(made.recipe.stages["sft"], 1, {"timing_s/update": 0.5})
    flops = program_flops(made.programs, "train", made.recipe.stages["sft"])
    assert scalars["perf/mfu"] == pytest.approx(flops / 0.5 / (len(jax.devices()) * 989e12))


def test_the_quickstart_is_for_one_process(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert main(quickstart, f"--workdir={tmp_path}") == 2
    check_error(capsys.readouterr().err, "one process")
