"""The shape of the project: who imports whom, what an import loads, and which versions are pinned."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.kit.processes import ROOT, run, run_code

# A package imports only packages on floors below its own; a command imports packages and no command.
COMMANDS = 6
FLOORS = {
    "__main__": -1,
    "errors": -1,
    "runtime": 0,
    "parallel": 1,
    "processing": 1,
    "models": 2,
    "episodes": 2,
    "rollout": 3,
    "data": 3,
    "learning": 4,
    "evaluation": 4,
    "experiment": 5,
    "attend": COMMANDS,
    "bench": COMMANDS,
    "check_export": COMMANDS,
    "compare": COMMANDS,
    "evaluate": COMMANDS,
    "infer": COMMANDS,
    "plan": COMMANDS,
    "quickstart": COMMANDS,
    "report": COMMANDS,
    "serve": COMMANDS,
    "train": COMMANDS,
}
PACKAGES = [part for part, floor in FLOORS.items() if 0 <= floor < COMMANDS]
# Folders beside the package. Only the quickstart reaches two of them.
BESIDE = {"configs", "data_prep", "tests"}
QUICKSTART = {"configs", "data_prep"}


def imported_names(source: str, package: str) -> list[str]:
    """Absolute dotted names of all that `source`, a module of `package`, imports, also inside functions.

    `from a import b` counts as `a.b`, since b may be a module.
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # In a.b.c, one dot stands for a.b.c, two for a.b, three for a.
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            names += [".".join([*base, alias.name]) for alias in node.names]
    return names


def part_of(name: str) -> str:
    """The part of vitar_jax that a dotted name lies in: "models" for vitar_jax.models.rope."""
    return name.split(".")[1] if "." in name else ""


def upstairs_imports(source: str, module: str, package: str) -> list[str]:
    """The names that `source`, a module in `package`, may not import from where it stands."""
    home = part_of(module)
    wrong = []
    for name in imported_names(source, package):
        top, part = name.split(".")[0], part_of(name)
        if top in BESIDE:
            allowed = home == "quickstart" and top in QUICKSTART
        elif top == "vitar_jax":
            # vitar_jax itself holds nothing but its version.
            allowed = part in ("", "__version__", home) or FLOORS.get(part, COMMANDS) < FLOORS.get(home, COMMANDS)
        else:
            allowed = True
        if not allowed:
            wrong.append(name)
    return wrong


# A word without white space is a name or a path; anything else is prose, such as a flag's help.
_OUTSIDE = re.compile(r"\S*\b(configs|data_prep)\b\S*")


