"""Runs the stages of a recipe in a directory."""

import dataclasses
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import jax

from vitar_jax.data.interventions import Given, find_change, label
from vitar_jax.data.pipeline import Share, sample_stream
from vitar_jax.data.skipping import Skips, attempt
from vitar_jax.data.sources import options_only
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.evaluation.report import ReportSection, write_report
from vitar_jax.experiment import build
from vitar_jax.experiment.manifest import check_inputs
from vitar_jax.experiment.probe import reliance_scalars
from vitar_jax.experiment.program_flops import program_flops
from vitar_jax.experiment.programs import Programs, compile_ahead
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.experiment.stage_log import StageLog, warn
from vitar_jax.experiment.workdir import check_minibatches
from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.loop import Callbacks, resume, run_loop
from vitar_jax.learning.metrics import Scalars, rollout_scalars
from vitar_jax.learning.objective import Batches, Feed
from vitar_jax.learning.optimizer import make_schedule
from vitar_jax.learning.train_state import TrainState, create_train_state, restart
from vitar_jax.models.attention import find_back_end
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.lora import merge_lora, save_adapter
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.parallel.mesh import bins, local_bins, make_mesh, put_batch
from vitar_jax.parallel.topology import chip_of
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.processing.packing import BatchShape
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.checkpoint import load_rollout_weights
from vitar_jax.rollout.checkpoint_settings import save_settings, trained_on_options_only
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.groups import fork_groups
from vitar_jax.rollout.masks import check_makes_masks
from vitar_jax.rollout.player import Player
from vitar_jax.runtime import cli
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.memory import anonymous_memory
from vitar_jax.runtime.preemption import Preemption, exit_status
from vitar_jax.runtime.remote import CheckpointFolder


