"""Shape letters in jaxtyping annotations are those of the table in `vitar_jax/__init__.py`, and every letter is used."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jaxtyping

import vitar_jax

PACKAGE = Path(vitar_jax.__file__).parent
TABLE = re.findall(r"(?<= )([A-Z])  (?=[a-z])", vitar_jax.__doc__ or "")


def shapes(source: str) -> Iterator[str]:
    """The shapes of all annotations such as `Float[Array, "B S"]`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and hasattr(jaxtyping, node.value.id):
            shape = node.slice.elts[-1] if isinstance(node.slice, ast.Tuple) else None
            if isinstance(shape, ast.Constant) and isinstance(shape.value, str):
                yield shape.value


def letters(shape: str) -> set[str]:
    return set(re.findall(r"\b[A-Z]\w*", shape))


def test_letters_are_found() -> None:
    found = list(shapes('x: tuple[Float[Array, "*B T_2 Dh E//2"], Int[np.ndarray, " n"], dict["A", "B"]]'))
    assert found == ["*B T_2 Dh E//2", " n"]
    assert letters(found[0]) == {"B", "T_2", "Dh", "E"}


def test_annotations_use_the_table() -> None:
    used: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for shape in shapes(path.read_text()):
            used |= {letter: f"{path.name}: {shape}" for letter in letters(shape)}
    assert len(set(TABLE)) == len(TABLE) > 15
    assert {letter: where for letter, where in used.items() if letter not in TABLE} == {}
    assert set(TABLE) == used.keys()
