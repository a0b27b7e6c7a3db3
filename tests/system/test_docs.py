"""The commands of README and the pages of docs/ run as printed, in order, in one directory, after a shortened quickstart."""

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.processes import ROOT, run, simulated

RUN = ("quickstart", "training", "serving", "evaluation", "attention", "protocols")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in RUN))
QUICKSTART = "bash launch/quickstart.sh"
SHORT = {
    "warmup.steps": 2,
    "sft.steps": 2,
    "sft.probe_every": 0,
    "grpo.steps": 1,
    "grpo.probe_every": 0,
    "one_look.steps": 2,
}
QUICK = " ".join(f"--config.stages.{key}={value}" for key, value in SHORT.items()) + " --config.evaluation_samples=8"
TINY = " ".join(
    f"--config.{key}={value}"
    for key, value in {
        "model.attention": "xla",
        "processor.size_classes": "'((1,1024),)'",  # the quickstart's model has no windows
        "rollout.tensor": 1,
        "rollout.slots": 8,
        "limits.turn_tokens": 32,
        "stages.sft.steps": 1,
        "stages.sft.batch_size": 2,
        "stages.grpo.steps": 1,
        "stages.grpo.batch_size": 1,
        "stages.grpo.micro_rows": 1,
        "stages.grpo.probe_every": 0,
    }.items()
)
# What is not run here, and why.
NOT_RUN = {
    "source .venv": "the environment of the tests",
    "pip install": "the environment of the tests",
    "launch/test.sh": "this test",
    "launch/(tpu_slice|gke|slurm|local).sh": "needs machines; tests/system/test_launch.py runs it dry",
    "(VQA_RAD_DIR|--data_dir=DATA)": "needs data",
    "--endpoint": "needs a server; tests/system/test_endpoint.py",
    "vitar_jax.serve": "does not end; tests/serve",
    "vitar_jax.plan": "minutes; tests/system/test_plan.py",
    "vitar_jax.bench": "minutes; tests/bench",
    "configs/(quickstart_masks|medeyes_quickstart).py": "another quickstart; tests/system",
}


def commands(page: Path) -> Iterator[str]:
    """Yields the shell commands of a page's indented blocks."""
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"(?:^    [^\n]*\n)+", text, re.MULTILINE):
        for line in textwrap.dedent(block).splitlines():
            if re.match(r"(?:[A-Z]+=\S+ )*(?:python|bash|printf|pip|source) ", line):
                yield line.partition("    #")[0].strip()


def block(page: Path, first: str) -> str:
    """Returns the block of a page that begins with a line."""
    (found,) = re.findall(rf"^(    {re.escape(first)}.*?)\n\n(?! )", page.read_text(), re.MULTILINE | re.DOTALL)
    return textwrap.dedent(found)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that sees the recipes, with the results of the shortened quickstart."""
    directory = tmp_path_factory.mktemp("docs")
    (directory / "configs").symlink_to(ROOT / "configs")
    (directory / "questions.csv").write_text(block(ROOT / "docs" / "serving.md", "image,question,options"))
    shell(directory, f"python -m vitar_jax.quickstart --workdir=runs/quickstart {QUICK} > said.txt 2> progress.txt")
    return directory


def shell(directory: Path, command: str) -> str:
    environ = simulated(1) | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = run("bash", "-c", f"cd {directory} && {command}", environ=environ)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shortened(command: str) -> str:
    """Returns the command with fewer steps, and with the quickstart's checkpoint where it needs published weights."""
    if "configs/own_3b.py" in command:
        return re.sub(r"QWEN_DIR|Qwen/\S+", "runs/quickstart/grpo/model", command) + f" {TINY}"
    if "configs/quickstart_smoke.py" in command or "--config=configs/quickstart.py" in command:
        given = {name.partition("=")[0] for name in command.split()}
        return " ".join((command, *(flag for flag in QUICK.split() if flag.partition("=")[0] not in given)))
    return command


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, scratch: Path) -> None:
    done = scratch / "done"
    before = done.read_text().splitlines() if done.exists() else []
    printed = [
        command
        for command in dict.fromkeys(commands(page))
        if command != QUICKSTART and command not in before and not any(re.search(part, command) for part in NOT_RUN)
    ]
    for command in printed:
        shell(scratch, shortened(command).replace("grpo.steps=200", "grpo.steps=1"))
    done.write_text("\n".join((*before, *printed)))


@pytest.mark.slow
def test_the_quickstart_says_what_a_reader_needs_and_nothing_else(scratch: Path) -> None:
    """It prints what the README shows: the rows of its table, and where the report is. No library prints anything."""
    said, progress = ((scratch / name).read_text() for name in ("said.txt", "progress.txt"))
    bar = r"\w+: \d+ of \d+ (step|episode)s, [\d:]+ passed, [\d:]+ left(, [a-z/]+=-?[\d.]+)*"
    assert [line for line in progress.splitlines() if not re.fullmatch(bar, line)] == []
    opening, _, ending = said.partition("stage 1 of 4, warmup\n")
    assert "trains   4 stages: warmup, sft, grpo, one_look" in opening and "takes    10 to 15 minutes" in opening
    assert "report   runs/quickstart/report/index.html" in opening and "size_classes" not in opening
    stages, _, ending = ending.partition("right answers, with intervals of 95 %, rule exact:\n")
    assert stages.splitlines() == ["stage 2 of 4, sft", "stage 3 of 4, grpo", "stage 4 of 4, one_look"]
    row = r"^\| ([^|]+?) \| \**[\d.]+ %\** \([\d.]+ to [\d.]+\) \|$"
    rows = re.findall(row, (ROOT / "README.md").read_text(), re.MULTILINE)
    *printed, probe, _, results, report = ending.splitlines()
    assert [re.match(r"(.*?) +\d+\.\d % \(", line)[1] for line in printed] == rows and len(rows) == 5  # type: ignore[index]
    assert probe.startswith("probe of the first view") and results == "Results: runs/quickstart/results.json"
    assert report == "Report:  runs/quickstart/report/index.html (open it in a browser)"
    assert (scratch / "runs" / "quickstart" / "report" / "index.html").exists()


@pytest.mark.slow
def test_the_program_of_the_readme_runs(scratch: Path) -> None:
    (scratch / "ask.py").write_text(block(ROOT / "README.md", "from vitar_jax import load_player"))
    shell(scratch, "test -e runs/phantoms || python -m data_prep.phantom --output=runs/phantoms")
    assert shell(scratch, "python ask.py").strip()


def test_every_page_is_run_or_has_a_test_of_its_own() -> None:
    """Commands that are not run match an entry of NOT_RUN, and each entry is used."""
    others = {"curation", "medeyes", "data", "vrt", "scale", "benchmarks", "extending", "design", "moved_keys"}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} == {page.stem for page in PAGES[1:]} | others
    everything = [command for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) for command in commands(page)]
    assert [part for part in NOT_RUN if not any(re.search(part, command) for command in everything)] == []
