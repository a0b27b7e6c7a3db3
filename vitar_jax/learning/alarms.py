"""Alarms for known failures of training.

The policy stops using tools, or its boxes grow to the whole image. With an expert: its episodes teach nothing, or the policy's
entropy collapses.
"""

import dataclasses

from vitar_jax.learning.metrics import Scalars


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """Thresholds of the alarms.

    Attributes:
      action_share: Lowest action success without an alarm, as a share of its maximum so far.
      box_area: Largest mean area of first boxes without an alarm, as a share of the image.
      silent_steps: Number of steps without a gradient from the expert's episodes until an alarm.
      entropy_share: Lowest entropy of the policy without an alarm, beside an expert, as a share of the first logged one.
    """

    action_share: float = 0.5
    box_area: float = 0.8
    silent_steps: int = 20
    entropy_share: float = 0.1


class Alarms:
    """The alarms of a stage, which check its logged steps."""

    def __init__(self, config: AlarmConfig):
        self._config = config
        self._highest = 0.0
        self._taught = 0  # last logged step at which the expert's episodes had a gradient
        self._first_entropy: float | None = None
        self._ringing: set[str] = set()

    def check(self, scalars: Scalars) -> list[str]:
        """Returns a step's warnings. Repeats a warning only if its cause has disappeared and returned."""
        lines = {}
        success, area = scalars.get("rollout/action_success", self._highest), scalars.get("rollout/box_area", 0.0)
        self._highest = max(self._highest, success)
        if success < self._config.action_share * self._highest:
            lines["tools"] = f"tools collapse: {success:.0%} of episodes begin with an action, it was {self._highest:.0%}"
        if area > self._config.box_area:
            lines["boxes"] = f"boxes grow to the whole image: on average they cover {area:.0%} of it"
        if "expert/signal" in scalars:
            lines |= self._of_expert(scalars)
        new = [line for name, line in lines.items() if name not in self._ringing]
        self._ringing = set(lines)
        return new

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
