"""Benchmark of training against torch: SFT against a minimal step of Hugging Face's module, GRPO against TRL's trainer.

A third row times the update of GRPO on short episodes, with filled rows against one episode per row.
"""

import dataclasses
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from vitar_jax.bench.pairs import Pair, Row, check_agreement, fastest, run_pair
from vitar_jax.bench.stage_steps import StageSteps
from vitar_jax.bench.text_task import TextTask, TrainCase
from vitar_jax.bench.torch_peer import Setting, settings
from vitar_jax.bench.torch_text import TextPeer, text_weights
from vitar_jax.bench.trl_peer import Replies, TRLPeer, TRLSetting, trl_settings
from vitar_jax.experiment.program_flops import program_flops
from vitar_jax.experiment.trainer import Run
from vitar_jax.learning.grpo import GRPO
from vitar_jax.models.pretrained import save_pretrained
from vitar_jax.parallel.mesh import put_batch
from vitar_jax.parallel.topology import chip_of
from vitar_jax.processing.packing import Example, pack
from vitar_jax.runtime.cli import duration

_TOLERANCE = 1e-3
_FILLED_TARGET = 1 / 0.6  # the time with filled rows is at most 0.6 of the other
_MEAN_LENGTH = 0.45  # of the episodes with filled rows, as a share of the limit
Phases = dict[str, dict[str, float]]
"""For each side: seconds of each phase, tokens per second and, if the device's peak FLOP/s is known, the MFU of the update."""


class Ours(StageSteps):
    """A stage of the task's recipe. Turns of GRPO use their whole budget."""

    def __init__(self, task: TextTask, name: str, workdir: Path):
        run = Run(task.recipe, workdir)
        if isinstance(task.recipe.stages[name].objective, GRPO):
            run.banned[run.processor.chat.im_end] = True
        super().__init__(run, name)


def measure(
    cases: Sequence[TrainCase], *, rounds: int, try_compile: bool, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, Phases]]:
    """Checks that both sides learn the same, then times their steps alternately.

    Args:
      rounds: Number of timings per side.
      try_compile: Whether to try torch.compile among the peers' settings.
      say: Prints a line of progress.

    Returns:
      The rows, and the phases of both sides for each row.

    Raises:
      Disagreement: If the losses or gradient norms of SFT, or the weight updates of a GRPO step, have a relative difference
        above 1e-3.
    """
    rows, phases = [], {}
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            task = TextTask.write(case, Path(directory))
            say(
                f"{case.name}: {case.rows} rows of {case.prompt_tokens} prompt and {case.reply_tokens} reply tokens; "
                f"GRPO: {case.questions} prompts with {case.group_size} replies each; {task.recipe.model.dtype}"
            )
            for time_stage in (_sft, _grpo):
                row, found = time_stage(task, Path(directory), rounds, try_compile, say)
                rows.append(row)
                phases[f"{row.pair.name} {case.name}"] = found
            rows.append(_filled(task, Path(directory), rounds, say))
    return rows, phases


def _sft(task: TextTask, directory: Path, rounds: int, try_compile: bool, say: Callable[[str], None]) -> tuple[Row, Phases]:
    name, ours = task.case.name, Ours(task, "sft", directory)
    first = ours.step()
    peer = TextPeer(task.model, ours.run.model_config.text, ours.run.banned, ours.rows, task.case.reply_tokens)

    def peers(setting: Setting) -> Callable[[], tuple[float, float]]:
        peer.use(setting)
        return peer.step

    best, note = fastest(settings(try_compile=try_compile), peers)
    run_peer = peers(best)
    # Compares two steps, the second with the weights after the first.
    errors = [check_agreement(f"{name} SFT", mine, run_peer()) for mine in (first, ours.step())]
    say(f"{name} SFT: losses and gradients agree to {max(errors):.1e}; torch: {note}")
    row = run_pair(Pair("SFT step", name, ours.step, run_peer, peer_settings=str(best)), rounds)
    return row, _phases(task, ours, peer, rounds)


def _grpo(task: TextTask, directory: Path, rounds: int, try_compile: bool, say: Callable[[str], None]) -> tuple[Row, Phases]:
    name, ours = task.case.name, Ours(task, "grpo", directory)
    with closing(TRLPeer(task, directory, ours.run.model_config.text, ours.run.banned)) as peer:

        def peers(setting: TRLSetting) -> Callable[[], None]:
            peer.use(setting)
            return peer.step

        best, note = fastest(trl_settings(try_compile=try_compile), peers)
        run_peer = peers(best)
        error = compare(task, ours, peer, directory)
        say(f"{name} GRPO: weight updates agree to {error:.1e}; TRL: {note}")
        pair = Pair("GRPO step", name, ours.step, run_peer, target=task.case.target, peer_settings=f"TRL, {best}")
        return run_pair(pair, rounds), _phases(task, ours, peer, rounds)


