"""The address of a function, by which another process finds it: its module and name, or its place in a source file."""

import ast
import builtins
import dataclasses
import dis
import hashlib
import symtable
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vitar_jax.runtime.registry import import_place

_Scalars = dict[str, str | int | float | bool | None]
_SCALARS = (str, int, float, bool, types.NoneType)


@dataclasses.dataclass(frozen=True)
class Address:
    """The place of a function.

    Attributes:
      module: `package.module` or the absolute path of a file, which is imported. If empty, only the statements of `file` run
        that the function needs.
      name: Qualified name of the function.
      file: The source file, if it is known.
      sha256: Hash of the source file. Another content means another function.
      line: First line of a function without a name of its own, such as a lambda or a local function; else 0.
      package: Package of `file`, for its relative imports.
      cells: Values of the enclosing function's variables that a local function uses.
      defaults: Default values of its last arguments.
    """

    module: str
    name: str
    file: str = ""
    sha256: str = ""
    line: int = 0
    package: str | None = None
    cells: _Scalars = dataclasses.field(default_factory=dict)
    defaults: tuple[Any, ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Address | None":
        """Returns the address of a function; None if there is none, as for an object, or a function of a notebook or a console.

        A local function has one if it only reads the variables around it and these are numbers, text or None.
        """
        place: str = getattr(function, "__module__", None) or ""
        name: str = getattr(function, "__qualname__", None) or ""
        module = sys.modules.get(place)
        file = Path(getattr(module, "__file__", None) or "").resolve()
        if module is None or not file.is_file():
            return None
        make = partial(cls, file=str(file), sha256=_sha256(file), package=module.__package__)
        if getattr(module, name, None) is function:
            return make("" if place == "__main__" else place, name)
        if not isinstance(function, types.FunctionType) or function.__kwdefaults__:
            return None
        code, defaults = function.__code__, function.__defaults__ or ()
        try:
            cells = dict(zip(code.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True))
        except ValueError:  # a variable that has no value yet
            return None
        plain = all(isinstance(value, _SCALARS) for value in (*cells.values(), *defaults))
        if not plain or _assigns(code) or Path(code.co_filename).resolve() != file:
            return None
        return make("", code.co_qualname, line=code.co_firstlineno, cells=cells, defaults=defaults)

    def find(self) -> Callable[..., Any]:
        """Returns the function.

        Raises:
          Exception: If the file has changed, or if the module or the statements raise or define no such function.
        """
        if self.file and _sha256(Path(self.file)) != self.sha256:
            raise ValueError(f"{self.file} has changed")
        if self.module:
            return getattr(import_place(self.module), self.name)
        if not self.line:
            return getattr(_define(Path(self.file), {self.name}, self.package), self.name)
        whole = compile(Path(self.file).read_text(), self.file, "exec")
        found = [code for code in _codes(whole) if (code.co_qualname, code.co_firstlineno) == (self.name, self.line)]
        if len(found) != 1:
            raise ValueError(f"{self.file}:{self.line}: has {len(found)} functions of this name")
        (code,) = found
        module = _define(Path(self.file), _globals(code), self.package)
        cells = tuple(types.CellType(self.cells[name]) for name in code.co_freevars)
        return types.FunctionType(code, vars(module), self.name, tuple(self.defaults), cells)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields a code object and those of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _globals(code: types.CodeType) -> set[str]:
    """Returns the global names that a function reads."""
    return {step.argval for inner in _codes(code) for step in dis.get_instructions(inner) if step.opname == "LOAD_GLOBAL"}


def _assigns(code: types.CodeType) -> bool:
    """Returns whether a function assigns to a global name or to a variable of an enclosing function."""
    steps = [(step.opname, step.argval) for inner in _codes(code) for step in dis.get_instructions(inner)]
    return any(name == "STORE_GLOBAL" or (name == "STORE_DEREF" and value in code.co_freevars) for name, value in steps)


def _define(file: Path, names: set[str], package: str | None) -> types.ModuleType:
    """Runs the top-level statements of a file that define `names` and the names that these use, in turn.

    The other statements do not run a second time: in a script, they may train a model or remove a directory.

    Raises:
      NameError: If the file uses a name that no top-level statement defines, or defines only as the main module.
    """
    statements = [(statement, *_names(statement)) for statement in ast.parse(file.read_text(), str(file)).body]
    needed, found = set(names), None
    while found != needed:
        found = set(needed)
        for _, bound, read in statements:
            if bound & needed:
                needed |= read
    module = types.ModuleType("__mp_main__")
    module.__file__, module.__package__ = str(file), package
    sys.modules[module.__name__] = module  # dataclasses look their module up
    body = [statement for statement, bound, _ in statements if bound & needed or "*" in bound]
    exec(compile(ast.Module(body, []), str(file), "exec"), vars(module))
    if missing := sorted(needed - vars(module).keys() - vars(builtins).keys()):
        raise NameError(f"{file}: the statements that define {', '.join(sorted(names))} do not define {missing[0]}")
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
