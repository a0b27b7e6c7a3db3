"""Alarms for known failures of training.

The policy stops using tools (PyVision-RL, arXiv 2602.20739), its boxes grow to the whole image, or its answers rely less and
less on the image while its reward rises (arXiv 2603.03437). With an expert: its episodes teach nothing, or the policy's entropy
collapses.
"""

import dataclasses
from collections.abc import Sequence

from vitar_jax.errors import ConfigError
from vitar_jax.learning.metrics import Scalars

RELIANCE = "probe/reliance/"
_PROBED, _TRAINED = "probe/reward/mean", "reward/mean"


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """Thresholds of the alarms.

    Attributes:
      action_share: Lowest action success without an alarm, as a share of its maximum so far.
      box_area: Largest mean area of first boxes without an alarm, as a share of the image.
      tool_share: Lowest share of turns that call a tool without an alarm, as a share of the first. Checked in probes
        with interventions.
      reliance_probes: Number of consecutive probes, each with a higher reward and a lower reliance than the one before, until
        an alarm. The reward is that of the probe, or the mean reward in training since the last probe: a shortcut that holds in
        training alone lowers the first and raises the second.
      silent_steps: Number of steps without a gradient from the expert's episodes until an alarm.
      entropy_share: Lowest entropy of the policy without an alarm, beside an expert, as a share of the first logged one.
    """

    action_share: float = 0.5
    box_area: float = 0.8
    tool_share: float = 0.5
    reliance_probes: int = 3
    silent_steps: int = 20
    entropy_share: float = 0.1

    def __post_init__(self) -> None:
        if self.reliance_probes < 2:
            raise ConfigError(f"alarms.reliance_probes: got {self.reliance_probes}, expected at least 2")


class Alarms:
    """The alarms of a stage, which check its logged steps."""

    def __init__(self, config: AlarmConfig):
        self._config = config
        self._highest = 0.0
        self._taught = 0  # last logged step at which the expert's episodes had a gradient
        self._first_entropy: float | None = None
        self._ringing: set[str] = set()
        self._first_tool_turns: float | None = None
        self._ringing_probes: dict[str, str] = {}  # the warnings of the last probe, by name
        self._probes: list[Scalars] = []  # scalars of the last `reliance_probes` probes with a reward
        self._trained: list[float] = []  # logged rewards of training since the last probe

    def check(self, scalars: Scalars) -> list[str]:
        """Returns a step's warnings. Repeats a warning only if its cause has disappeared and returned."""
        lines = {}
        success, area = scalars.get("rollout/action_success", self._highest), scalars.get("rollout/box_area", 0.0)
        self._highest = max(self._highest, success)
        if success < self._config.action_share * self._highest:
            lines["tools"] = f"tools collapse: {success:.0%} of episodes begin with an action, it was {self._highest:.0%}"
        if area > self._config.box_area:
            lines["boxes"] = f"boxes grow to the whole image: on average they cover {area:.0%} of it"
        if _TRAINED in scalars:
            self._trained.append(scalars[_TRAINED])
        if "probe/tool_turns" in scalars:
            self._ringing_probes = self._of_probe(scalars)
            self._trained = []
        lines |= self._ringing_probes
        if "expert/signal" in scalars:
            lines |= self._of_expert(scalars)
        new = [line for name, line in lines.items() if name not in self._ringing]
        self._ringing = set(lines)
        return new

    def _of_probe(self, scalars: Scalars) -> dict[str, str]:
        """Returns the warnings of a probe with interventions, by name."""
        lines, used = {}, scalars["probe/tool_turns"]
        if self._first_tool_turns is None:
            self._first_tool_turns = used
        if used < self._config.tool_share * self._first_tool_turns:
            lines["tool turns"] = f"tools fall out of use: {used:.0%} of turns call one, it was {self._first_tool_turns:.0%}"
        if _PROBED not in scalars:  # every reward failed
            return lines
        trained = {_TRAINED: sum(self._trained) / len(self._trained)} if self._trained else {}
        self._probes = [*self._probes, scalars | trained][-self._config.reliance_probes :]
        series = {"reward": _PROBED, "reward in training": _TRAINED}
        rewards = {title: [probe[key] for probe in self._probes if key in probe] for title, key in series.items()}
        rising = {title: values for title, values in rewards.items() if len(values) == len(self._probes) and _rises(values)}
        for name in (key for key in scalars if key.startswith(RELIANCE) and "/" not in key.removeprefix(RELIANCE)):
            found = [probe[name] for probe in self._probes if name in probe]
            if len(found) == self._config.reliance_probes and rising and _rises([-value for value in found]):
                title, values = next(iter(rising.items()))
                lines[name] = (
                    f"answers rely less on what {name.removeprefix(RELIANCE)} takes away, {found[0]:.0%} to {found[-1]:.0%}, "
                    f"while the {title} rises, {values[0]:.3g} to {values[-1]:.3g}"
                )
        return lines

    def _of_expert(self, scalars: Scalars) -> dict[str, str]:
        """Returns the warnings of a step with an expert, by name."""
        lines, step, entropy = {}, int(scalars.get("step", 0)), scalars.get("actor/entropy")
        if scalars["expert/signal"] > 0:
            self._taught = step
        if step - self._taught >= self._config.silent_steps:
            flat = scalars.get("expert/flat_groups", 0.0)
            lines["expert"] = (
                f"the expert has taught nothing since step {self._taught}: {flat:.0%} of its groups have equal rewards"
            )
        if entropy is not None:
            if self._first_entropy is None:
                self._first_entropy = entropy
            if entropy < self._config.entropy_share * self._first_entropy:
                lines["entropy"] = f"entropy collapses: it is {entropy:.3g}, and was {self._first_entropy:.3g} at first"
        return lines


def _rises(values: Sequence[float]) -> bool:
    return all(before < after for before, after in zip(values, values[1:], strict=False))