def _filled(task: TextTask, directory: Path, rounds: int, say: Callable[[str], None]) -> Row:
    """Times the update of GRPO with filled rows against the one with a row for each episode, both on the same episodes."""
    case, run = task.case, Run(task.recipe, directory)
    examples = short_episodes(case, run.banned)
    stage, sides, norms = task.recipe.stages["grpo"], [], []
    for changes in (dict(packed=True), {}):
        objective = dataclasses.replace(stage.objective, **changes)
        side = dataclasses.replace(stage, objective=objective, micro_rows=2)
        batch = put_batch(pack(examples, run.programs.batch_shape(side), run.processor), run.mesh)
        step = _Update(run.programs.train(side, jnp.asarray(run.banned)).program, run.initial_state(side), batch)
        norms.append(step())
        sides.append(step)
    error = check_agreement(f"{case.name} filled rows", norms[0], norms[1], _TOLERANCE)
    mean = np.mean([len(example.token_ids) for example in examples])
    say(
        f"{case.name} filled rows: {len(examples)} episodes of {mean:.0f} tokens on average, of at most "
        f"{task.recipe.limits.tokens}; gradients agree to {error:.1e}"
    )
    pair = Pair("GRPO update, filled rows", case.name, *sides, target=_FILLED_TARGET, peer_settings="ours, one episode a row")
    return run_pair(pair, rounds)


class _Update:
    """The update of a step, again and again on one batch. Returns the norm of the gradient."""

    def __init__(self, program: Callable[..., Any], state: Any, batch: Any):
        self.program, self.state, self.batch = program, state, batch

    def __call__(self) -> float:
        self.state, metrics = self.program(self.state, self.batch)
        return float(jax.block_until_ready(metrics)["grad_norm"])


def short_episodes(case: TrainCase, banned: np.ndarray, seed: int = 0) -> list[Example]:
    """Returns the episodes of a step as random tokens, with a mean length of `_MEAN_LENGTH` of the limit.

    A prompt takes a quarter of the limit. The lengths of replies have a geometric distribution, up to
    the longest reply.
    """
    rng, allowed, limit = np.random.default_rng(seed), np.flatnonzero(~banned), case.prompt_tokens + case.reply_tokens
    prompt, made = limit // 4, []
    for number in range(case.rows):
        length = prompt + min(int(rng.geometric(1 / (_MEAN_LENGTH * limit - prompt))), case.reply_tokens)
        loss_mask = np.arange(length) >= prompt
        made.append(
            Example(
                name=f"episode-{number}",
                token_ids=rng.choice(allowed, length).astype(np.int32),
                loss_mask=loss_mask,
                position_ids=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
                vision_index=np.full(length, -1, np.int32),
                patches=(),
                grids=(),
                content_ids=(),
                extras={
                    "advantages": np.full(length, rng.normal(), np.float32),
                    "old_logprobs": np.where(loss_mask, -np.log(len(allowed)), 0.0).astype(np.float32),
                },
            )
        )
    return made


def compare(task: TextTask, ours: Ours, peer: TRLPeer, directory: Path) -> float:
    """Returns the relative distance between both sides' weight updates in one step from the initial weights, on our replies.

    The loss cannot be compared, because it is 0: replies have equal lengths, and advantages have mean 0.

    Raises:
      Disagreement: If the distance is too large, or prompts differ.
    """
    ours.step()
    replies: Replies = defaultdict(list)
    for row in ours.rows.tolist():
        replies[tuple(row[: task.case.prompt_tokens])].append(row[task.case.prompt_tokens :])
    peer.step(replies)
    save_pretrained(ours.state.model, directory / "learnt")
    before = text_weights(task.model)
    mine, theirs = (
        torch.cat([(after[name] - weight).flatten() for name, weight in before.items()])
        for after in (text_weights(directory / "learnt"), peer.weights())
    )
    return check_agreement(f"{task.case.name} GRPO", mine, theirs, _TOLERANCE)


def _phases(task: TextTask, ours: Ours, peer: TextPeer | TRLPeer, rounds: int) -> Phases:
    """Returns the medians of the last `rounds` steps."""
    found = {}
    for side, spent, devices in (("ours", ours.spent, ours.run.mesh.size), ("peer", peer.spent, 1)):
        found[side] = {phase: statistics.median(step[phase] for step in spent[-rounds:]) for phase in spent[0]}
        whole = statistics.median(sum(step.values()) for step in spent[-rounds:])
        found[side]["tokens_per_second"] = task.case.tokens / whole
        if chip := chip_of(ours.run.mesh.devices.flat[0]):
            flops = program_flops(ours.run.programs, "train", ours.stage)
            found[side]["mfu"] = flops / (found[side]["update"] * devices * chip.flops)
    return found


def phases_text(name: str, found: Phases) -> str:
    """Formats the phases of a row."""
    lines = []
    for side, numbers in found.items():
        numbers = dict(numbers)
        rate, mfu = numbers.pop("tokens_per_second"), numbers.pop("mfu", None)
        parts = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in numbers.items())
        lines.append(f"{name}, {side}: {parts}; {rate:.0f} tokens/s" + (f"; MFU {mfu:.1%}" if mfu else ""))
    return "\n".join(lines)
