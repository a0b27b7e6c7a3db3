"""Data sets by name: `name` is a module of `data_prep` with a function `source(split, **options)`."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Protocol, SupportsIndex

from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, VitarError


class Source(Protocol):
    """Random access to samples, the same ones at every call."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Sample: ...


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which data set, and how it is used.

    Attributes:
      name: module of `data_prep`.
      split: part of the data set.
      options: further arguments of the module's `source`.
      protocol: how its samples are played; empty: the stage's.
      weight: share in a mixture.
    """

    name: str
    split: str = "train"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocol: str = ""
    weight: float = 1.0


def load_source(config: SourceConfig) -> Source:
    """Opens a data set.

    Raises:
      ConfigError: no such data set, or arguments that it does not take.
      DataError: what the data set says of its files.
    """
    try:
        module = importlib.import_module(f"data_prep.{config.name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"data: there is no data set {config.name!r} ({error})") from error
    try:
        return module.source(config.split, **config.options)
    except VitarError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: {config.name}({config.split!r}, {dict(config.options)}): {error}") from error
