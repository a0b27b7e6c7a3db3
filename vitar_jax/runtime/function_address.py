"""The address of a function, by which another process finds it: its module, its file, or the script that defines it."""

import ast
import builtins
import dataclasses
import symtable
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitar_jax.runtime.registry import import_place


@dataclasses.dataclass(frozen=True)
class Address:
    """The place of a function.

    Attributes:
      place: `package.module`, or the absolute path of a file.
      name: Name of the function in its module.
      script: Whether the file is the running script. A script is not run again; see `_define`.
      package: Package of a script that was started with `python -m`, for its relative imports.
    """

    place: str
    name: str
    script: bool = False
    package: str | None = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Address | None":
        """Returns the address of a function; None for a lambda, a closure, or a function of a notebook or a console."""
        place: str = getattr(function, "__module__", None) or ""
        name: str = getattr(function, "__qualname__", None) or ""
        module = sys.modules.get(place)
        if module is None or getattr(module, name, None) is not function:
            return None
        if place != "__main__":
            return cls(place, name)
        file = getattr(module, "__file__", None)
        return cls(str(Path(file).resolve()), name, True, module.__package__) if file and Path(file).is_file() else None

    def find(self) -> Callable[..., Any]:
        """Returns the function. Imports its module, or runs its file or its part of the script.

        Raises:
          Exception: If the module or the statements raise, or define no such function.
        """
        if self.script:
            return getattr(_define(Path(self.place), self.name, self.package), self.name)
        return getattr(import_place(self.place), self.name)


def _define(script: Path, name: str, package: str | None) -> types.ModuleType:
    """Runs the top-level statements of a script that define `name` and the names that it uses, in turn.

    The other statements do not run a second time: they may train a model or remove a directory.

    Raises:
      NameError: If the script uses a name that no top-level statement defines, or defines only as the main module.
    """
    statements = [(statement, *_names(statement)) for statement in ast.parse(script.read_text(), str(script)).body]
    needed, found = {name}, set[str]()
    while found != needed:
        found = set(needed)
        for _, bound, read in statements:
            if bound & needed:
                needed |= read
    module = types.ModuleType("__mp_main__")
    module.__file__, module.__package__ = str(script), package
    sys.modules[module.__name__] = module  # dataclasses look their module up
    body = [statement for statement, bound, _ in statements if bound & needed or "*" in bound]
    exec(compile(ast.Module(body, []), str(script), "exec"), vars(module))
    if missing := sorted(needed - vars(module).keys() - vars(builtins).keys()):
        raise NameError(f"{script}: the statements that define {name} do not define {missing[0]}")
    return module


def _names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Returns the global names that a top-level statement binds ("*": it imports any), and those that it reads."""
    if isinstance(statement, ast.ImportFrom) and (statement.module == "__future__" or statement.names[0].name == "*"):
        return {"*"}, set()
    table = symtable.symtable(ast.unparse(statement), "script", "exec")
    bound = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    read = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    inner = table.get_children()
    while inner:
        table = inner.pop()
        inner += table.get_children()
        read |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return bound, read
