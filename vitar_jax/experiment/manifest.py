"""The manifest of a run, `manifest.json`: versions, commit, and hashes of the data and the weights that it read."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import vitar_jax
from vitar_jax.data.fingerprint import fingerprint
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import ConfigError, DataError, VitarError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.runtime import cli
from vitar_jax.runtime.crash_safe import atomic_replace, read_json
from vitar_jax.runtime.distributed import gather_json, is_main
from vitar_jax.runtime.remote import weights_hash

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers")

Inputs = dict[str, dict[str, Any]]


def check_inputs(recipe: Recipe, workdir: Path, stages: Sequence[str]) -> None:
    """Writes the inputs of the unfinished stages into the manifest, or compares them with those that it holds.

    The main process reads for all. With `config.accept_changed_data`, prints each change and replaces its hash.

    Raises:
      ConfigError: If data or weights have changed since an earlier start or cannot be read, or if the manifest is damaged.
    """
    problem = None
    if is_main():
        try:
            _check(recipe, workdir, dict(_inputs(recipe, stages)))
        except VitarError as error:
            problem = str(error)
    if problem := gather_json(problem)[0]:
        raise ConfigError(problem)


def _check(recipe: Recipe, workdir: Path, inputs: Inputs) -> None:
    path = workdir / "manifest.json"
    manifest = _read(path) if path.exists() else versions() | {"inputs": {}}
    before: Inputs = manifest["inputs"]
    changed = [key for key in inputs if key in before and before[key]["sha256"] != inputs[key]["sha256"]]
    changes = [f"{key}: {_change(before[key], inputs[key])}" for key in changed]
    if changes and not recipe.accept_changed_data:
        raise ConfigError(
            f"{path}: {'; '.join(changes)}, since this run began; restore it, take another --workdir, or continue with "
            "--config.accept_changed_data=true"
        )
    for change in changes:
        cli.say(f"{change}; accepted")
    if changed or inputs.keys() - before.keys():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as partial:
            partial.write_text(json.dumps(manifest | {"inputs": before | inputs}, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path)
        if not all(isinstance(read["sha256"], str) for read in manifest["inputs"].values()):
            raise ValueError("a sha256 is not text")
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is not a run's manifest ({error!r}); remove it to record the present inputs") from error
    return manifest


def _change(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before.get("samples") != now.get("samples"):
        return f"had {before.get('samples')} samples and now has {now.get('samples')}"
    return "has changed its content"


def _inputs(recipe: Recipe, stages: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the key and the description of each input that the stages read."""

    @cache
    def read(described: str) -> dict[str, Any]:
        values = json.loads(described)
        source = load_source(SourceConfig(**values))
        return {**values, "samples": len(source), "sha256": fingerprint(source)}

    def describe(source: SourceConfig) -> dict[str, Any]:
        return read(json.dumps({"name": source.name, "split": source.split, "options": dict(source.options)}))

    for name in stages:
        for key, source in recipe.stages[name].sources.items():
            yield f"config.stages.{name}.sources.{key}", describe(source)
        for key, described in recipe.stages[name].objective.inputs().items():
            yield f"config.stages.{name}.objective.{key}", dict(described)
    if any(recipe.stages[name].probe_every for name in stages):
        yield "config.evaluation", describe(recipe.evaluation)
    if recipe.model.pretrained and any(not recipe.stages[name].start for name in stages):
        yield "config.model.pretrained", {"name": recipe.model.pretrained, "sha256": weights_hash(recipe.model.pretrained)}


def versions() -> dict[str, Any]:
    """Returns the versions of this package and of those that its numbers depend on, and the commit of its checkout."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return {"vitar_jax": vitar_jax.__version__, "commit": _commit(), "packages": packages}


def _commit() -> str | None:
    """Returns the commit of the checkout that holds this package, with "-dirty" after local changes, or None."""
    root = Path(vitar_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
