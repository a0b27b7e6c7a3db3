"""The masks that a model made for the objects of its turns."""

import dataclasses
from typing import Any, Literal

from vitar_jax.episodes.regions import Mask, region_from_json, region_to_json

Part = Literal["reasoning", "answer"]


@dataclasses.dataclass(frozen=True)
class ObjectMask:
    """A `[SEG]` token of a turn, with its object and its mask.

    Attributes:
      token: Index of the token among the trajectory's tokens.
      name: Name of the object whose mention precedes the token, for example "obj1"; None if no mention does.
      part: Part of the turn in which the token lies; None if it is in neither.
      mask: Its pixels on image 0, in frame "original"; None if the token has no mask, because it is past the maximum of a turn
        or the last token that a turn's budget allowed.
      score: Predicted IoU of the mask; None without one.
    """

    token: int
    name: str | None = None
    part: Part | None = None
    mask: Mask | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"mask": self.mask and region_to_json(self.mask)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ObjectMask":
        """Reads what `to_json` wrote.

        Raises:
          ValueError: If the mask is malformed.
        """
        mask = None if value["mask"] is None else region_from_json(value["mask"])
        if not isinstance(mask, Mask | None):
            raise ValueError(f"got {value['mask']!r}, expected a mask")
        values: dict[str, Any] = {**value, "mask": mask}
        return cls(**values)
