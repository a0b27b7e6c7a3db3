"""Converts an ml_collections config to frozen dataclasses. An unknown key or a wrong type raises an error that names it."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

from ml_collections import ConfigDict, config_dict

from vitar_jax.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ByName:
    """The mark of a field whose dataclass depends on the key `name` of its value. Each of these dataclasses has a field `name`.

        objective: Annotated[ObjectiveConfig, ByName(lambda name: OBJECTIVES.find(name).config)]

    In a config file, `objective=dict(name="grpo", clip_low=0.3)` then has the keys and defaults of the class of "grpo".

    Attributes:
      find: Returns the dataclass for a name. Raises ConfigError if the name is unknown.
    """

    find: Callable[[str], type]

    def choose(self, value: Any, path: str) -> type:
        """Returns the dataclass for `value`, whose full key is `path`."""
        if not isinstance(value, Mapping | ConfigDict):
            raise ConfigError(f"{path}: expected keys, got {value!r}")
        name = value.get("name")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{path}.name: must be set")
        try:
            return self.find(name)
        except ConfigError as error:
            raise ConfigError(f"{path}.name: {error}") from error


def to_dataclass(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Builds `cls` from nested mappings.

    Raises:
      ConfigError: If a key is unknown or missing, or a value has another type. The message starts with the full key.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected keys of {cls.__name__}, got {values!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
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


def with_defaults(cls: type, config: ConfigDict, path: str = "config") -> ConfigDict:
    """Sets every key of `config` that has a default in `cls` and is missing, so that flags can change it.

    None becomes a placeholder, which flags can set to a value of the field's type.

    Returns:
      The same `config`.

    Raises:
      ConfigError: If a `name` that determines further keys (`ByName`) is missing or unknown.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    with config.unlocked():
        for field in dataclasses.fields(cls):
            if field.name not in config:
                if field.default is not dataclasses.MISSING:
                    config[field.name] = _as_written(field.default)
                elif field.default_factory is not dataclasses.MISSING:
                    config[field.name] = _as_written(field.default_factory())
            if field.name in config:
                if config[field.name] is None:
                    del config[field.name]  # otherwise the next line assigns the placeholder's value
                    config[field.name] = config_dict.placeholder(_type_of_flag(hints[field.name]))
                else:
                    _fill(hints[field.name], config[field.name], f"{path}.{field.name}")
    return config


def _fill(hint: Any, value: Any, path: str) -> None:
    """Applies `with_defaults` to the dataclasses in a field's value."""
    if not isinstance(value, ConfigDict):
        return
    hint = _not_none(hint)
    if isinstance(marker := _marker(hint), ByName):
        with_defaults(marker.choose(value, path), value, path)
    elif dataclasses.is_dataclass(hint):
        with_defaults(hint, value, path)  # type: ignore[arg-type]
    elif typing.get_origin(hint) is Mapping:
        for key, item in value.items():
            _fill(typing.get_args(hint)[1], item, f"{path}.{key}")


def _not_none(hint: Any) -> Any:
    """Returns X for `X | None`, else the hint itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not types.NoneType)
    return hint


def _marker(hint: Any) -> ByName | None:
    if typing.get_origin(hint) is not Annotated:
        return None
    return next((extra for extra in typing.get_args(hint)[1:] if isinstance(extra, ByName)), None)


def _type_of_flag(hint: Any) -> type:
    """Returns the type that a flag gives a field. Flags of tuples and of keys have their own syntax."""
    hint = _not_none(hint)
    if hint in (int, float, str, bool):
        return hint
    return tuple if typing.get_origin(hint) is tuple else ConfigDict


def _as_written(value: Any) -> Any:
    """Returns a default as a config file would write it."""
    if dataclasses.is_dataclass(value):
        return {field.name: _as_written(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _as_written(item) for key, item in value.items()}
    # A copy, because a config prints the second occurrence of an object as a reference.
    return tuple(map(_as_written, value)) if isinstance(value, tuple) else value


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        marker = _marker(hint)
        return _convert(marker.choose(value, path) if marker else args[0], value, path)
    if dataclasses.is_dataclass(hint):
        return to_dataclass(hint, value, path)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(_not_none(hint), value, path)
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
    """Returns ", did you mean NAME?" with the most similar of the names, or an empty string if none is similar."""
    found = difflib.get_close_matches(name, [*names], 1)
    return f", did you mean {found[0]}?" if found else ""
