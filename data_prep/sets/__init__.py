"""Readers of published sets. Each module has `SET`, which describes the set, and `read(published)`: records by split."""

import importlib
import pkgutil
from types import ModuleType


def find_sets() -> dict[str, ModuleType]:
    """Returns the modules of this folder by the name of their set. A new module needs no entry anywhere."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {module.SET.name: module for module in modules}
