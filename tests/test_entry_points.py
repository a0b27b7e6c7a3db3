"""Entry points: help with examples, one line for what a user got wrong, and results that a restart completes."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import fsspec
import jax
import numpy as np
import pytest
from absl import app, flags

from tests import micro, tiny
from tests.pictures import dicom
from vitar_jax import attend, cli, compare, evaluate, infer, quickstart, train
from vitar_jax.episodes.boxes import Box
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS, write_turn
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import JSONL, TrajectoryWriter, read_records
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.outcomes import read_outcomes
from vitar_jax.inference import load_settings
from vitar_jax.models.config import ModelConfig
from vitar_jax.parallel.topology import H200
from vitar_jax.program_flops import program_flops
from vitar_jax.recipe import Recipe, banned_tokens, fingerprint
from vitar_jax.train import Run

ROOT = Path(__file__).parents[1]
MICRO = str(ROOT / "tests" / "micro.py")
Main = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """Runs an entry point of a module with arguments, and returns its exit code."""
    app.define_help_flags()  # the first call defines them, later ones do nothing
    known = set(flags.FLAGS)

    def call(module: ModuleType, *arguments: str) -> int:
        module.define_flags()
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        try:
            with pytest.raises(SystemExit) as caught:
                cli.run(module.main)
        finally:
            for name in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return code or 0

    return call


def run(tmp_path: Path) -> Run:
    return Run(Recipe.from_config(micro.get_config()), tmp_path)


def test_a_batch_that_the_mesh_cannot_cut_is_named_before_the_first_stage(tmp_path: Path) -> None:
    config = micro.get_config()
    config.stages.grpo.grpo = dict(minibatches=2)  # four rows for eight devices
    with pytest.raises(ConfigError, match="grpo.minibatches: 2, but a data shard has 1 rows"):
        Run(Recipe.from_config(config), tmp_path).train()
    assert not (tmp_path / "warmup").exists()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "noise.png"
    tiny.noise(120, 100).save(path)
    return path


@pytest.fixture(scope="module")
def trajectories(checkpoint: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of the checkpoint's recipe: two that look twice and one that does not."""
    directory = tmp_path_factory.mktemp("trajectories")
    config = ModelConfig.from_pretrained(checkpoint)
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


