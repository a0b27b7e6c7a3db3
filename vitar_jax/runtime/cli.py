"""Shared by all commands: absl flags, user errors as one line with exit code 2, and the compilation cache."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict

from vitar_jax.errors import VitarError
from vitar_jax.runtime import distributed
from vitar_jax.runtime.config import nearest
from vitar_jax.runtime.registry import Registry

COMPILATION_CACHE = Path.home() / ".cache" / "vitar_jax" / "compiled"


def run(
    main: Callable[..., None], *, commands: Sequence[str] = (), operands: Sequence[str] = (), preemptible: bool = False
) -> None:
    """Parses the flags and calls `main` with the positional arguments.

    A user error (an invalid flag, path, key, image or checkpoint) prints one line and exits with 2. Any other exception is a
    bug and shows its traceback.

    Args:
      commands: Names of subcommands. If given, the first argument must be one of them.
      operands: Names of the required positional arguments.
      preemptible: Whether `main` handles SIGTERM itself, through `Preemption`.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            flags.FLAGS.validate_all_flags()
            if "config" in flags.FLAGS:
                getattr(flags.FLAGS.config, "to_dict", None)  # a config file that failed to load raises on first use
        except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            _fail(_missing_key(error, argv) or error)
        words = rest[1:]
        if flags.FLAGS["help"].value:
            return rest
        if commands and words[:1] not in [[command] for command in commands]:
            _fail(f"expected one of {', '.join(commands)}, got {' '.join(words) or 'nothing'}; --help shows examples")
        if len(words) < len(operands):
            _fail(f"expected {' '.join(operands)}, got {' '.join(words) or 'nothing'}; --help shows examples")
        if extra := words[bool(commands) + len(operands) :]:
            _fail(f"unexpected argument {extra[0]!r}; flags look like --name=value")
        return rest

    def guarded(argv: list[str]) -> None:
        enable_compilation_cache()
        try:
            distributed.start(preemptible=preemptible)
            main(*argv[1:])
        except VitarError as error:
            _fail(error)

    app.run(guarded, flags_parser=parse)


def enable_compilation_cache() -> None:
    """Caches programs that took at least half a second to compile in `COMPILATION_CACHE`, across runs.

    `JAX_COMPILATION_CACHE_DIR` sets another directory or gs:// URL; if it is empty, nothing is cached.
    `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` sets another threshold.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _missing_key(error: Exception, argv: Sequence[str]) -> str:
    """Returns the message for a flag that sets a key missing from the config, or an empty string for any other error."""
    cause = error.args[0] if isinstance(error, AttributeError) and error.args else error
    if not isinstance(cause, KeyError):
        return ""
    key = str(cause.args[0]).split("'")[1]  # ml_collections quotes the key
    files = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    hint = nearest(key, _keys(Registry("config").find(f"{files[-1]}:get_config")())) if files else ""
    return f"--config: unknown key {key!r}{hint}; flags can only change keys that the config file sets"


def _keys(config: ConfigDict) -> Iterator[str]:
    """Yields the keys of a config and of the configs inside it."""
    for key, value in config.items():
        yield key
        if isinstance(value, ConfigDict):
            yield from _keys(value)


def say(text: object) -> None:
    """Prints a line, in the main process only."""
    if distributed.is_main():
        print(text, flush=True)


def duration(seconds: float) -> str:
    """Formats seconds for people, in s or ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _fail(error: object) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
