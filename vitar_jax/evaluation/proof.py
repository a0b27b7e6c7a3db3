"""A proof: what a recipe plays once its stages are trained, how the results are shown, and what they conclude."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from vitar_jax.episodes.regions import Box
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.controls import Variant
from vitar_jax.runtime.registry import Registry

Results = Mapping[str, Mapping[str, Any]]  # Of each row: `accuracy`, and for played rows `interval`, `n` and the measures.

BASELINES: Registry[Callable[[int], float]] = Registry("baseline")
CONCLUSIONS: Registry[Callable[[Results], str]] = Registry("conclusion")
THOUGHTS: Registry[Callable[[Box], str]] = Registry("thought")


@dataclasses.dataclass(frozen=True)
class ProofRow:
    """One row of a proof: a stage's model on the held-out samples, or a baseline.

    Attributes:
      label: Words for the row in tables and figures.
      stage: Stage whose model plays.
      baseline: In place of a stage, a function from the seed to an accuracy, as `BASELINES` finds it.
      protocol, forced, control, look: As in `Variant`; by default the model plays the protocol of its stage.
      thought: Function from a box to the thought of a first turn that is not the model's, as `THOUGHTS` finds it.
      is_control: Whether the row is drawn as a control.
    """

    label: str
    stage: str = ""
    baseline: str = ""
    protocol: str = ""
    forced: bool = False
    control: Literal["", "blank", "wrong_image"] = ""
    look: Literal["model", "truth", "random", "none"] = "model"
    thought: str = ""
    is_control: bool = False

    def __post_init__(self) -> None:
        if bool(self.stage) == bool(self.baseline):
            raise ConfigError(f"config.proof.rows: {self.label!r} needs either a stage or a baseline")

    def variant(self) -> Variant:
        """Returns how the row departs from the plain evaluation of its stage."""
        plain = Variant(self.protocol, self.forced, self.control, self.look)
        return dataclasses.replace(plain, thought=THOUGHTS.find(self.thought)) if self.thought else plain


@dataclasses.dataclass(frozen=True)
class Proof:
    """What `vitar_jax.quickstart` plays, shows and concludes after training.

    Attributes:
      title: Title of the report.
      rows: The rows by name; played episodes lie in WORKDIR/evaluation/NAME.
      order: Names of the rows, in the order that they are played, printed and drawn.
      episode: Row whose first right answer with a look is drawn as a figure.
      measures: Measures that `results.json` has of each played row.
      rule: Rule that marks answers right or wrong.
      rewards: Stage whose rewards the episodes get (default: the row's own).
      chance: Accuracy of guessing, drawn as a line.
      curves: Metrics whose training curves are drawn.
      images: Whether the report shows the images; they may be patients'.
      conclusion: Function from the results to a few sentences, as `CONCLUSIONS` finds it.
    """

    title: str
    rows: Mapping[str, ProofRow]
    order: tuple[str, ...]
    episode: str
    measures: tuple[str, ...] = ()
    rule: str = "exact"
    rewards: str = ""
    chance: float | None = None
    curves: tuple[str, ...] = ("actor/loss", "reward/mean", "probe/reward/mean")
    images: bool = False
    conclusion: str = ""

    def __post_init__(self) -> None:
        if sorted(self.order) != sorted(self.rows):
            raise ConfigError(f"config.proof.order: got {', '.join(self.order)}, expected each of {', '.join(self.rows)} once")
        if self.episode not in self.rows or self.rows[self.episode].baseline:
            raise ConfigError(f"config.proof.episode: {self.episode!r} is not a row that is played")

    def check_stages(self, schedule: tuple[str, ...]) -> None:
        """Raises ConfigError if a row's stage is not trained."""
        for name, row in self.rows.items():
            if row.stage and row.stage not in schedule:
                raise ConfigError(f"config.proof.rows.{name}.stage: {row.stage!r} is not in config.schedule")
        if self.rewards and self.rewards not in schedule:
            raise ConfigError(f"config.proof.rewards: {self.rewards!r} is not in config.schedule")

    def conclude(self, results: Results) -> str:
        """Returns what the results conclude; empty without a conclusion."""
        return CONCLUSIONS.find(self.conclusion)(results) if self.conclusion else ""
