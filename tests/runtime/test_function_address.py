"""Addresses of functions, and copies of those that no module has under their names."""

import dataclasses
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.kit.processes import run_code
from vitar_jax.runtime import function_address
from vitar_jax.runtime.function_address import Address
from vitar_jax.runtime.registry import import_place


def double(number: int) -> int:
    return 2 * number


class Doubler:
    def double(self, number: int) -> int:
        return 2 * number


def test_a_modules_function_is_found() -> None:
    address = Address.of(Path.home)  # a method
    assert address is None
    address = Address.of(function_address._codes)
    assert address is not None and (address.module, address.name, address.copy) == (function_address.__name__, "_codes", "")
    assert address.find() is function_address._codes


@pytest.mark.parametrize("function", [partial(double, 3), Doubler().double, Doubler(), len, [].append])
def test_an_object_has_no_address(function: Any) -> None:
    assert Address.of(function) is None


def here(function: Any) -> Any:
    """Returns what another process would find."""
    address = Address.of(function)
    assert address is not None
    return Address(**json.loads(json.dumps(dataclasses.asdict(address)))).find()


def test_a_local_function_is_found_with_the_values_around_it() -> None:
    factor, word = 3, "x"

    def local(number: int, more: int = 2, *, twice: bool = False) -> str:
        return (1 + twice) * word * (factor * double(number) + more)

    found = here(local)
    assert found is not local and found(1) == local(1) == "x" * 8 and found(1, 0, twice=True) == "x" * 12
    assert here(lambda number: sorted(double(n) for n in range(number)))(3) == [0, 2, 4]


COUNT = 0


def test_a_local_function_that_keeps_a_state_has_no_address() -> None:
    seen: list[int] = []
    count = 0

    def collect(number: int) -> None:
        seen.append(number)

    def tally(number: int) -> None:
        nonlocal count
        count += number

    def share(number: int) -> None:
        global COUNT
        COUNT += number

    assert [Address.of(function) for function in (collect, tally, share)] == [None, None, None]


def test_two_functions_on_one_line_are_not_mixed_up() -> None:
    first, second = (lambda number: number + 1), (lambda number: number + 2)
    assert (here(first)(1), here(second)(1)) == (2, 3)


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("def own():\n    return 1\n")
    address = Address.of(import_place(str(path)).own)
    assert address is not None and address.find()() == 1
    path.write_text("def own():\n    return 2\n")
    with pytest.raises(ValueError, match="own.py has changed"):
        address.find()


OWN = """
factor = 3

def helper(number):
    return factor * number

def make(more):
    return lambda number: helper(number) + more

scaled = make(1)
"""


def test_a_function_of_a_file_that_has_no_name_there_is_copied(tmp_path: Path) -> None:
    """With what it uses of the file, which another process cannot import by a name."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    address = Address.of(import_place(str(path)).scaled)
    assert address is not None and address.copy
    path.unlink()
    code = "import json, sys; from vitar_jax.runtime.function_address import Address; "
    code += "print(Address(**json.loads(sys.argv[1])).find()(2), 'jax' in sys.modules)"
    assert run_code(code, json.dumps(dataclasses.asdict(address))).split() == ["7", "False"]


LOCK = threading.Lock()


def test_what_cannot_be_copied_has_no_address() -> None:
    def locked(number: int) -> int:
        with LOCK:
            return number

    assert Address.of(locked) is None
