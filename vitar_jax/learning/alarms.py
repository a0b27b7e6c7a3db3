"""Alarms for two known failures of training: the policy stops using tools, or its boxes grow to the whole image."""

import dataclasses

from vitar_jax.learning.metrics import Scalars


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """Thresholds of the alarms.

    Attributes:
      action_share: Lowest action success without an alarm, as a share of its maximum so far.
      box_area: Largest mean area of first boxes without an alarm, as a share of the image.
    """

    action_share: float = 0.5
    box_area: float = 0.8


class Alarms:
    """The alarms of a stage, which check its logged steps."""

    def __init__(self, config: AlarmConfig):
        self._config = config
        self._highest = 0.0
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
        new = [line for name, line in lines.items() if name not in self._ringing]
        self._ringing = set(lines)
        return new
