"""The address of a function, by which another process finds it: its module and name, or else a copy of it."""

import base64
import dataclasses
import dis
import hashlib
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle

from vitar_jax.runtime.registry import import_place

_SCALARS = (str, int, float, bool, types.NoneType)


@dataclasses.dataclass(frozen=True)
class Address:
    """The place of a function, or a copy of a function that no module has under its name.

    Functions of a running script are copied. Importing the script would run it a second time: it may train a model or remove a
    directory.

    Attributes:
      module: `package.module` or the absolute path of a file, which is imported.
      name: Name of the function in the module.
      file: The module's source file, if it is known.
      sha256: Hash of the source file. Another content means another function.
      copy: The function with all that it uses, as cloudpickle writes it, in base64. Only this program's processes read it.
    """

    module: str = ""
    name: str = ""
    file: str = ""
    sha256: str = ""
    copy: str = ""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Address | None":
        """Returns the address of a function, with the values that a copy uses now.

        Returns None for an object, for a function that uses something that cannot be copied, and for one that may keep a state:
        that assigns to variables around it, or reads variables of an enclosing function that are not numbers, text or None.
        """
        place: str = getattr(function, "__module__", None) or ""
        name: str = getattr(function, "__qualname__", None) or ""
        module = sys.modules.get(place)
        file = Path(getattr(module, "__file__", None) or "").resolve()
        if place != "__main__" and file.is_file() and getattr(module, name, None) is function:
            return cls(place, name, str(file), _sha256(file))
        if not isinstance(function, types.FunctionType) or _may_keep_state(function):
            return None
        if module is not None and os.sep in place:  # a file that `import_place` ran, which has no name to import it by
            cloudpickle.register_pickle_by_value(module)
        try:
            return cls(copy=base64.b64encode(cloudpickle.dumps(function)).decode())
        except Exception:  # whatever an object raises that cannot be copied
            return None

    def find(self) -> Callable[..., Any]:
        """Returns the function.

        Raises:
          Exception: If the file has changed, if a module raises or has no such function, or if the copy cannot be read.
        """
        if self.copy:
            return pickle.loads(base64.b64decode(self.copy))
        if self.file and _sha256(Path(self.file)) != self.sha256:
            raise ValueError(f"{self.file} has changed")
        return getattr(import_place(self.module), self.name)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _may_keep_state(function: types.FunctionType) -> bool:
    code = function.__code__
    try:
        plain = all(isinstance(cell.cell_contents, _SCALARS) for cell in function.__closure__ or ())
    except ValueError:  # a variable that has no value yet
        return True
    steps = [(step.opname, step.argval) for inner in _codes(code) for step in dis.get_instructions(inner)]
    return not plain or any(
        name == "STORE_GLOBAL" or (name == "STORE_DEREF" and value in code.co_freevars) for name, value in steps
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields a code object and those of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
