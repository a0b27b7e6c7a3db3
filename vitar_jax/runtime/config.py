"""From an ml_collections config to frozen dataclasses: an unknown key or a wrong type is an error that names it."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from ml_collections import ConfigDict

from vitar_jax.errors import ConfigError

T = TypeVar("T")


class Choice:
    """Base of config dataclasses of several kinds; the key `name` chooses one."""

    @classmethod
    def kind(cls, name: str) -> type:
        """Returns the dataclass that `name` chooses.

        Raises:
          ConfigError: If there is none.
        """
        raise NotImplementedError


def to_dataclass(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Builds `cls` from nested mappings.

    Raises:
      ConfigError: an unknown or missing key, or a value of another type; its full name stands first.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected keys of {cls.__name__}, got {values!r}")
    if issubclass(cls, Choice):
        cls = _chosen(cls, values, path)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(f"{path}.{name}: no such key{nearest(name, fields)}; known are {', '.join(sorted(fields))}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}.{name}: must be set")
    return cls(**arguments)


def with_defaults(cls: type, config: ConfigDict) -> ConfigDict:
    """A config of `cls` in which every key that has a default is set too, so that flags can change it."""
    if issubclass(cls, Choice):
        cls = _chosen(cls, config.to_dict(), cls.__name__.lower())
    hints = typing.get_type_hints(cls)
    with config.unlocked():
        for field in dataclasses.fields(cls):
            if field.name not in config:
                if field.default is not dataclasses.MISSING:
                    config[field.name] = _as_written(field.default)
                elif field.default_factory is not dataclasses.MISSING:
                    config[field.name] = _as_written(field.default_factory())
                continue
            inner, value = _dataclass_in(hints[field.name]), config[field.name]
            if inner is not None and isinstance(value, ConfigDict):
                several = typing.get_origin(hints[field.name]) is Mapping
                for part in value.values() if several else [value]:
                    if isinstance(part, ConfigDict):
                        with_defaults(inner, part)
    return config


def _chosen(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    """The kind that the values name."""
    if not values.get("name"):
        raise ConfigError(f"{path}.name: must be set")
    try:
        return cls.kind(values["name"])
    except ConfigError as error:
        raise ConfigError(f"{path}.name: {error}") from error


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a value of this type is, or that its values are."""
    if dataclasses.is_dataclass(hint):
        return hint  # type: ignore[return-value]
    return next((found for found in map(_dataclass_in, typing.get_args(hint)) if found), None)


def _as_written(value: Any) -> Any:
    """As a config file has it."""
    if dataclasses.is_dataclass(value):
        return {field.name: _as_written(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _as_written(item) for key, item in value.items()}
    # A copy: what stands in two places of a config is printed as a reference.
    return tuple(map(_as_written, value)) if isinstance(value, tuple) else value


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return to_dataclass(hint, value, path)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{path}: expected a sequence, got {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ConfigError(f"{path}: expected {len(kinds)} values, got {len(value)}")
        return tuple(_convert(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected keys, got {value!r}")
        return {key: _convert(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


def nearest(name: str, names: Iterable[str]) -> str:
    """ ", did you mean NAME?" with the name that is most like the given one, empty where none is."""
    found = difflib.get_close_matches(name, [*names], 1)
    return f", did you mean {found[0]}?" if found else ""
