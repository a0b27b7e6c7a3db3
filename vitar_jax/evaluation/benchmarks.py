"""Benchmarks: a data set, the protocol it is played under, and the rules that score it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vitar_jax.data.sources import SOURCES, SourceConfig
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.rules import RULES, Rule, find_rules
from vitar_jax.runtime.crash_safe import read_json
from vitar_jax.runtime.registry import is_address

# Without rules that guess or keep published defects.
DEFAULT_RULES = tuple(
    name for name, rule in RULES.items() if not rule.judged and not name.endswith(("-published", "-difflib"))
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set that a model is evaluated on.

    Attributes:
      source: The data set.
      protocol: Protocol to play its samples under (default: the stage's).
      rules: Scoring rules (default: `DEFAULT_RULES`).
      primary: The rule that marks answers right or wrong (default: the first of `rules`).
    """

    source: SourceConfig
    protocol: str = ""
    rules: tuple[str, ...] = ()
    primary: str = ""

    def find_rules(self, names: Sequence[str] = (), primary: str = "") -> list[Rule]:
        """Returns the primary rule, followed by the others. `names` and `primary` override the benchmark's own.

        Raises:
          ConfigError: If a rule does not exist.
        """
        chosen = tuple(names) or self.rules or DEFAULT_RULES
        first = primary or ("" if names else self.primary)
        return find_rules([first, *chosen] if first else chosen)


def named_benchmark(name: str, data_dir: str = "") -> Benchmark:
    """Returns a benchmark by name: NAME or NAME/SPLIT (default split: test).

    Args:
      name: A registered data set, or one that was built in `data_dir`. The card of a built data set names its reader.

    Raises:
      ConfigError: If the data set does not exist.
      DataError: If the card of a built data set names no reader.
    """
    if is_address(name) or name in SOURCES:
        return Benchmark(SourceConfig(name, "test"))
    found, _, split = name.partition("/")
    cards = sorted(Path(data_dir).glob(f"{found}/*/card.json")) if data_dir else []
    if not cards:
        built = [path.parts[-3] for path in Path(data_dir).glob("*/*/card.json")] if data_dir else []
        raise ConfigError(f"--benchmarks: {SOURCES.unknown(found, [*SOURCES, *sorted(set(built))])}")
    reader = str(read_json(cards[-1]).get("reader", ""))
    if not is_address(reader) or ".py:" in reader:
        raise DataError(f"{cards[-1]}: has no `reader`; rebuild the data set, or define its benchmark in a recipe")
    return Benchmark(SourceConfig(reader, split or "test", options={"set": found, "data_dir": data_dir}))
