"""Data sets by name: a function `source(split, **options)`, found through the registry `SOURCES`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, SupportsIndex

from vitar_jax.data import questions
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, VitarError
from vitar_jax.runtime.registry import Registry


class Source(Protocol):
    """Random access to samples, the same ones at every call."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Sample: ...


SOURCES: Registry[Callable[..., Any]] = Registry("data set")
SOURCES["questions"] = questions.source


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which data set, and how it is used.

    Attributes:
      name: The data set, as `SOURCES` finds it: `questions`, `data_prep.built:source`, `mine.py:cases`.
      split: Split of the data set.
      options: Further arguments of the source function.
      protocol: How the samples are played (default: the protocol of the stage).
      weight: Share in a mixture.
    """

    name: str
    split: str = "train"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocol: str = ""
    weight: float = 1.0


def load_source(config: SourceConfig) -> Source:
    """Opens a data set.

    Raises:
      ConfigError: If the data set is unknown, or does not take the arguments.
      DataError: If the data set's files cannot be read.
    """
    make = SOURCES.find(config.name)
    try:
        return make(config.split, **config.options)
    except VitarError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: {config.name}({config.split!r}, {dict(config.options)}): {error}") from error
