"""The loop of one stage: batch, update, log, save. The same for every objective."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from vitar_jax.errors import NonFiniteError
from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.objective import Batches
from vitar_jax.learning.train_state import TrainState, TrainStep
from vitar_jax.processing.packing import Batch
from vitar_jax.runtime.distributed import gather_json

_COUNTERS = ("actor/skipped", "actor/skipped_in_a_row", "data/skipped")


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """What the entry point hears of.

    Attributes:
      keep_best: takes the state that did better than all before in a probe.
      probe: returns more numbers for the log.
      stop: asked before every step, in every process, whether to save and end here.
    """

    log: Callable[[int, Scalars], None]
    keep_best: Callable[[TrainState], None]
    probe: Callable[[TrainState], Scalars] | None = None
    stop: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the loop goes by, beside the state.

    Attributes:
      batches: their states in all processes; none: the start.
      best: highest mean reward of a probe.
      since: numbers of each step since those that were logged last.
    """

    batches: Sequence[dict[str, int]] = ()
    best: float | None = None
    since: Sequence[Scalars] = ()


def resume(state: TrainState, checkpointer: Checkpointer) -> tuple[TrainState, Progress]:
    """What the newest checkpoint holds, or what is given if there is none."""
    found = checkpointer.restore(state)
    return (found[0], Progress(**found[1])) if found else (state, Progress())


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
    """Trains up to `steps` steps, or until it is asked to stop.

    A checkpoint falls between steps, with no episode in flight, so N steps, a kill and N more are 2N steps to the bit.

    Args:
      state, progress: where it starts; see `resume`.
      put: moves a host batch to the devices.

    Raises:
      NonFiniteError: `stop_after_skipped` steps in a row made no update, as loss or gradient were not finite.
    """
    if progress.batches:
        batches.set_state(own_state(progress.batches))
    saved = step = int(state.step)
    best, earlier = progress.best, progress.since
    since: list[tuple[Scalars, Mapping[str, jax.Array]]] = []

    def save() -> None:
        reached = Progress(gather_json(batches.get_state()), best, [*earlier, *_numbers(since)])
        checkpointer.save(step, state, dataclasses.asdict(reached))

    began = time.perf_counter()
    before: Mapping[str, jax.Array] = {}
    while step < steps and not callbacks.stop():
        host_batch, scalars = batches.next(state)
        state, metrics = train_step(state, put(host_batch))
        # Of the step before: to wait for this one would leave the devices idle.
        _check_finite(step, before, stop_after_skipped)
        step, before = step + 1, metrics
        since.append((scalars, metrics))
        probing = callbacks.probe is not None and probe_every and (step % probe_every == 0 or step == steps)
        if step % log_every == 0 or step == steps or probing:
            made = _numbers(since)  # waits for the devices, so the time below is that of whole steps
            logged = _mean([*earlier, *made])
            # Times are those of steps since this start.
            times = {name: value for name, value in _mean(made).items() if name.startswith("timing_s/")}
            fed = sum(times.values())
            logged |= times
            logged["timing_s/step"] = (time.perf_counter() - began) / len(since)
            logged["timing_s/update"] = logged["timing_s/step"] - fed  # what is left
            logged["perf/tokens_per_second"] = logged["actor/tokens"] / logged["timing_s/step"]
            if probing and callbacks.probe is not None:
                logged |= callbacks.probe(state)
                reward = logged.get("probe/reward/mean")  # absent where every reward failed
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
    checkpointer.wait()
    return state


def own_state(states: Sequence[dict[str, int]]) -> dict[str, int]:
    """This process's; among another number of processes, each goes on after its share of what all had read."""
    count = jax.process_count()
    if len(states) == count:
        return states[jax.process_index()]
    return {name: -(-sum(state[name] for state in states) // count) for name in states[0]}


def _check_finite(step: int, metrics: Mapping[str, jax.Array], stop_after_skipped: int) -> None:
    if metrics and (count := int(metrics["skipped_in_a_row"])) >= stop_after_skipped:
        found = " and ".join(f"{name} {float(metrics[name])}" for name in ("loss", "grad_norm"))
        raise NonFiniteError(f"step {step}: {found}; {count} steps in a row made no update, stop_after_skipped allows no more")


def _numbers(since: Sequence[tuple[Scalars, Mapping[str, jax.Array]]]) -> list[Scalars]:
    """Each step's numbers; those of the train step are the `actor`'s."""
    return [scalars | {f"actor/{k}": float(v) for k, v in metrics.items()} for scalars, metrics in since]


def _mean(steps: Sequence[Scalars]) -> Scalars:
    """Means over the steps that have a number, and the newest of `_COUNTERS`."""
    keys = dict.fromkeys(key for scalars in steps for key in scalars)
    means = {key: float(np.mean([scalars[key] for scalars in steps if key in scalars])) for key in keys}
    return means | {key: steps[-1][key] for key in _COUNTERS if key in keys}
