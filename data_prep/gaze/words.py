"""The sentences of a search's thoughts. Who writes them is open in the paper; the published code has two templates.

No sentence states a confidence: a policy cannot read the expert's numbers off the image.
"""

from dataclasses import dataclass

from vitar_jax.episodes.regions import Box, Size, centre

ROWS = ("upper", "middle", "lower")
COLUMNS = ("left", "centre", "right")


@dataclass(frozen=True)
class Words:
    """Templates: `{count}` is the number of regions that are left, `{place}` the region's cell of a 3 x 3 grid.

    Attributes:
      none, one, several: After a scan, by the number of regions that are left.
      again: Before these, from the second step on.
      spot: Before the first drill into a region, or a look at it.
      closer: Before a further drill into the same region.
      random: Before a look at a random box.
      last: Before the answer.
    """

    none: str = "No region is left to look at."
    one: str = "One region may be abnormal."
    several: str = "{count} regions may be abnormal."
    again: str = "I look at the whole image again."
    spot: str = "I enlarge the one at the {place}."
    closer: str = "I look closer."
    random: str = "I enlarge a region."
    last: str = "Now I can answer."

    def scan(self, count: int, *, again: bool) -> str:
        counted = self.none if not count else self.one if count == 1 else self.several.format(count=count)
        return joined(self.again if again else "", counted)

    def look(self, box: Box, size: Size) -> str:
        return self.spot.format(place=place(box, size))


def place(box: Box, size: Size) -> str:
    """Returns the cell of a 3 x 3 grid over the image that holds the box's centre, such as "upper left"."""
    column, row = (min(2, int(3 * at / side)) for at, side in zip(centre(box), size, strict=True))
    return f"{ROWS[row]} {COLUMNS[column]}"


def joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))