def outside_names(source: str) -> list[str]:
    """Strings of `source` that name a module or a file of `data_prep` or `configs`. Docstrings may, as examples."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in strings if id(node) not in docstrings and _OUTSIDE.fullmatch(node.value)]


def modules() -> list[tuple[str, str, Path]]:
    """(module, its package, file) for all of vitar_jax; an `__init__` is its package."""
    found = []
    for path in sorted((ROOT / "vitar_jax").rglob("*.py")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        found.append((package if path.stem == "__init__" else f"{package}.{path.stem}", package, path))
    return found


def test_imports_point_downstairs() -> None:
    wrong = {}
    for module, package, path in modules():
        if names := upstairs_imports(path.read_text(), module, package):
            wrong[module] = names
    assert wrong == {}


def test_no_string_names_what_lies_outside() -> None:
    found = {module: outside_names(path.read_text()) for module, _, path in modules()}
    del found["vitar_jax.quickstart"]
    del found["vitar_jax.experiment.old_configs"]  # compares names of old files with a recipe's, and imports none of them
    assert {module: names for module, names in found.items() if names} == {}


def test_families_are_named_in_the_registry_alone() -> None:
    """And by the bench, which has their shapes."""
    named = {module for module, _, path in modules() if re.search("qwen2_5_vl|qwen3_vl|sa2va", path.read_text())}
    own = ("vitar_jax.models.qwen2_5_vl", "vitar_jax.models.qwen3_vl", "vitar_jax.models.sa2va")
    assert {module for module in named if not module.startswith(own)} == {"vitar_jax.models.registry", "vitar_jax.bench.cases"}


@pytest.mark.parametrize(
    "source, expected",
    [
        ('DEFINE_config_file("config", "configs/mine.py", "Reads a file of configs/.")', ["configs/mine.py"]),
        ('import_module(f"data_prep.{name}")', ["data_prep."]),
        ('SourceConfig("data_prep.sets.vqa_rad:source")', ["data_prep.sets.vqa_rad:source"]),
        ('Path(root, "configs")', ["configs"]),
        ('"""Reads configs."""\ndef f():\n    "data_prep.built:source"\n    return "my_configs"', []),
    ],
)
def test_names_of_what_lies_outside_are_seen(source: str, expected: list[str]) -> None:
    assert outside_names(source) == expected


def test_every_part_has_a_floor() -> None:
    top = ROOT / "vitar_jax"
    parts = {path.parent.name for path in top.glob("*/__init__.py")} | {path.stem for path in top.glob("*.py")}
    assert parts == FLOORS.keys() | {"__init__"}


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from vitar_jax.processing.chat import render", []),
        ("from vitar_jax.errors import ImageError", []),
        ("from vitar_jax import __version__", []),
        ("from .rope import angles", []),
        ("import vitar_jax.rollout.engine as engine", ["vitar_jax.rollout.engine"]),
        ("from vitar_jax import learning", ["vitar_jax.learning"]),
        ("from ..episodes.sample import Sample", ["vitar_jax.episodes.sample.Sample"]),
        ("def late():\n    from vitar_jax.train import main", ["vitar_jax.train.main"]),
        ("from configs import quickstart", ["configs.quickstart"]),
        ("from vitar_jax.experiment import recipe", ["vitar_jax.experiment.recipe"]),
    ],
)
def test_upstairs_and_sideways_imports_are_seen(source: str, expected: list[str]) -> None:
    assert upstairs_imports(source, "vitar_jax.models.text", "vitar_jax.models") == expected


def test_relative_imports_of_a_package_are_seen() -> None:
    package = "vitar_jax.models"
    assert upstairs_imports("from ..rollout import engine", package, package) == ["vitar_jax.rollout.engine"]
    assert upstairs_imports("from .rope import angles", package, package) == []


def loose_modules() -> list[str]:
    return sorted(path.stem for path in (ROOT / "vitar_jax").glob("*.py") if not path.stem.startswith("__"))


def test_few_modules_lie_loose() -> None:
    """Commands and errors, nothing else."""
    assert [name for name in loose_modules() if name != "errors" and FLOORS[name] != COMMANDS] == []


def test_the_package_lists_its_commands() -> None:
    shown = run(sys.executable, "-m", "vitar_jax", timeout=60)
    lines = dict(re.findall(r"python -m vitar_jax\.(\w+) +(\S.*\.)$", shown.stdout, re.MULTILINE))
    assert shown.returncode == 0 and set(lines) == {name for name, floor in FLOORS.items() if floor == COMMANDS}
    assert all(len(line) < 150 for line in lines.values())


def modules_loaded_by(statements: str) -> set[str]:
    """Modules in `sys.modules` of a fresh interpreter after it ran `statements`, packages included."""
    code = f"import sys\n{statements}\nprint('LOADED', *sys.modules)"
    return set(run_code(code).split("LOADED")[1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_loaded_by("import vitar_jax") & {"jax", "numpy", "PIL", "transformers", "tensorflow"}


@pytest.mark.slow
def test_no_package_needs_tensorflow_or_torch() -> None:
    """They take seconds to load. Only the bench needs torch, and nothing needs TensorFlow."""
    names = [module for module, _, _ in modules() if part_of(module) in PACKAGES]
    loaded = modules_loaded_by("\n".join(f"import {name}" for name in names))
    assert not loaded & {"tensorflow", "torch"}


def what_learns(statement: str) -> set[str]:
    """Returns the modules of learning, TensorFlow and optax that a statement loads."""
    return {name for name in modules_loaded_by(statement) if re.match(r"(vitar_jax\.learning|optax|tensorflow)(\.|$)", name)}


@pytest.mark.slow
def test_asking_a_model_loads_nothing_that_learns() -> None:
    assert what_learns("import vitar_jax.infer") == set()


@pytest.mark.slow
def test_a_player_starts_without_what_only_others_need() -> None:
    """Each of these takes a good part of the time in which `infer` answers."""
    heavy = {"transformers", "torch", "tensorflow", "orbax", "grain", "scipy", "matplotlib", "pydicom"}
    heavy.add("jax.experimental.pallas")
    assert not modules_loaded_by("import vitar_jax.infer, vitar_jax.rollout.player") & heavy


@pytest.mark.slow
def test_what_learns_is_seen() -> None:
    found = what_learns("import vitar_jax.infer, vitar_jax.learning.optimizer")
    assert {"vitar_jax.learning", "vitar_jax.learning.optimizer"} <= found


# --- recipes ------------------------------------------------------------------------------------

RECIPES = sorted((ROOT / "configs").glob("*.py"))


def outside_a_recipe(source: str) -> list[str]:
    """Modules that a recipe file imports and may not: all but the standard library and ml_collections."""
    tops = {name.split(".")[0] for name in imported_names(source, "")}
    return sorted(tops - sys.stdlib_module_names - {"ml_collections"})


def test_recipes_import_ml_collections_alone() -> None:
    found = {path.name: outside_a_recipe(path.read_text()) for path in RECIPES}
    assert len(found) > 5 and {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import runpy\nfrom ml_collections import ConfigDict", []),
        ("def get_config():\n    from vitar_jax.runtime.config import with_defaults", ["vitar_jax"]),
        ("from configs import quickstart\nimport jax.numpy", ["configs", "jax"]),
    ],
)
def test_what_a_recipe_may_not_import_is_seen(source: str, expected: list[str]) -> None:
    assert outside_a_recipe(source) == expected


def test_recipes_load_from_anywhere(tmp_path: Path) -> None:
    """Without what a PYTHONPATH adds, in another directory, and without JAX."""
    load = "import os, runpy, sys\nos.chdir(sys.argv[1])\nfor path in sys.argv[2:]: runpy.run_path(path)['get_config']()"
    done = run(sys.executable, "-I", "-c", f"{load}\nprint(*sys.modules)", str(tmp_path), *map(str, RECIPES))
    assert done.returncode == 0, done.stderr
    assert not {"jax", "vitar_jax", "configs"} & set(done.stdout.split())


# --- distribution -------------------------------------------------------------------------------


def test_the_wheel_holds_two_packages() -> None:
    """Above all none named `configs`: anybody's project may have one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*.py")}
    assert {"configs", "tests"} < folders
    assert {name for name in folders if any(fnmatchcase(name, pattern) for pattern in patterns)} == {"vitar_jax", "data_prep"}


def test_the_wheel_holds_every_file_that_is_no_module() -> None:
    """Prompts, templates, and the files of pages."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = {package: ROOT.joinpath(*package.split(".")) for package in listed}
    held = {path for package, patterns in listed.items() for pattern in patterns for path in folders[package].glob(pattern)}
    files = {path for name in ("vitar_jax", "data_prep") for path in (ROOT / name).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc", ".md")} == held


def normalised(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_constraints_are_plain_versions() -> None:
    """Public releases only: no addresses, paths, markers, or local tags such as 1.0+cpu."""
    assert [pin for pin in pins() if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin)] == []


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {normalised(re.split(r"[\[><=;! ]", requirement)[0]) for requirement in wanted}
    assert names <= {normalised(pin.split("==")[0]) for pin in pins()}
