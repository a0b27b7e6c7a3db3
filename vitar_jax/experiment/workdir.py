"""A run's directory: the config it was made with, the split of its minibatches, and its log."""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from textwrap import shorten
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from vitar_jax.errors import ConfigError, DataError
from vitar_jax.experiment.old_configs import migrate
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.registry import FAMILIES
from vitar_jax.runtime import cli
from vitar_jax.runtime.config import with_defaults
from vitar_jax.runtime.crash_safe import atomic_replace, read_json
from vitar_jax.runtime.distributed import is_main

# Keys that may change when a run resumes: where and how it is computed, its logs and checkpoints, and its evaluation.
FREE = (
    "config.benchmarks*",
    "config.proof*",
    "config.mesh.*",
    "config.loader_threads",
    "config.rollout.decode_lengths",
    "config.rollout.draft_tokens",
    "config.accept_changed_data",
    "config.model.remat",
    "config.model.attention",
    "config.stages.*.micro_rows",
    "config.stages.*.row_images",
    "config.stages.*.logprob_chunk",
    "config.stages.*.log_every",
    "config.stages.*.checkpoint_every",
    "config.stages.*.keep_trajectories",
    "config.stages.*.probe_interventions",
    "config.stages.*.objective.alarms.*",
    "config.stages.*.objective.packed",
    "config.stages.*.stop_after_skipped",
    "config.stages.*.max_skipped_share",
    "config.stages.*.objective.too_long",  # a run that went on has not met an example that is too long
)
_ABSENT = object()


def log_to(workdir: Path) -> None:
    """Sends the main process's log to `workdir/logs`; the terminal is for the progress bar."""
    if not is_main():
        return
    directory = workdir / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    logging.use_absl_handler()
    logging.get_absl_handler().use_absl_log_file("vitar_jax", str(directory))


def open_workdir(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved config into the directory, or checks that the directory was made with it.

    Raises:
      ConfigError: If keys that are not in `FREE` differ. The message names them with both values.
    """
    path = workdir / "config.json"
    resolved = _resolved(config.copy_and_resolve_references())
    if path.exists():
        changes = sorted(_differences(_read(path), resolved))
        if refused := [text for key, text in changes if not any(fnmatch(key, free) for free in FREE)]:
            found = "; ".join(refused)
            raise ConfigError(
                f"{workdir} was made with another config (or old keys, docs/moved_keys.md); {found}; take another --workdir"
            )
        for _, text in changes:
            cli.say(shorten(text, 200, placeholder=" ..."))
        return
    if not is_main():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path) as partial:
        partial.write_text(json.dumps(resolved, indent=2) + "\n")


def check_minibatches(directory: Path, split: Mapping[str, int]) -> None:
    """Writes how a stage with several minibatches splits its batches, or checks that it still does so.

    Another split puts other episodes into a minibatch. The weights would then depend on when a run was resumed.

    Args:
      directory: The stage's directory.
      split: Numbers that determine the minibatch of an episode.

    Raises:
      ConfigError: If the stage was started with another split, or the file is damaged.
    """
    path = directory / "minibatches.json"
    if path.exists():
        try:
            before = read_json(path)
        except DataError as error:
            raise ConfigError(f"{error}; remove it to record the present split of minibatches") from error
        if before != split:
            was, now = (", ".join(f"{name}={n}" for name, n in each.items()) for each in (before, split))
            raise ConfigError(
                f"{path}: minibatches were split by {was}, and would now be by {now}; resume on the same mesh with the same "
                "micro_rows, or take another --workdir"
            )
    elif is_main():
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as partial:
            partial.write_text(json.dumps(split) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """Reads a run's config, which may be an old one, with today's keys, names and defaults."""
    try:
        return _resolved(ConfigDict(migrate(json.loads(path.read_text()))))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file can break the migration in any way
        raise ConfigError(f"{path}: is not a run's config ({error!r}); take another --workdir") from error


def _resolved(config: ConfigDict) -> dict[str, Any]:
    """Returns a config with all defaults filled in, so that a new or written-out default does not count as a change."""
    filled: Any = with_defaults(Recipe, config)
    family = FAMILIES.find(filled.model.family)
    for tower, sizes in (("text", family.text), ("vision", family.vision)):
        if isinstance(written := filled.model[tower], ConfigDict):
            with_defaults(sizes, written, f"config.model.{tower}")
    return json.loads(filled.to_json())


def _differences(before: Any, now: Any, key: str = "config") -> Iterator[tuple[str, str]]:
    """Yields each key whose values differ, with a message that states both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            yield from _differences(before.get(name, _ABSENT), now.get(name, _ABSENT), f"{key}.{name}")
    elif before != now:
        was, is_now = ("not set" if value is _ABSENT else json.dumps(value) for value in (before, now))
        yield key, f"{key} was {was} and is now {is_now}"
