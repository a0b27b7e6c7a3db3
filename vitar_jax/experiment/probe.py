"""Reliance in training: how the answers of a probe change with its samples.

Each intervention of `probe_interventions` adds to a probe, over its samples that the intervention applies to:

  probe/reliance/NAME             accuracy on the samples as they are, minus accuracy on the changed ones
  probe/reliance/NAME/changed     share of answers that change
  probe/reliance/NAME/stay_right  of the right answers, the share that stay right
  probe/reliance/NAME/skipped     number of samples that lack what the intervention needs, or cannot be played once changed

A probe with interventions also has `probe/tool_turns`, the share of turns that call a tool. The first three are `added`,
`changed` and `stay_right` of `evaluation/reliance.py`. An answer is right if it equals a reference answer, as ViTAR compares
them.
"""

from collections.abc import Mapping, Sequence

from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.evaluation.reliance import Pair, reliance_values
from vitar_jax.learning.metrics import Scalars
from vitar_jax.runtime.distributed import mean_over_processes

NUMBERS = {"added": "", "changed": "/changed", "stay_right": "/stay_right"}


def reliance_scalars(
    plain: Sequence[Trajectory], changed: Mapping[str, Sequence[Trajectory]], skipped: Mapping[str, float]
) -> Scalars:
    """Returns the scalars of this module, without their prefix `probe/`, over the trajectories of all processes.

    Args:
      plain: Trajectories of the samples as they are.
      changed: Trajectories of the changed samples, by intervention.
      skipped: Number of skipped samples of all processes, by intervention.
    """
    known = {trajectory.group_id: trajectory for trajectory in plain}
    numbers = {"tool_turns": [float(turn.call is not None) for trajectory in plain for turn in trajectory.turns]}
    for name, trajectories in changed.items():
        pairs = [_pair(known[other.group_id], other) for other in trajectories if other.group_id in known]
        values = reliance_values(pairs)
        for number, suffix in NUMBERS.items():
            numbers[f"reliance/{name}{suffix}"] = [value for value, _ in values[number]]
    return mean_over_processes(numbers) | {f"reliance/{name}/skipped": count for name, count in skipped.items()}


def _pair(plain: Trajectory, changed: Trajectory) -> Pair:
    before, after = (float(exact_match(t.predicted_answer, *t.gold_answers)) for t in (plain, changed))
    return Pair(plain.group_id, before, after, plain.predicted_answer or "", changed.predicted_answer or "")
