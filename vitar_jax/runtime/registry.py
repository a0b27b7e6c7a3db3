"""Finds objects by a registered name, `package.module:name`, or `path/to/file.py:name`."""

import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TypeVar

from vitar_jax.errors import ConfigError
from vitar_jax.runtime.config import nearest

T = TypeVar("T")

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Registry(dict[str, T]):
    """Objects of one kind by name. `find` also finds objects in modules and files.

    Args:
      kind: Noun for error messages, such as "reward".
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers an object as `name`."""

        def add(thing: T) -> T:
            self[name] = thing
            return thing

        return add

    def find(self, name: str) -> T:
        """Returns an object by name. Imports its module, or runs its file, once per process.

        A relative path starts at the working directory.

        Raises:
          ConfigError: If no object has this name, or the module or file raises an exception.
        """
        if name in self:
            return self[name]
        if not is_address(name):
            raise self.unknown(name)
        place, _, attribute = name.rpartition(":")
        module = import_place(place)
        if not hasattr(module, attribute):
            public = [key for key in vars(module) if not key.startswith("_")]
            raise ConfigError(f"{self.kind} {name!r}: {place} has no {attribute!r}{nearest(attribute, public)}")
        return getattr(module, attribute)

    def unknown(self, name: str, known: Iterable[str] = ()) -> ConfigError:
        """Returns the error for an unknown name. The message lists `known` (default: the registered names)."""
        names = [*(known or self)]
        return ConfigError(
            f"unknown {self.kind} {name!r}{nearest(name, names)}; known are {', '.join(names) or 'none'}, "
            "package.module:name and path/to/file.py:name"
        )


def is_address(name: str) -> bool:
    """Returns whether `name` has the form `package.module:name` or `path/to/file.py:name`."""
    return ".py:" in name or _MODULE.fullmatch(name) is not None


def import_place(place: str) -> types.ModuleType:
    """Imports `package.module`, or runs a `.py` file, once per process.

    Raises:
      ConfigError: If the module or file does not exist or raises an exception.
    """
    return _import_file(Path(place).resolve()) if place.endswith(".py") else _import_module(place)


def _import_module(name: str) -> types.ModuleType:
    if "" not in sys.path:  # the working directory, as with `python -m`
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except Exception as error:  # the module's code can raise any exception
        raise ConfigError(f"{name}: cannot be imported ({type(error).__name__}: {error})") from error


@cache
def _import_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    name = str(path)  # no module of a package can have this name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file's code can raise any exception
        del sys.modules[name]
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    return module
