"""The training loop of a stage, which is the same for every objective: batch, update, log, save."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from vitar_jax.errors import CheckpointError, NonFiniteError
from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.objective import Batches
from vitar_jax.learning.train_state import TrainState, TrainStep
from vitar_jax.processing.packing import Batch
from vitar_jax.runtime.distributed import gather_json

_COUNTERS = ("actor/skipped", "data/")  # starts of names


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """Functions that the loop calls.

    Attributes:
      log: Takes a step and its scalars.
      keep_best: Takes each state whose probe has the highest mean reward so far.
      probe: Returns further scalars for the log.
      stop: Returns whether to save and end the loop. Called before every step, in every process.
    """

    log: Callable[[int, Scalars], None]
    keep_best: Callable[[TrainState], None]
    probe: Callable[[TrainState], Scalars] | None = None
    stop: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of the loop, stored with the train state.

    Attributes:
      batches: State of the `Batches` in each process. If empty, training begins.
      best: Highest mean reward of a probe.
      since: Scalars of each step since the last logged one.
    """

    batches: Sequence[dict[str, int]] = ()
    best: float | None = None
    since: Sequence[Scalars] = ()


def resume(state: TrainState, checkpointer: Checkpointer) -> tuple[TrainState, Progress]:
    """Returns state and progress of the newest checkpoint, or the given state if there is no checkpoint.

    Raises:
      CheckpointError: If the checkpoint is of another state, or holds no `Progress`.
    """
    found = checkpointer.restore(state)
    if found is None:
        return state, Progress()
    try:
        return found[0], Progress(**found[1])
    except TypeError as error:
        raise CheckpointError(f"{checkpointer.directory}: holds the progress of another loop ({error})") from error


def run_loop(
    state: TrainState,
    batches: Batches,
    train_step: TrainStep,
    *,
    steps: int,
    put: Callable[[Batch], Batch],
    checkpointer: Checkpointer,
    checkpoint_every: int,
    log_every: int,
    probe_every: int,
    stop_after_skipped: int,
    callbacks: Callbacks,
    progress: Progress = Progress(),
) -> TrainState:
    """Trains for up to `steps` steps, or until `callbacks.stop` returns True.

    Checkpoints are written between steps, when no episode is in flight. So training N steps, restarting and training N more is
    bit-identical to training 2N. However the loop ends, a save that began is finished.

    Args:
      state, progress: Start of the loop, from `resume`.
      put: Moves a host batch to the devices.

    Raises:
      CheckpointError: If `progress` is the position in other data.
      NonFiniteError: If `stop_after_skipped` steps in a row were skipped because loss or gradient was not finite.
    """
    saved = step = int(state.step)
    if progress.batches:
        try:
            batches.set_state(own_state(progress.batches))
        except (KeyError, TypeError, ValueError) as error:
            message = f"{checkpointer.directory}: step {step}: cannot restore the position in the data ({error!r})"
            raise CheckpointError(message) from error
    best, earlier = progress.best, progress.since
    since: list[tuple[Scalars, Mapping[str, jax.Array]]] = []

    def save() -> None:
        reached = Progress(gather_json(batches.get_state()), best, [*earlier, *_numbers(since)])
        checkpointer.save(step, state, dataclasses.asdict(reached))

    began = time.perf_counter()
    before: Mapping[str, jax.Array] = {}
    try:
        while step < steps and not callbacks.stop():
            host_batch, scalars = batches.next(state)
            state, metrics = train_step(state, put(host_batch))
            # Checks the previous step: waiting for this one would leave the devices idle.
            _check_finite(step, before, stop_after_skipped)
            step, before = step + 1, metrics
            since.append((scalars, metrics))
            probing = callbacks.probe is not None and probe_every and (step % probe_every == 0 or step == steps)
            if step % log_every == 0 or step == steps or probing:
                made = _numbers(since)  # waits for the devices, so that the time below covers whole steps
                logged = _mean([*earlier, *made])
                # Means of times cover only the steps since this start.
                times = {name: value for name, value in _mean(made).items() if name.startswith("timing_s/")}
                fed = sum(times.values())
                logged |= times
                logged["timing_s/step"] = (time.perf_counter() - began) / len(since)
                logged["timing_s/update"] = logged["timing_s/step"] - fed
                logged["perf/tokens_per_second"] = logged["actor/tokens"] / logged["timing_s/step"]
                if probing and callbacks.probe is not None:
                    logged |= callbacks.probe(state)
                    reward = logged.get("probe/reward/mean")  # absent if every reward failed
                    if reward is not None and (best is None or reward > best):
                        best = reward
                        callbacks.keep_best(state)
                callbacks.log(step, logged)
                earlier, since, began = (), [], time.perf_counter()
            if step % checkpoint_every == 0 or step == steps:
                _check_finite(step, metrics, stop_after_skipped)
                save()
                saved = step
        if step > saved:
            save()
    finally:  # the end of the process would abandon a save in the background
        checkpointer.wait()
    return state


def own_state(states: Sequence[dict[str, int]]) -> dict[str, int]:
    """Returns this process's state. If the number of processes changed, the processes share the samples read so far evenly."""
    count = jax.process_count()
    if len(states) == count:
        return states[jax.process_index()]
    return {name: -(-sum(state[name] for state in states) // count) for name in states[0]}


def _check_finite(step: int, metrics: Mapping[str, jax.Array], stop_after_skipped: int) -> None:
    if metrics and (count := int(metrics["skipped_in_a_row"])) >= stop_after_skipped:
        found = " and ".join(f"{name} {float(metrics[name])}" for name in ("loss", "grad_norm"))
        raise NonFiniteError(f"step {step}: {found}; {count} steps in a row were skipped, the limit of stop_after_skipped")


def _numbers(since: Sequence[tuple[Scalars, Mapping[str, jax.Array]]]) -> list[Scalars]:
    """Returns the scalars of each step. Metrics of the train step get the prefix `actor/`, except those of an expert."""
    return [scalars | {_name(key): float(value) for key, value in metrics.items()} for scalars, metrics in since]


def _name(metric: str) -> str:
    return metric if metric.startswith("expert/") else f"actor/{metric}"


def _mean(steps: Sequence[Scalars]) -> Scalars:
    """Returns the mean of each scalar over the steps that have it, and the newest value of each counter."""
    keys = dict.fromkeys(key for scalars in steps for key in scalars)
    means = {key: float(np.mean([scalars[key] for scalars in steps if key in scalars])) for key in keys}
    return means | {key: steps[-1][key] for key in keys if key.startswith(_COUNTERS)}
