"""The confidence value sampler (CVS): draws the region to look at next, in fp64."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Nucleus = Literal["cumulative", "top_p"]


@dataclass(frozen=True)
class Sampler:
    """A distribution over regions: softmax(confidence / temperature), truncated to its most likely regions.

    Attributes:
      kind: "cvs" draws from the nucleus, "first" takes the most confident region.
      nucleus: "cumulative" keeps regions while the cumulative probability is at most `mass`, as published, and always the
        first. "top_p" keeps the fewest regions whose probability reaches `mass` (Holtzman et al., 2020). At temperature 1,
        probabilities hardly differ, so "cumulative" keeps all but the least likely of up to five regions: of two regions
        always the first.
      mass: Probability of the nucleus (p0 = 0.9 in the paper).
      temperature: 0 takes the most confident region (1 in the published code).
    """

    kind: Literal["cvs", "first"] = "cvs"
    nucleus: Nucleus = "cumulative"
    mass: float = 0.9
    temperature: float = 1.0

    def keep(self, confidences: Sequence[float]) -> tuple[Int[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
        """Returns the indices of the nucleus, most likely first, and their probabilities, which sum to 1.

        Equal confidences stay in the given order.
        """
        values = np.asarray(confidences, np.float64)
        order = np.argsort(-values, kind="stable")
        if self.kind == "first" or self.temperature == 0:
            return order[:1], np.ones(1)
        scaled = np.exp((values[order] - values[order[0]]) / self.temperature)
        probabilities = scaled / scaled.sum()
        # fp64: of ten equal regions, 0.9 keeps nine. In fp32 their cumulative probability exceeds 0.9 by rounding.
        cumulative = np.cumsum(probabilities)
        kept = cumulative <= self.mass if self.nucleus == "cumulative" else cumulative - probabilities < self.mass
        kept[0] = True
        return order[kept], probabilities[kept] / probabilities[kept].sum()

    def draw(self, confidences: Sequence[float], uniform: float) -> int:
        """Returns the index of a region, for a number drawn uniformly from [0, 1)."""
        indices, probabilities = self.keep(confidences)
        place = int(np.searchsorted(np.cumsum(probabilities), uniform, side="right"))
        return int(indices[min(place, len(indices) - 1)])
