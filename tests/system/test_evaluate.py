"""Evaluation from end to end: it goes on where it stopped, its phases stand alone, judges are asked, two are compared."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.kit import micro, tiny
from tests.kit.datasets import read_back
from tests.kit.endpoint import Reply, in_turn, serving
from tests.kit.errors import Main, check_error
from tests.kit.processes import MICRO, run_module
from tests.kit.slake import published
from vitar_jax import evaluate
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_records
from vitar_jax.evaluation.comparison import compare
from vitar_jax.evaluation.outcomes import read_outcomes, read_references
from vitar_jax.evaluation.predict import predict
from vitar_jax.experiment import trainer
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.processing.chat import Chat


@pytest.mark.slow
def test_an_evaluation_goes_on_where_it_stopped(checkpoint: Path, tmp_path: Path) -> None:
    begun: list[str] = []

    def play(samples: int) -> int:
        made = Run(Recipe.from_config(micro.get_config()), tmp_path)
        made.recipe = dataclasses.replace(made.recipe, evaluation_samples=samples)
        directory, source = tmp_path / "evaluation" / "test", load_source(made.recipe.evaluation)
        predict(
            made.player(checkpoint, made.recipe.all_protocols["vitar"]),
            source,
            directory,
            count=made.recipe.held_out(source),
            title="test",
            prepare=lambda episode: begun.append(episode.sample.sample_id),
        )
        assert len(read_outcomes(directory)) == samples
        return len(list(read_records(directory)))

    assert play(4) == len(begun) == 4
    assert play(6) == len(begun) == len(set(begun)) == 6
    assert play(6) == len(begun) == 6
    timing = (tmp_path / "evaluation" / "test" / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["episodes"] for line in timing] == [4, 2]


NOTE = "note: this checkpoint was trained on questions with options alone, and this question has none (sample "


@pytest.mark.slow
def test_an_evaluation_counts_what_it_cannot_play(
    main: Main, options_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here a prompt that leaves no room, among the recipe's own questions, which have no options."""
    (tmp_path / "questions.csv").write_text("question\nWhich texture?\n" + "why " * 300 + "\n")
    (tmp_path / "config.py").write_text(
        f"from tests.kit import micro\ndef get_config():\n    config = micro.get_config()\n"
        f"    config.evaluation = dict(name='questions', options=dict(file={str(tmp_path / 'questions.csv')!r}))\n"
        f"    return config\n"
    )
    arguments = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path}", f"--checkpoint={options_checkpoint}"]
    arguments.append("--name=test")
    assert main(evaluate, *arguments) == 0
    scores = json.loads((tmp_path / "evaluation" / "test" / "scores.json").read_text())
    assert scores["samples"] == 2 and scores["failures"] == 1 and scores["measures"]["answered"]["n"] == 1
    said = capsys.readouterr().out
    assert "failures: TooLongError 1" in said and said.count(NOTE) == 1
    assert main(evaluate, *arguments, "--config.processor.max_pixels=3136") == 2
    check_error(capsys.readouterr().err.splitlines()[-1], "holds trajectories of other settings (images)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, folder, turns, said",
    [
        (["--protocol=direct"], "sft-direct", 1, "Look once."),
        (["--forced"], "sft-forced", 2, "Look twice."),
        (["--protocol=FILE", "--forced"], "sft-mine-forced", 3, "Look thrice."),
    ],
)
def test_the_protocol_can_be_another_than_the_stages(
    how: list[str], folder: str, turns: int, said: str, main: Main, checkpoint: Path, tmp_path: Path
) -> None:
    """`turns` is what an episode may have, `--forced` whether it must: then an answer before the last is an error."""
    mine = tmp_path / "mine.toml"
    mine.write_text('system = "Look thrice."\nobservation = "Again."\ntools = ["zoom"]\nmax_turns = 3\n')
    how = [flag.replace("FILE", str(mine)) for flag in how]
    arguments = [f"--config={MICRO}", f"--workdir={tmp_path}", f"--checkpoint={checkpoint}", "--stage=sft"]
    assert main(evaluate, *arguments, *how, "--phase=predict") == 0
    settings = json.loads((tmp_path / "evaluation" / folder / "settings.json").read_text())["protocol"]
    assert (settings["max_turns"], settings["system"]) == (turns, said)
    assert settings["early_answer"] == ("--forced" not in how)