class Run:
    """A run of a recipe in a directory: trains its stages and plays its models.

    Args:
      images: Whether reports show the episodes' images.
    """

    def __init__(self, recipe: Recipe, workdir: Path, *, images: bool = False):
        find_back_end(recipe.model.attention, dtype=recipe.model.dtype, platform=jax.default_backend())
        self.recipe = recipe
        self.workdir = workdir
        self.images = images
        self.mesh = make_mesh(**dataclasses.asdict(recipe.mesh))
        self.processor: Processor = build.processor(recipe, workdir)
        self.model_config: ModelConfig = build.model_config(recipe, self.processor)
        for stage in recipe.schedule:
            for name in recipe.stages[stage].protocols:
                check_makes_masks(recipe.all_protocols[name], self.model_config)
        self.banned = banned_tokens(self.processor.chat, self.model_config.text.vocab_size)
        self.share = Share(jax.process_index(), jax.process_count())
        self.programs = Programs(recipe, self.model_config, self.mesh)

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.recipe.rollout, self.processor, self.recipe.limits, self.banned)

    def model_dir(self, stage: str) -> Path:
        """Returns the directory of a stage's final weights, which exists only after the stage has finished."""
        return self.workdir / stage / "model"

    def train(self) -> None:
        """Trains every unfinished stage. After a SIGTERM, saves between two steps and ends the process with `exit_status`.

        Raises:
          ConfigError: If data, pretrained weights or the split of minibatches have changed since an earlier start.
        """
        for name in self.recipe.schedule:
            self.programs.batch_shape(self.recipe.stages[name])  # fails early if a batch does not fit the mesh
        unfinished = [name for name in self.recipe.schedule if not self.model_dir(name).exists()]
        for name in unfinished:
            stage, shards = self.recipe.stages[name], bins(self.mesh)
            if stage.objective.passes.minibatches > 1:
                micro_batches = build.micro_batch_count(self.recipe, stage, shards)
                split = {"processes": self.share.count, "data_shards": shards, "micro_batches": micro_batches}
                check_minibatches(self.workdir / name, split)
        check_inputs(self.recipe, self.workdir, unfinished)
        if unheld := build.unheld_images(self.processor):
            warn(unheld)
        with Preemption() as preemption:
            for number, name in enumerate(self.recipe.schedule, start=1):
                title = f"stage {number} of {len(self.recipe.schedule)}, {name}"
                if self.model_dir(name).exists():
                    cli.say(f"{title}: already done")
                    continue
                cli.say(title)
                self._train_stage(name, self.recipe.stages[name], preemption)

    def _train_stage(self, name: str, stage: StageConfig, preemption: Preemption) -> None:
        """Trains a stage from its newest checkpoint, or from its start, and writes its weights."""
        began = time.perf_counter()
        directory = self.workdir / name
        call = self.programs.train(stage, jax.numpy.asarray(self.banned))
        step = compile_ahead(call.program, *call.arguments)
        state = self.initial_state(stage)
        reference = (self.programs.reference(state.model),) if stage.objective.needs_reference else ()
        shape = self.programs.local_batch_shape(stage, local_bins(self.mesh))
        checkpointer = Checkpointer(directory / "checkpoints", warn=warn)
        state, progress = resume(state, checkpointer)
        start = int(state.step)
        with StageLog(name, stage, directory, start, more=partial(self._more_scalars, stage)) as log:
            state = run_loop(
                state,
                self.batches(name, stage, shape, start),
                lambda state, batch: step(state, batch, *reference),
                steps=stage.steps,
                put=lambda batch: put_batch(batch, self.mesh),
                checkpointer=checkpointer,
                checkpoint_every=stage.checkpoint_every,
                log_every=stage.log_every,
                probe_every=stage.probe_every,
                stop_after_skipped=stage.stop_after_skipped,
                callbacks=Callbacks(
                    log.write,
                    keep_best=lambda state: self._save(state, stage, directory / "best", began),
                    probe=self.probe(name, stage),
                    stop=preemption,
                ),
                progress=progress,
            )
        checkpointer.close()
        if preemption.requested:
            _exit_stopped(name, int(state.step))
        if self._keeps(stage):
            self._write_report(name)
        self._save(state, stage, self.model_dir(name), began)

    def _write_report(self, name: str) -> None:
        """Writes the report of the episodes that a stage kept."""
        directory = self.workdir / name
        write_report(
            directory / "report",
            [ReportSection(name, read_trajectories(directory))],
            title=f"{name}: episodes of its training",
            pieces=self.processor.chat.pieces,
            images=self.images,
        )

    def _save(self, state: TrainState, stage: StageConfig, directory: Path, began: float) -> None:
        """Atomically writes a checkpoint to `directory`, including the time since the stage was started or resumed."""
        partial = directory.with_suffix(".partial")
        self._save_model(stage, state, partial)
        if is_main():
            given = options_only(stage.sources.values())
            protocols = self.recipe.all_protocols
            save_settings(partial, self.processor, self.recipe.limits, protocols, stage.protocol, options_only=given)
            (partial / "seconds.json").write_text(json.dumps(time.perf_counter() - began) + "\n")
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        wait_for_all(f"{directory} is there")

    def _more_scalars(self, stage: StageConfig, step: int, logged: Scalars) -> Scalars:
        """Returns the learning rate of a step's first update, the main process's memory, and the MFU on known devices."""
        schedule: Any = make_schedule(stage.optimizer, stage.optimizer_steps)
        scalars = {"actor/lr": float(schedule((step - 1) * stage.optimizer_steps // stage.steps))}
        if (memory := anonymous_memory()) is not None:
            scalars["perf/host_memory_gib"] = memory / 2**30
        if chip := chip_of(self.mesh.devices.flat[0]):
            flops = program_flops(self.programs, "train", stage) * logged.get("actor/filled_share", 1.0)
            scalars["perf/mfu"] = flops / (logged["timing_s/update"] * self.mesh.size * chip.flops)
        return scalars

    def _save_model(self, stage: StageConfig, state: TrainState, directory: Path) -> None:
        """Writes a stage's weights. Adapters are merged into them, and also written separately for `peft`."""
        model = state.model
        if stage.lora is not None:
            save_adapter(model, stage.lora, directory / "adapter", base=str(self._source(stage)))
            model = jax.jit(merge_lora, out_shardings=self.programs.model_shardings)(model)
        save_pretrained(model, directory, generation=self.model_config.generation)

    def _source(self, stage: StageConfig) -> str | Path:
        """Returns the checkpoint that a stage starts from, or an empty string for random weights."""
        return self.model_dir(stage.start) if stage.start else self.recipe.model.pretrained

    def initial_state(self, stage: StageConfig) -> TrainState:
        """Returns a stage's state at step 0, with the weights of a checkpoint or random weights."""
        source = self._source(stage)
        optimizer, trainable = self.programs.optimizer(stage), build.trainable(self.recipe, stage)
        if not source:
            make_model = partial(build.random_model, self.recipe, self.model_config)
            return create_train_state(make_model, optimizer, self.mesh, self.recipe.rules, trainable)
        return restart(self.load(source), optimizer, self.mesh, self.recipe.rules, trainable)

    def load(self, checkpoint: str | Path | CheckpointFolder) -> VisionLanguageModel:
        """Reads the weights of a checkpoint in training's sharding."""
        spread = self.programs.model_shardings
        computation: dict[str, Any] = self.recipe.model.computation | {"generation": self.model_config.generation}
        return load_pretrained(checkpoint, param_dtype="float32", shardings=spread, **computation)

    def player(self, checkpoint: str | Path | CheckpointFolder, protocol: Protocol) -> Player:
        """Returns a player that samples greedily from a checkpoint, with the recipe's rollout settings."""
        check_makes_masks(protocol, self.model_config)
        folder, recipe = CheckpointFolder.open(checkpoint), self.recipe
        weights = cache(partial(load_rollout_weights, folder, self.model_config, recipe.rollout, recipe.rules))
        sampling = Sampling(temperature=0.0, seed=recipe.seed)
        images = self.processor.images
        changes = {"images": {f.name: getattr(images, f.name) for f in dataclasses.fields(images) if f.compare}}
        with folder.small_files() as directory:
            known = trained_on_options_only(directory)
        return Player(self.engine, protocol, weights, sampling, folder, known, changes)

    def batches(self, name: str, stage: StageConfig, shape: BatchShape, start: int = 0) -> Batches:
        """Returns the batches of a stage from step `start` on; `shape` is the shape of this process's share of a batch."""
        seed = self.recipe.seed * 1000 + self.recipe.schedule.index(name)
        feed = stage_feed(self.recipe, stage, self.processor, shape, seed, self.share)
        player = partial(self._trained_player, protocol=self.recipe.all_protocols[stage.protocol])
        keep = self._keeper(name, stage, start)
        feed = dataclasses.replace(feed, player=player, keep=keep, directory=self.workdir / name, start=start)
        return stage.objective.batches(feed)

    def _trained_player(self, model: VisionLanguageModel, sampling: Sampling, protocol: Protocol) -> Player:
        """Returns a player of the weights in training."""
        return Player(self.engine, protocol, partial(self.programs.resharder, model), sampling)

    def _keeper(self, name: str, stage: StageConfig, start: int) -> Callable[[int, Sequence[Trajectory]], None]:
        """Returns a function that writes the first `keep_trajectories` episodes of every logged step from `start` on."""
        writer = TrajectoryWriter(self.workdir / name, since=start) if self._keeps(stage) else None

        def keep(step: int, trajectories: Sequence[Trajectory]) -> None:
            if writer is not None and step % stage.log_every == 0:
                writer.write(trajectories[: stage.keep_trajectories])

        return keep

    def _keeps(self, stage: StageConfig) -> bool:
        """Returns whether this process writes trajectories of a stage."""
        return is_main() and stage.objective.plays and stage.keep_trajectories > 0

    def probe(self, name: str, stage: StageConfig) -> Callable[[TrainState], Scalars] | None:
        """Returns a function that plays held-out samples and returns their scalars, or None if the stage has no probes."""
        if not stage.probe_every:
            return None
        rewards, skips = self.recipe.rewards(name), Skips(stage.max_skipped_share)
        count = self.share.size(stage.probe_samples)

        def probe(state: TrainState) -> Scalars:
            began = time.perf_counter()
            player = self._trained_player(state.model, Sampling(temperature=0.0), self.recipe.all_protocols[stage.protocol])
            stream = sample_stream([self.recipe.evaluation], seed=0, share=self.share)

            def begin(number: int, change: Callable[[Sample], Sample] | None) -> Episode:
                sample = stream[number]
                rewards.check(sample)
                return player.begin(change(sample) if change else sample)

            def play(change: Callable[[Sample], Sample] | None = None) -> tuple[list[Trajectory], dict[str, float]]:
                begun = player.pool.map(lambda number: attempt(partial(begin, number, change)), range(count))
                leaders, counts = skips.separate(begun)
                alone = fork_groups(leaders, 1, Counter())
                return [player.record(episode, policy_version=int(state.step)) for episode in player.play(alone)], counts

            records, counts = play()
            rewarded = list(self.engine.pool.map(rewards, records))
            trajectories, failures = zip(*rewarded, strict=True) if rewarded else ((), ())
            masks = player.protocol.makes_masks
            scalars = rollout_scalars(trajectories, failures, rewards.parts, masks=masks) | counts
            if stage.probe_interventions:
                # The samples of all processes, so that the choice of a wrong image does not depend on their number.
                given = Given(sample_stream([self.recipe.evaluation], seed=0), stage.probe_samples)
                played, skipped = {}, {}
                for name in stage.probe_interventions:
                    played[label(name)], their_counts = play(find_change(name, given))
                    skipped[label(name)] = their_counts["skipped"] - counts["skipped"]
                scalars |= reliance_scalars(records, played, skipped)
            return {f"probe/{k}": v for k, v in scalars.items()} | {"timing_s/probe": time.perf_counter() - began}

        return probe


def stage_feed(recipe: Recipe, stage: StageConfig, processor: Processor, shape: BatchShape, seed: int, share: Share) -> Feed:
    """Returns the inputs of a stage's batches, without a player."""
    return Feed(
        sources=list(stage.sources.values()),
        protocol=stage.protocol,
        protocols=recipe.all_protocols,
        batch_size=stage.batch_size,
        processor=processor,
        limits=recipe.limits,
        shape=shape,
        seed=seed,
        sampling_seed=recipe.seed,
        threads=recipe.loader_threads,
        max_skipped_share=stage.max_skipped_share,
        share=share,
    )


def _exit_stopped(name: str, step: int) -> NoReturn:
    """Ends the process after a SIGTERM; the state of `step` is saved."""
    where = f"after step {step}, which is saved" if step else "before the first step"
    cli.say(f"{name}: stopped by SIGTERM {where}; the same command resumes from there")
    sys.exit(exit_status())