def check_error(captured: str, *parts: str) -> None:
    """One line, which says what is wrong."""
    lines = [line for line in captured.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    "module, arguments, parts",
    [
        (train, [], ["--config", "--workdir", "--help"]),
        (train, [f"--config={MICRO}"], ["--workdir"]),
        (train, ["--config=nowhere.py", "--workdir=W"], ["nowhere.py"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.sft.stpes=3"], ["'stpes', did you mean steps?"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.stf.steps=3"], ["'stf', did you mean sft?"]),
        (train, [f"--config={MICRO}", "--workdir=W", "--config.stages.sft.foo=1"], ["'foo'; flags can change"]),
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
        (evaluate, ["--workdir=W", "--name=N", "--phase=scores"], ["scores", "predict"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=score"], ["samples.jsonl", "predict"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=report"], ["scores.json", "score"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=score", "--rules=exakt"], ["exakt", "exact/1"]),
        (evaluate, ["--workdir=W", "--name=N", "--phase=score", "--judge=J", "--judge_requests=R"], ["--judge_requests"]),
        (
            evaluate,
            ["--workdir=W", "--name=N", "--rules=medevalkit-judge", "--phase=score", "--judge_responses=R"],
            ["--judge,"],
        ),
        (infer, [], ["--checkpoint", "--input", "--image", "--question", "--interactive"]),
        (infer, ["--checkpoint=C", "--input=I", "--question=Q"], ["--input", "--question"]),
        (infer, ["--checkpoint=CHECKPOINT", "--input=nowhere.csv"], ["nowhere.csv"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--tensor=9"], ["tensor"]),
        (infer, ["--checkpoint=CHECKPOINT", "--question=Q", "--temperature=-1"], ["temperature"]),
        (infer, ["--checkpoint=nowhere", "--image=I", "--question=Q"], ["nowhere"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=nowhere.png", "--question=Q"], ["nowhere.png"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=IMAGE", "--question=Q", "--protocol=vitra"], ["vitra"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=CHECKPOINT/config.json", "--question=Q"], ["config.json"]),
        (infer, ["--checkpoint=CHECKPOINT", "--image=IMAGE", "--question=" + "why " * 300], ["tokens"]),
        (quickstart, [f"--config={MICRO}", "--workdir=W"], ["one_look"]),
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


def in_process_of_its_own(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environ
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("module", [train, evaluate, infer, quickstart, attend, compare])
def test_its_documentation_has_examples(module: ModuleType) -> None:
    """absl prints it for --help."""
    assert module.__doc__ is not None and f"python -m {module.__name__} " in module.__doc__


def test_help_shows_examples() -> None:
    shown = in_process_of_its_own("vitar_jax.infer", "--help")
    assert "python -m vitar_jax.infer --checkpoint" in shown.stdout and "--question" in shown.stdout
    assert not shown.stderr


def test_a_mistake_in_a_process_of_its_own() -> None:
    shown = in_process_of_its_own("vitar_jax.infer", "--checkpoint=nowhere", "--image=I", "--question=Q")
    assert shown.returncode == 2 and not shown.stdout
    check_error(shown.stderr, "nowhere")


# Inference


@pytest.mark.parametrize("suffix, remote", [(".png", False), (".dcm", False), (".png", True)], ids=["png", "dicom", "url"])
def test_infer_answers(
    suffix: str, remote: bool, main: Main, checkpoint: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".dcm":
        image = image.with_suffix(suffix)
        image.write_bytes(dicom(np.asarray(tiny.noise(120, 100))))
    place = str(checkpoint)
    if remote:
        fsspec.filesystem("memory").put(place, "/checkpoint", recursive=True)
        place = "memory://checkpoint"
    arguments = [f"--checkpoint={place}", f"--image={image}", "--question=Which texture?", "--options=flat,rows"]
    assert main(infer, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("thought: ") and lines[-1] == "answer: none"  # random weights write no JSON
    assert any(line.startswith("tool error: ") for line in lines)


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


# Attention


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
    assert "| attention on the edited image |  |" in printed and "control: in random boxes of its shape" in printed


def test_attention_of_the_first_trajectories(main: Main, checkpoint: Path, trajectories: Path, tmp_path: Path) -> None:
    arguments = [f"--checkpoint={checkpoint}", f"--trajectories={trajectories}", f"--output={tmp_path}"]
    assert main(attend, *arguments, "--limit=1", "--rows=16", "--dtype=bfloat16") == 0
    assert len((tmp_path / "attention.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"attention.jsonl", "attention.json"}


def test_attention_of_another_checkpoints_trajectories(
    main: Main, checkpoint: Path, trajectories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.loads((trajectories / JSONL).read_text().splitlines()[0]) | {"banned_sha256": "0" * 64}
    (tmp_path / JSONL).write_text(json.dumps(line) + "\n")
    (tmp_path / "images").symlink_to(trajectories / "images")
    assert main(attend, f"--checkpoint={checkpoint}", f"--trajectories={tmp_path}", f"--output={tmp_path / 'out'}") == 2
    check_error(capsys.readouterr().err, "episode-0", "does not go with the checkpoint", "banned set")
    assert not list((tmp_path / "out").glob("*.json*"))


# Training


def test_model_flop_utilisation_is_of_all_devices_at_their_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path)
    monkeypatch.setattr(train, "chip_of", lambda device: H200)
    scalars = made._more_scalars(made.recipe.stages["sft"], 1, seconds=0.5)
    flops = program_flops(made.programs, "train", made.recipe.stages["sft"])
    assert scalars["perf/mfu"] == pytest.approx(flops / 0.5 / (len(jax.devices()) * 989e12))


# Evaluation


def test_an_evaluation_goes_on_where_it_stopped(checkpoint: Path, tmp_path: Path) -> None:
    begun: list[str] = []

    def play(samples: int) -> int:
        made = run(tmp_path)
        made.recipe = dataclasses.replace(made.recipe, evaluation_samples=samples)
        directory = evaluate.predict(
            made,
            checkpoint=checkpoint,
            protocol="vitar",
            name="test",
            rewards=made.recipe.rewards("grpo"),
            prepare=lambda episode: begun.append(episode.sample.sample_id),
        )
        assert len(read_outcomes(directory)) == samples
        return len(list(read_records(directory)))

    assert play(4) == len(begun) == 4
    assert play(6) == len(begun) == len(set(begun)) == 6
    assert play(6) == len(begun) == 6
    timing = (tmp_path / "evaluation" / "test" / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["episodes"] for line in timing] == [4, 2]


def test_an_evaluation_counts_what_it_cannot_play(
    main: Main, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here a prompt that leaves no room, among the recipe's own questions."""
    (tmp_path / "questions.csv").write_text("question\nWhich texture?\n" + "why " * 300 + "\n")
    (tmp_path / "config.py").write_text(
        f"from tests import micro\ndef get_config():\n    config = micro.get_config()\n"
        f"    config.evaluation = dict(name='questions', options=dict(file={str(tmp_path / 'questions.csv')!r}))\n"
        f"    return config\n"
    )
    arguments = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path}", f"--checkpoint={checkpoint}", "--name=test"]
    assert main(evaluate, *arguments) == 0
    scores = json.loads((tmp_path / "evaluation" / "test" / "scores.json").read_text())
    assert scores["n"] == scores["failures"] == 1
    assert "failures: DataError 1" in capsys.readouterr().out


def test_phases_of_an_evaluation_stand_alone(
    main: Main, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores and report come from the folder, elsewhere, where JAX finds no device; and again the same."""
    arguments = [f"--config={MICRO}", f"--workdir={tmp_path}", f"--checkpoint={checkpoint}", "--stage=sft"]
    assert main(evaluate, *arguments, "--phase=predict", "--look=truth") == 0
    folder = tmp_path / "evaluation" / "sft-truth"
    assert not (folder / "scores.json").exists() and not capsys.readouterr().out
    moved = tmp_path / "elsewhere" / "evaluation" / "sft-truth"
    shutil.copytree(folder, moved)
    alone = ["vitar_jax.evaluate", f"--workdir={tmp_path / 'elsewhere'}", "--name=sft-truth"]
    shown = in_process_of_its_own(*alone, "--phase=score,report", "--rules=exact/1,vitar-letter", JAX_PLATFORMS="tpu")
    assert shown.returncode == 0, shown.stderr
    scores = json.loads((moved / "scores.json").read_text())
    assert scores["rules"].keys() == {"exact/1", "vitar-letter/1"} and scores["rules"]["exact/1"]["n"] == 6
    assert scores["action_success"] == 1 and scores["iou"] > 0.7  # the boxes are the true ones
    assert scores["per_sample"]["images"] == 2 and scores["per_sample"]["seconds"] > 0
    assert "exact/1" in (moved / "report" / "index.html").read_text()
    assert main(evaluate, *arguments, "--phase=score", "--look=truth", "--rules=exact,vitar-letter") == 0
    assert (folder / "scores.json").read_text() == (moved / "scores.json").read_text()


def test_a_control_has_a_folder_of_its_own(
    main: Main, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--config={MICRO}", f"--workdir={tmp_path}", f"--checkpoint={checkpoint}", "--phase=predict"]
    for control in ("blank", "wrong_image"):
        assert main(evaluate, *arguments, f"--control={control}", "--look=random") == 0
        settings = json.loads((tmp_path / "evaluation" / f"grpo-{control}-random" / "settings.json").read_text())
        assert settings["control"] == {"control": control, "look": "random"}
    capsys.readouterr()
    assert main(evaluate, *arguments, "--name=grpo-blank-random") == 2
    check_error(capsys.readouterr().err.splitlines()[-1], "control")


def test_a_judge_by_file(main: Main, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests go out, responses come in, and the next scores know them."""
    answered = {"sample_id": "1", "question": "What is it?", "options": [], "answer": "left", "images": [], "metadata": {}}
    folder = tmp_path / "evaluation" / "n"
    trajectory = Episode(Sample("1", "What is it?", (), "left"), PROTOCOLS["plain"], tiny.processor(4), Limits(900, 400))
    trajectory.add_turn([*tiny.chat().text("on the left"), tiny.chat().im_end], None)
    TrajectoryWriter(folder).write([trajectory.trajectory(stream="on_policy", policy_version=0, banned_sha256="")])
    (folder / "samples.jsonl").write_text(json.dumps(answered) + "\n")
    requests, responses = tmp_path / "requests.jsonl", tmp_path / "responses.jsonl"
    arguments = [f"--workdir={tmp_path}", "--name=n", "--phase=score", "--rules=medevalkit-judge", "--judge=j"]

    def score() -> tuple[int, int]:
        scores = json.loads((folder / "scores.json").read_text())["rules"]["medevalkit-judge/1"]
        return scores["n"], scores["unjudged"]

    assert main(evaluate, *arguments, f"--judge_requests={requests}") == 0 and score() == (0, 1)
    assert "judge: 1 answers to be judged" in capsys.readouterr().out
    body = {"choices": [{"message": {"content": "<judge>correct</judge>"}}]}
    response = {"custom_id": json.loads(requests.read_text())["custom_id"], "response": {"body": body}, "error": None}
    responses.write_text(json.dumps(response) + "\n")
    assert main(evaluate, *arguments, f"--judge_responses={responses}") == 0 and score() == (1, 0)
    assert main(evaluate, *arguments) == 0 and score() == (1, 0)


def test_two_evaluations_are_compared(tmp_path: Path) -> None:
    for name, correct in (("a", (1.0, 0.0, 0.0)), ("b", (1.0, 1.0, 0.0))):
        (tmp_path / name).mkdir()
        verdicts = [
            {"sample_id": str(i), "cluster": str(i), "gold": "x", "rules": {"exact/1": {"correct": value}}}
            for i, value in enumerate(correct)
        ]
        (tmp_path / name / "verdicts.jsonl").write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    folders = [str(tmp_path / name) for name in "ab"]
    shown = in_process_of_its_own("vitar_jax.compare", *folders, f"--output={tmp_path}", JAX_PLATFORMS="tpu")
    assert shown.returncode == 0, shown.stderr
    assert "exact/1" in shown.stdout and "+33.3%" in shown.stdout and "p = 1 (mcnemar)" in shown.stdout
    row = json.loads((tmp_path / "comparison.json").read_text())["rules"]["exact/1"]
    (in_csv,) = csv.DictReader((tmp_path / "comparison.csv").open())
    assert in_csv["rule"] == "exact/1" and float(in_csv["difference"]) == row["difference"] == pytest.approx(1 / 3)
    assert [float(in_csv["low"]), float(in_csv["high"])] == row["interval"]
    shown = in_process_of_its_own("vitar_jax.compare", folders[0])
    assert shown.returncode == 2
    check_error(shown.stderr, "A B")


def test_the_quickstart_is_for_one_process(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert main(quickstart, f"--workdir={tmp_path}") == 2
    check_error(capsys.readouterr().err, "one process")


def test_there_are_simulated_devices() -> None:
    assert jax.device_count() == 8