@pytest.mark.slow
def test_reference_answers_are_scored_by_teacher_forcing(
    main: Main, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--config={MICRO}", f"--workdir={tmp_path}", f"--checkpoint={checkpoint}", "--stage=sft"]
    arguments += ["--phase=predict,score", "--reference_logprobs"]
    for control in ([], ["--control=blank"]):
        assert main(evaluate, *arguments, *control) == 0
    real, blank = (tmp_path / "evaluation" / name for name in ("sft", "sft-blank"))
    scores = json.loads((real / "scores.json").read_text())
    assert scores["reference_logprob"]["n"] == scores["samples"] == 6
    assert "reference_logprob" in capsys.readouterr().out
    added = (compare(real, blank)["reliance"] or {})["added_logprob"]
    logprobs = [read_references(directory) for directory in (real, blank)]
    assert added["value"] == pytest.approx(sum(logprobs[0][name] - logprobs[1][name] for name in logprobs[0]) / 6)
    assert added["value"] != 0


@pytest.mark.slow
def test_several_benchmarks_have_one_table(
    main: Main, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has options, the other has none; the weights are read once, and scores need neither config nor weights."""
    (tmp_path / "questions.csv").write_text("question,answer\nWhich texture?,flat\nWhere?,left\n")
    (tmp_path / "config.py").write_text(
        f"from tests.kit import micro\ndef get_config():\n    config = micro.get_config()\n"
        f"    mine = dict(name='questions', options=dict(file={str(tmp_path / 'questions.csv')!r}))\n"
        f"    phantoms = dict(source=config.evaluation.to_dict())\n"
        f"    config.benchmarks = dict(phantoms=phantoms, mine=dict(source=mine))\n    return config\n"
    )
    loads: list[object] = []
    load = trainer.load_rollout_weights
    monkeypatch.setattr(trainer, "load_rollout_weights", lambda source, *rest: loads.append(source) or load(source, *rest))
    arguments = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path}", f"--checkpoint={checkpoint}", "--name=test"]
    assert main(evaluate, *arguments, "--rules=exact,vitar-letter") == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    first = lines.index(["benchmark", "n", "score", "primary", "rule", "exact/1", "vitar-letter/2"])
    mine, phantoms, mean = lines[first + 1 : first + 4]
    assert phantoms[:2] == ["phantoms", "6"] and phantoms[5].endswith("%")
    assert mine == ["mine", "2", "0.0%", "exact/1", "0.0%", "-"] and mean[0] == "mean" and mean[-1] == "-"
    assert len(loads) == 1
    folder = tmp_path / "evaluation" / "test"
    assert (folder / "report" / "index.html").exists() and (folder / "mine" / "scores.json").exists()
    again = ["--phase=score", f"--workdir={tmp_path}", "--name=test"]
    assert main(evaluate, *again, "--rules=exact,vitar-letter") == 0
    assert phantoms in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main(evaluate, *again, "--benchmarks=mine") == 0
    assert "phantoms" not in capsys.readouterr().out
    assert main(evaluate, *arguments, "--benchmarks=min") == 2
    check_error(capsys.readouterr().err, "--benchmarks: got 'min', expected mine, phantoms")


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_without_a_recipe(
    main: Main, options_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data set and a rule of a user's file; the rule marks right and wrong in table, page and CSV."""
    (tmp_path / "mine.py").write_text(
        "from vitar_jax.episodes.sample import Sample\n"
        "from vitar_jax.evaluation.rules import Verdict\n"
        "def cases(split):\n    return [Sample(str(i), f'Which {i}?', (), 'flat') for i in range(2)]\n"
        "def lenient(item):\n    return Verdict(0.5, item.prediction, 'open')\n"
        "def two(trajectory):\n    return 2\n"
    )
    own = [f"--benchmarks={tmp_path}/mine.py:cases", f"--rules={tmp_path}/mine.py:lenient,exact", "--dtype=float32"]
    own.append(f"--measures={tmp_path}/mine.py:two")
    own += ["--attention=xla", "--max_pixels=3136", "--stop_tokens=<|im_start|>"]
    arguments = [f"--checkpoint={options_checkpoint}", f"--workdir={tmp_path}", "--name=own"]
    assert main(evaluate, *arguments, *own) == 0
    assert capsys.readouterr().out.count(NOTE + "0") == 1
    played = json.loads((tmp_path / "evaluation" / "own" / "mine-cases" / "settings.json").read_text())
    start = Chat(options_checkpoint).token_id("<|im_start|>")
    assert (played["max_pixels"], played["sampling"]["stop_ids"]) == (3136, [start])
    folder = tmp_path / "evaluation" / "own"
    scores = json.loads((folder / "mine-cases" / "scores.json").read_text())
    assert scores["primary"] == f"{tmp_path}/mine.py:lenient/1" and scores["rules"][scores["primary"]]["score"] == 0.5
    assert scores["measures"]["mean_reward"]["n"] == 0 and scores["measures"][f"{tmp_path}/mine.py:two"]["value"] == 2
    rows = list(csv.DictReader((folder / "report" / "episodes.csv").open(encoding="utf-8-sig")))
    assert [(row["correct"], row["rule"]) for row in rows] == [("0.5", scores["primary"])] * 2
    page = " ".join((folder / "report" / "index.html").read_text().split())
    assert f"right or wrong by the rule {scores['primary']}" in page
    capsys.readouterr()
    assert main(evaluate, *arguments, "--benchmarks=vqa_rat") == 2
    check_error(capsys.readouterr().err.splitlines()[-1], "--benchmarks: unknown data set 'vqa_rat'")
    both = f"--benchmarks={tmp_path}/mine.py:cases,elsewhere/mine.py:cases"
    assert main(evaluate, *arguments, both) == 2
    check_error(capsys.readouterr().err, "elsewhere/mine.py:cases would share the folder mine-cases")


@pytest.mark.slow
def test_a_built_set_is_a_benchmark_by_name(main: Main, build_set, checkpoint: Path, tmp_path: Path) -> None:
    data_dir = build_set("slake", published(tmp_path / "slake"))
    arguments = [f"--checkpoint={checkpoint}", f"--workdir={tmp_path}", "--name=built", f"--data_dir={data_dir}"]
    assert main(evaluate, *arguments, "--benchmarks=slake/test_en", "--phase=predict,score") == 0
    played = read_outcomes(tmp_path / "evaluation" / "built" / "slake-test_en")
    held_out = read_back(data_dir, "slake", "test_en")
    assert [(outcome.sample_id, outcome.answer) for outcome in played] == [(s.sample_id, s.answer) for s in held_out]
    assert all(outcome.status != "failed" for outcome in played) and played


@pytest.mark.slow
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
    shown = run_module(*alone, "--phase=score,report", "--rules=exact/1,vitar-letter", environ={"JAX_PLATFORMS": "tpu"})
    assert shown.returncode == 0, shown.stderr
    scores = json.loads((moved / "scores.json").read_text())
    assert scores["rules"].keys() == {"exact/1", "vitar-letter/2"} and scores["rules"]["exact/1"]["n"] == 6
    assert (
        scores["measures"]["action_success"]["value"] == 1 and scores["measures"]["iou"]["value"] > 0.7
    )  # the boxes are the true ones
    assert scores["per_sample"]["images"] == 2 and scores["per_sample"]["seconds"] > 0
    assert "exact/1" in (moved / "report" / "index.html").read_text()
    assert not list((moved / "report" / "images").iterdir())
    assert main(evaluate, *arguments, "--phase=score", "--look=truth", "--rules=exact,vitar-letter") == 0
    assert (folder / "scores.json").read_text() == (moved / "scores.json").read_text()
    assert main(evaluate, *arguments, "--phase=report", "--look=truth", "--show_images") == 0
    assert len(list((folder / "report" / "images").iterdir())) > 6
    assert "Look twice." in (folder / "report" / "data" / "000.js").read_text()  # as only tokens say
    shutil.rmtree(folder / "report")
    assert main(evaluate, *arguments, "--phase=report", "--look=truth", "--single_file") == 0
    assert [path.name for path in (folder / "report").iterdir()] == ["index.html"]


@pytest.mark.slow
def test_a_control_has_a_folder_of_its_own(
    main: Main, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--config={MICRO}", f"--workdir={tmp_path}", f"--checkpoint={checkpoint}", "--phase=predict"]
    for control in ("blank", "wrong_image"):
        assert main(evaluate, *arguments, f"--control={control}", "--look=random") == 0
        settings = json.loads((tmp_path / "evaluation" / f"grpo-{control}-random" / "settings.json").read_text())
        assert settings["control"] == {"control": control, "look": "random"}
    assert main(evaluate, *arguments, "--sweep=erased", "--protocol=direct") == 0
    for dose in ("", "erased-33", "erased-67", "erased-100"):
        folder = tmp_path / "evaluation" / "-".join(filter(None, ["grpo-direct", dose]))
        expected = {"control": dose.replace("-", ":")} if dose else None
        assert json.loads((folder / "settings.json").read_text()).get("control") == expected
    capsys.readouterr()
    assert main(evaluate, *arguments, "--name=grpo-blank-random") == 2
    check_error(capsys.readouterr().err.splitlines()[-1], "control")


@pytest.fixture
def open_answer(tmp_path: Path) -> Path:
    """The folder of an evaluation with one answer, "on the left" where the reference is "left"."""
    answered = {"sample_id": "1", "question": "What is it?", "options": [], "answer": "left", "images": [], "metadata": {}}
    folder = tmp_path / "evaluation" / "n"
    trajectory = Episode(Sample("1", "What is it?", (), "left"), PROTOCOLS["plain"], tiny.processor(4), Limits(900, 400))
    trajectory.add_turn([*tiny.chat().text("on the left"), tiny.chat().im_end], None)
    TrajectoryWriter(folder).write([trajectory.trajectory(stream="on_policy", policy_version=0, banned_sha256="")])
    (folder / "samples.jsonl").write_text(json.dumps(answered) + "\n")
    return folder


def judged(main: Main, folder: Path, *arguments: str) -> tuple[int, int]:
    """How many answers are scored with the judge "j", and how many are not."""
    rules = ("--phase=score", "--rules=medevalkit-judge", "--judge=j")
    assert main(evaluate, f"--workdir={folder.parents[1]}", f"--name={folder.name}", *rules, *arguments) == 0
    scores = json.loads((folder / "scores.json").read_text())["rules"]["medevalkit-judge/2"]
    return scores["n"], scores["unjudged"]


def test_a_judge_by_file(main: Main, open_answer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests go out, responses come in, and the next scores know them."""
    requests, responses = tmp_path / "requests.jsonl", tmp_path / "responses.jsonl"
    assert judged(main, open_answer, f"--judge_requests={requests}") == (0, 1)
    assert "judge: wrote 1 requests" in capsys.readouterr().out
    body = {"choices": [{"message": {"content": "<judge>correct</judge>"}}]}
    response = {"custom_id": json.loads(requests.read_text())["custom_id"], "response": {"body": body}, "error": None}
    responses.write_text(json.dumps(response) + "\n")
    assert judged(main, open_answer, f"--judge_responses={responses}") == (1, 0)
    assert judged(main, open_answer) == (1, 0)


def test_a_judge_at_an_endpoint(
    main: Main, open_answer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says nothing at first, is asked again at the next start, and then no more."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(in_turn("Who knows.", "They agree. <judge>correct</judge>")) as server:
        assert judged(main, open_answer, f"--judge_url={server.url}") == (0, 1)
        assert "judge: no_verdict 1" in capsys.readouterr().out
        assert judged(main, open_answer, f"--judge_url={server.url}") == (1, 0)
        assert judged(main, open_answer, f"--judge_url={server.url}") == (1, 0)
    assert [body["model"] for body in server.asked] == ["j", "j"]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_judge_that_takes_no_temperature(main: Main, open_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Why it refuses is printed. A flag changes the request."""

    def answer(body: dict[str, Any], number: int) -> Reply | str:
        if "temperature" in body:
            return Reply(status=400, body=b'{"error": {"message": "Unsupported value: temperature"}}')
        return "<judge>correct</judge>"

    with serving(answer) as server:
        assert judged(main, open_answer, f"--judge_url={server.url}") == (0, 1)
        assert "status 400: Unsupported value: temperature\n" in capsys.readouterr().out
        request = '{"temperature": null, "max_completion_tokens": 512}'
        assert judged(main, open_answer, f"--judge_url={server.url}", f"--judge_request={request}") == (1, 0)
    assert server.asked[0]["temperature"] == 0
    assert server.asked[1].keys() == {"model", "messages", "max_completion_tokens"}
    assert main(evaluate, f"--workdir={open_answer.parents[1]}", "--name=n", "--phase=score", "--judge_request=3") == 2
    assert "--judge_request: got '3', expected a JSON object" in capsys.readouterr().err


@pytest.mark.slow
def test_two_evaluations_are_compared(tmp_path: Path) -> None:
    for name, correct in (("a", (1.0, 0.0, 0.0)), ("b", (1.0, 1.0, 0.0))):
        (tmp_path / name).mkdir()
        verdicts = [
            {"sample_id": str(i), "cluster": str(i), "gold": "x", "rules": {"exact/1": {"correct": value}}}
            for i, value in enumerate(correct)
        ]
        (tmp_path / name / "verdicts.jsonl").write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
        (tmp_path / name / "scores.json").write_text(json.dumps({"primary": "exact/1"}))
    folders = [str(tmp_path / name) for name in "ab"]
    shown = run_module("vitar_jax.compare", *folders, f"--output={tmp_path}", environ={"JAX_PLATFORMS": "tpu"})
    assert shown.returncode == 0, shown.stderr
    assert "exact/1 *" in shown.stdout and "+33.3%" in shown.stdout and "p = 1 (mcnemar)" in shown.stdout
    row = json.loads((tmp_path / "comparison.json").read_text())["rules"]["exact/1"]
    (in_csv,) = csv.DictReader((tmp_path / "comparison.csv").open())
    assert in_csv["rule"] == "exact/1" and float(in_csv["difference"]) == row["difference"] == pytest.approx(1 / 3)
    assert [float(in_csv["low"]), float(in_csv["high"])] == row["interval"]
    shown = run_module("vitar_jax.compare", folders[0])
    assert shown.returncode == 2
    check_error(shown.stderr, "A B")
