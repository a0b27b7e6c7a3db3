"""Readers of published sets. Each module has `SET`, which describes the set, and `read(published)`: records by split."""

import importlib
import pkgutil
from types import ModuleType

from vitar_jax.errors import ConfigError


def find_sets() -> dict[str, ModuleType]:
    """Returns the modules of this folder by the name of their set. A new module needs no entry anywhere.

    Raises:
      ConfigError: If a module lacks `SET` or `read`.
    """
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    for module in modules:
        for name in ("SET", "read"):
            if not hasattr(module, name):
                raise ConfigError(f"{module.__file__}: has no {name}, which each module of data_prep/sets needs")
    return {module.SET.name: module for module in modules}
