"""Lists the commands, with one line for each."""

import ast
from collections.abc import Iterator
from pathlib import Path


def commands() -> Iterator[tuple[str, str]]:
    """Yields the name of each command and the first line of its docstring. Imports none of them."""
    here = Path(__file__).parent
    for path in sorted((*here.glob("*.py"), *here.glob("*/__main__.py"))):
        name = path.parent.name if path.name == "__main__.py" else path.stem
        if path != Path(__file__) and name not in ("__init__", "errors"):
            yield name, (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


if __name__ == "__main__":
    for name, line in commands():
        print(f"python -m vitar_jax.{name:<12} {line}")
    print("\n--help of a command shows examples and all flags.")
