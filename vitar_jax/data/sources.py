"""Data sets by name: the registry `SOURCES` finds a function `source(split, **options)`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, SupportsIndex

from vitar_jax.data import questions
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, VitarError
from vitar_jax.runtime.registry import Registry


class Source(Protocol):
    """Random access to samples; an index always returns the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Sample: ...


SOURCES: Registry[Callable[..., Any]] = Registry("data set")
SOURCES["questions"] = questions.source


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A data set and how to use it.

    Attributes:
      name: Name of the data set in `SOURCES`: `questions`, `data_prep.built:source`, `mine.py:cases`.
      split: Split of the data set.
      options: Further arguments of the source function.
      protocol: Protocol of its samples (default: the protocol of the stage).
      weight: Weight in a mixture, relative to the other sources.
    """

    name: str
    split: str = "train"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocol: str = ""
    weight: float = 1.0


def load_source(config: SourceConfig) -> Source:
    """Opens a data set.

    Raises:
      ConfigError: If the data set is unknown or does not accept the arguments.
      DataError: If the data set's files cannot be read.
    """
    make = SOURCES.find(config.name)
    try:
        return make(config.split, **config.options)
    except VitarError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: {config.name}({config.split!r}, {dict(config.options)}): {error}") from error


def options_only(sources: Iterable[SourceConfig], samples: int = 200) -> bool:
    """Returns whether every question has options, of up to about `samples` readable ones that are spread over each source."""
    found = set()
    for config in sources:
        source = load_source(config)
        for place in range(0, len(source), max(1, len(source) // samples)):
            with contextlib.suppress(VitarError):
                found.add(bool(source[place].options))
    return found == {True}
