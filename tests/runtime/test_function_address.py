"""Addresses of functions, and the part of a script that defines one."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

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
    address = Address.of(function_address._names)
    assert address is not None and (address.module, address.name, address.line) == (function_address.__name__, "_names", 0)
    assert address.find() is function_address._names


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

    def local(number: int, more: int = 2) -> str:
        return word * (factor * double(number) + more)

    found = here(local)
    assert found is not local and found(1) == local(1) == "x" * 8 and found(1, 0) == "x" * 6
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
    assert first(1) + second(1) == 5
    with pytest.raises(ValueError, match="has 2 functions of this name"):
        here(first)


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("def own():\n    return 1\n")
    address = Address.of(import_place(str(path)).own)
    assert address is not None and address.find()() == 1
    path.write_text("def own():\n    return 2\n")
    with pytest.raises(ValueError, match="own.py has changed"):
        address.find()


SCRIPT = '''
from __future__ import annotations
from math import *
import json as j, never.there
raise_later = "x" + 1
try:
    import nowhere
except ImportError:
    nowhere = None

class Base:
    factor = 3

@j.loads  # runs only if it is needed
def unused():
    never.there()

SIZES = tuple(int(n) for n in "12")
a, *b = 1, 2, 3

def used(n, t=SIZES):
    raise_earlier = [a for a in b]
    return n * Base.factor + sum(t) + floor(2.5) + (nowhere is None) + raise_earlier[0]

if __name__ == "__main__":
    guarded = 1

def wanted(n):
    return (lambda: used(n))()

def lost():
    return guarded
'''


def test_only_the_statements_that_a_function_needs_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    found = function_address._define(tmp_path / "script.py", {"wanted"}, None).wanted
    assert found(10) == 10 * 3 + 3 + 2 + 1 + 2
    with pytest.raises(NameError, match="script.py: the statements that define lost do not define guarded"):
        function_address._define(tmp_path / "script.py", {"lost"}, None)
