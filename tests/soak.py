"""Kills a run repeatedly at random moments, and compares its results with those of an undisturbed run.

  python -m tests.soak --kills=30 --processes=1 --directory=runs/soak
  python -m tests.soak --kills=10 --config=tests/kit/soak_masks.py --directory=runs/soak_masks

The run is `tests/kit/searches.py` with more steps: a warm-up, SFT, GRPO beside an expert, and GRPO that replays its own earlier
episodes. `tests/kit/soak_masks.py` is SFT and GRPO with masks.

Every start of the run is killed with SIGKILL, until all kills are spent. The last start runs to its end. One kill in four
happens at a random moment of the start-up. The others happen at random moments after it, spread over all steps, and hit one of
the run's processes. A kill in the start-up hits all processes, as a launcher would: processes that are still connecting
cannot tell a dead process from a late one, and wait for it.

The results must be bit-identical. They are the weights of every stage, the checkpointed states, the metrics of every step
except times, and the kept episodes.
"""

import argparse
import copy
import hashlib
import json
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tests.kit import searches
from tests.kit.processes import start_together

PLAYING = ("experts", "replay")
STAGES = ("warmup", "sft", *PLAYING)


def get_config() -> ConfigDict:
    """Returns a recipe with enough steps for every kill to hit a different one. Every third step writes a checkpoint."""
    config: Any = searches.get_config()
    config.stages.grpo.objective.update(entropy_coefficient=0.1, refills=1)
    config.stages.grpo.probe_every = 10
    config.stages.experts = config.stages.grpo
    config.stages.replay = copy.deepcopy(config.stages.grpo)
    del config.stages["grpo"]
    config.stages.replay.objective.experts = dict(replay="newest", searches=2)
    for stage in PLAYING:
        config.stages[stage].sources.look.options.length = 16  # samples return, so that there is something to replay
    config.schedule = STAGES
    for stage, steps in zip(STAGES, (2, 120, 100, 100), strict=True):
        config.stages[stage].update(steps=steps, checkpoint_every=3, log_every=2)
    return config


class Start:
    """The processes of one start of the run."""

    def __init__(self, workdir: Path, processes: int, config: Path):
        command = [sys.executable, "-m", "vitar_jax.train", f"--config={config}", f"--workdir={workdir}"]
        self.log = workdir.with_suffix(".log")
        self.processes = start_together(command, processes, processes, self.log)

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` and returns whether all processes have ended without errors.

        Raises:
          SystemExit: If a process has failed.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            codes = [process.poll() for process in self.processes]
            if any(code not in (None, 0) for code in codes):
                self.end()
                raise SystemExit(f"a process ended with {codes}; see {self.log}")
            if all(code == 0 for code in codes):
                return True
            time.sleep(0.05)
        return False

    def kill(self, index: int) -> float:
        """Kills one process and returns the seconds until the others have ended."""
        began = time.monotonic()
        self.processes[index].send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait(60)  # after the death of a process, the others end within a minute
        return time.monotonic() - began

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def contents(workdir: Path) -> dict[str, str]:
    """Returns hashes of the results of a finished run: weights, states, metrics without times, kept episodes."""
    found = {}
    for stage in stages(workdir):
        for path in sorted((workdir / stage).glob("*/*.safetensors")):
            found[str(path.relative_to(workdir))] = hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((workdir / stage / "checkpoints").glob("*/data/metadata")):
            held = json.loads(path.read_text())
            found[f"{stage}, state of step {path.parts[-3]}"] = str(held["checksum"])
        rows = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if not key.startswith(("timing_s", "perf"))} for row in rows]
        found[f"{stage}, metrics of {len(rows)} steps"] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    for path in sorted(workdir.glob("**/trajectories.jsonl")):
        episodes = path.read_bytes()
        name = f"{path.parent.relative_to(workdir)}, {len(episodes.splitlines())} episodes kept"
        found[name] = hashlib.sha256(episodes).hexdigest()
    return found


def stages(workdir: Path) -> list[str]:
    """Returns the stages that have begun, in their order."""
    begun = sorted((path.stat().st_mtime_ns, path.parent.name) for path in workdir.glob("*/checkpoints"))
    return [name for _, name in begun]


def soak(directory: Path, kills: int, processes: int, seed: int, config: Path) -> None:
    chance = random.Random(seed)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    startup = whole = 0.0
    for name in ("whole", "again"):  # the first run fills the cache of compiled programs, the second is timed
        began = time.monotonic()
        start = Start(directory / name, processes, config)
        while not start.wait(0.05):
            if not any((directory / name).glob("*/metrics.jsonl")):
                startup = time.monotonic() - began
        whole = time.monotonic() - began
    expected = contents(directory / "whole")
    assert contents(directory / "again") == expected, "two undisturbed runs differ"
    print(f"undisturbed: {startup:.0f} s to the first step, {whole:.0f} s in all", flush=True)
    rows = logged(directory / "whole")
    row_seconds = (whole - startup) / rows
    workdir = directory / "killed"
    for done in range(kills):
        start = Start(workdir, processes, config)
        if chance.random() < 0.25:
            ended = start.wait(chance.uniform(0, startup))
            start.end()
            how = "in start-up"
        else:
            reach = max(rows * (done + chance.random()) / (kills + 1), logged(workdir) + 1)
            ended = False
            while not ended and logged(workdir) < reach:
                ended = start.wait(0.05)
            ended = ended or start.wait(chance.uniform(0, 2 * row_seconds))
            took = start.kill(chance.randrange(processes))
            how = f"the others ended after {took:.1f} s"
        if ended:
            raise SystemExit(f"the run ended after {done} kills")
        print(f"kill {done + 1}: {where(workdir)}, {how}", flush=True)
    start = Start(workdir, processes, config)
    while not start.wait(60):
        pass
    found = contents(workdir)
    differing = [name for name in expected if found.get(name) != expected[name]]
    for name in expected:
        print(f"{'DIFFERS' if name in differing else 'equal'}: {name}")
    same = len(expected) - len(differing)
    print(f"{kills} kills among {processes} process{'es' * (processes > 1)}: {same} of {len(expected)} things are equal")
    sys.exit(bool(differing))


def logged(workdir: Path) -> int:
    """Returns the number of rows of metrics so far."""
    return sum(len(path.read_bytes().splitlines()) for path in workdir.glob("*/metrics.jsonl"))


def where(workdir: Path) -> str:
    """Describes the newest checkpoint of the newest stage, and whether a checkpoint was being written."""
    for stage in reversed(stages(workdir)):
        names = [path.name for path in (workdir / stage / "checkpoints").glob("*")]
        if names:
            steps = [int(name) for name in names if name.isdecimal()]
            return f"{stage} {max(steps, default=0)}" + " while saving" * any("tmp" in name for name in names)
    return "before the first checkpoint"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where the runs go; emptied first")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--config", type=Path, default=Path("tests/soak.py"), help="recipe of the run")
    arguments = parser.parse_args()
    soak(arguments.directory, arguments.kills, arguments.processes, arguments.seed, arguments.config)
