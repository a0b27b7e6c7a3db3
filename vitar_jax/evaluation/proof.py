"""Proofs: the evaluations that a recipe plays after training, the presentation of their results, and the conclusion."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from vitar_jax.episodes.regions import Box
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.controls import Variant
from vitar_jax.runtime.registry import Registry

Results = Mapping[str, Mapping[str, Any]]  # see `Proof.conclude`

BASELINES: Registry[Callable[[int], float]] = Registry("baseline")
CONCLUSIONS: Registry[Callable[[Results], str]] = Registry("conclusion")
THOUGHTS: Registry[Callable[[Box], str]] = Registry("thought")


@dataclasses.dataclass(frozen=True)
class ProofRow:
    """One row of a proof: a stage's model on the held-out samples, or a baseline.

    Attributes:
      label: Label of the row in tables and figures.
      stage: Stage whose model plays.
      baseline: Registered function from the seed to an accuracy, in place of a stage.
      protocol, forced, control, look: As in `Variant`; by default, the model plays under its stage's protocol.
      thought: Registered function from a box to the thought of the first turn, if a box control writes that turn.
      of: Earlier row whose masks the control acts on, as in `Variant`. Samples without masks are left out and counted.
      is_control: Whether the row is drawn as a control.
    """

    label: str
    stage: str = ""
    baseline: str = ""
    protocol: str = ""
    forced: bool = False
    control: str = ""
    look: Literal["model", "truth", "random", "none"] = "model"
    thought: str = ""
    of: str = ""
    is_control: bool = False

    def __post_init__(self) -> None:
        if bool(self.stage) == bool(self.baseline):
            raise ConfigError(f"config.proof.rows: {self.label!r} needs exactly one of stage and baseline")
        try:
            self.variant()
        except ConfigError as error:
            raise ConfigError(f"config.proof.rows: {self.label!r}: {error}") from error

    def variant(self) -> Variant:
        """Returns the row's variant of its stage's evaluation."""
        # A model may outline nothing in some samples, which is no reason to end a proof.
        plain = Variant(self.protocol, self.forced, self.control, self.look, of=self.of, skip_missing=bool(self.of))
        return dataclasses.replace(plain, thought=THOUGHTS.find(self.thought)) if self.thought else plain


@dataclasses.dataclass(frozen=True)
class Proof:
    """Evaluations, figures and conclusion of `vitar_jax.quickstart`.

    Attributes:
      title: Title of the report.
      duration: How long training and playing take, and on what, to print at the start.
      rows: Rows by name; played episodes are written to WORKDIR/evaluation/NAME.
      order: Names of all rows, in the order in which they are played, printed and drawn.
      episode: Row to draw an episode of: the first with a right answer and a look.
      measures: Measures of each played row in `results.json`.
      rule: Rule that marks answers right or wrong.
      rules: Further rules that score each played row, for `compared`.
      compared: Pairs of played rows, of which the difference is printed and written, with intervals; see `compare`.
      rewards: Stage whose rewards the episodes get (default: the row's own stage).
      chance: Accuracy of guessing, drawn as a line. If None, no line is drawn.
      curves: Metrics to draw training curves of.
      images: Whether the report contains the images, which may show patients.
      conclusion: Registered function from the results to a few sentences, or to a page in Markdown.
      conclusion_file: Name of a file of the run's directory to write the conclusion to. If empty, it is only printed, and kept
        in `results.json`.
    """

    title: str
    rows: Mapping[str, ProofRow]
    order: tuple[str, ...]
    episode: str
    duration: str = ""
    measures: tuple[str, ...] = ()
    rule: str = "exact"
    rules: tuple[str, ...] = ()
    compared: tuple[tuple[str, str], ...] = ()
    rewards: str = ""
    chance: float | None = None
    curves: tuple[str, ...] = ("actor/loss", "reward/mean", "probe/reward/mean")
    images: bool = False
    conclusion: str = ""
    conclusion_file: str = ""

    def __post_init__(self) -> None:
        if sorted(self.order) != sorted(self.rows):
            raise ConfigError(f"config.proof.order: got {', '.join(self.order)}, expected each of {', '.join(self.rows)} once")
        for place, name in enumerate(self.order):
            if (of := self.rows[name].of) and of not in self.order[:place]:
                raise ConfigError(f"config.proof.rows.{name}.of: {of!r} is not an earlier row of config.proof.order")
        if self.episode not in self.rows or self.rows[self.episode].baseline:
            raise ConfigError(f"config.proof.episode: got {self.episode!r}, expected a played row")
        if wrong := [name for pair in self.compared for name in pair if name not in self.rows or self.rows[name].baseline]:
            raise ConfigError(f"config.proof.compared: got {wrong[0]!r}, expected a played row")
        if "/" in self.conclusion_file or self.conclusion_file == "results.json":
            raise ConfigError(f"config.proof.conclusion_file: got {self.conclusion_file!r}, expected a name such as 'page.md'")

    def check_stages(self, schedule: tuple[str, ...]) -> None:
        """Checks that each row's stage is trained.

        Raises:
          ConfigError: If a stage is not in `schedule`.
        """
        for name, row in self.rows.items():
            if row.stage and row.stage not in schedule:
                raise ConfigError(f"config.proof.rows.{name}.stage: {row.stage!r} is not in config.schedule")
        if self.rewards and self.rewards not in schedule:
            raise ConfigError(f"config.proof.rewards: {self.rewards!r} is not in config.schedule")

    def conclude(self, results: Results) -> str:
        """Returns the conclusion drawn from the results; empty if the proof has none.

        Args:
          results: By row, `accuracy` and `curves`, which are those of the row's stage: by metric, pairs of a step and a value.
            Played rows also have `interval`, `n` and the measures.
        """
        return CONCLUSIONS.find(self.conclusion)(results) if self.conclusion else ""
