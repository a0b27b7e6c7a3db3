"""Addresses of functions, and the part of a script that defines one."""

from functools import partial
from pathlib import Path

import pytest

from vitar_jax.runtime import function_address
from vitar_jax.runtime.function_address import Address


def double(number: int) -> int:
    return 2 * number


class Doubler:
    def double(self, number: int) -> int:
        return 2 * number


def test_a_modules_function_is_found() -> None:
    address = Address.of(Path.home)  # a method
    assert address is None
    address = Address.of(function_address._names)
    assert address == Address("vitar_jax.runtime.function_address", "_names")
    assert address.find() is function_address._names


@pytest.mark.parametrize("function", [lambda number: number, partial(double, 3), Doubler().double, Doubler()])
def test_what_does_not_know_its_name_has_no_address(function: object) -> None:
    def local(number: int) -> int:
        return number

    assert Address.of(function) is None and Address.of(local) is None  # type: ignore[arg-type]


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
    found = Address(str(tmp_path / "script.py"), "wanted", script=True).find()
    assert found(10) == 10 * 3 + 3 + 2 + 1 + 2
    with pytest.raises(NameError, match="script.py: the statements that define lost do not define guarded"):
        Address(str(tmp_path / "script.py"), "lost", script=True).find()
