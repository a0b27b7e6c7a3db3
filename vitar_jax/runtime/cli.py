"""Shared by all commands: absl flags, user errors as one line with exit code 2, and the compilation cache."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from jax._src import cloud_tpu_init, xla_bridge

from vitar_jax.errors import ConfigError, VitarError
from vitar_jax.runtime import config_flag, distributed
from vitar_jax.runtime.help import help_text
from vitar_jax.runtime.user_errors import fail, one_line_errors

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
        if "--help" in argv[1:]:
            print(help_text(sys.modules["__main__"].__doc__ or ""))
            sys.exit()
        try:
            argv = config_flag.arguments(argv)
            rest = flags.FLAGS(argv)
            flags.FLAGS.validate_all_flags()
        except (flags.Error, VitarError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            fail(config_flag.wrong_key(argv) or error)
        words = rest[1:]
        if commands and words[:1] not in [[command] for command in commands]:
            fail(f"expected one of {', '.join(commands)}, got {' '.join(words) or 'nothing'}; --help shows examples")
        if len(words) < len(operands):
            fail(f"expected {' '.join(operands)}, got {' '.join(words) or 'nothing'}; --help shows examples")
        if extra := words[bool(commands) + len(operands) :]:
            fail(f"unexpected argument {extra[0]!r}; flags look like --name=value")
        return rest

    def guarded(argv: list[str]) -> None:
        enable_compilation_cache()
        ignore_absent_devices()
        with one_line_errors():
            distributed.start(preemptible=preemptible)
            main(*argv[1:])

    app.run(guarded, flags_parser=parse)


def define_loading_flags() -> None:
    """Defines the flags that change how a checkpoint is read; `Player.load` and `Checkpoint.open` have the same arguments."""
    flags.DEFINE_string("attention", "xla", "Attention back end: xla, splash (TPU) or cudnn (NVIDIA GPU with bfloat16).")
    flags.DEFINE_integer(
        "max_pixels", 0, "Resize larger images to this many pixels (default: the checkpoint's own budget).", lower_bound=0
    )
    flags.DEFINE_list(
        "stop_tokens", None, "Tokens that end a turn, in addition to <|im_end|> (default: the checkpoint's eos tokens)."
    )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of weights and computation.")


def loading_flags() -> dict[str, Any]:
    """Returns the values of `define_loading_flags`, by the name of the argument."""
    return {name: flags.FLAGS[name].value for name in ("attention", "max_pixels", "stop_tokens", "dtype")}


def define_endpoint_flags(frames: Sequence[str]) -> None:
    """Defines the flags of a model that others serve; `EndpointPlayer.open` has the same arguments.

    Args:
      frames: Names of the frames that boxes can be in.
    """
    flags.DEFINE_string("endpoint", "", "Endpoint of chat completions to play, for example http://127.0.0.1:8000/v1.")
    flags.DEFINE_string("model", "", "Name of the endpoint's model (required with --endpoint).")
    flags.DEFINE_string("key_variable", "OPENAI_API_KEY", "Environment variable with the endpoint's API key.")
    flags.DEFINE_string(
        "request", "{}", "Fields of the endpoint's requests, as a JSON object merged into its defaults; null leaves one out."
    )
    flags.DEFINE_enum("frame", "", ["", *frames], "Frame in which the endpoint's model writes boxes (default: the protocol's).")
    flags.DEFINE_integer("concurrency", 8, "Number of episodes that the endpoint plays at a time.", lower_bound=1)
    flags.DEFINE_float("timeout", 120.0, "Time to wait for the endpoint (seconds).", lower_bound=0.001)
    flags.DEFINE_integer("retries", 5, "Number of retries of a failed request.", lower_bound=0)


_ENDPOINT = ("endpoint", "model", "key_variable", "request", "frame", "concurrency", "timeout", "retries")
_WEIGHTS = ("attention", "dtype", "stop_tokens", "slots", "tensor")


def endpoint_flags() -> dict[str, Any]:
    """Returns the values of `define_endpoint_flags`, by the name of the argument.

    Raises:
      ConfigError: If a flag is given that concerns the weights of a checkpoint.
    """
    if ignored := [name for name in _WEIGHTS if flags.FLAGS[name].present]:
        raise ConfigError(f"--{ignored[0]}: only without --endpoint, whose server has the weights")
    return {name: flags.FLAGS[name].value for name in _ENDPOINT}


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


def ignore_absent_devices() -> None:
    """Keeps JAX quiet about devices that this machine does not have. Call it before using devices.

    An installed libtpu prints a dozen lines if JAX starts it on a machine without a TPU, and no variable silences it. Compiling
    for a described TPU still works.
    """
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    if not cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" not in os.environ.get("JAX_PLATFORMS", ""):
        xla_bridge.register_backend_factory("tpu", _absent_tpu, fail_quietly=True)


def _absent_tpu() -> NoReturn:
    raise RuntimeError("this machine has no TPU")


def say(text: object) -> None:
    """Prints a line, in the main process only."""
    if distributed.is_main():
        print(text, flush=True)


def duration(seconds: float) -> str:
    """Formats seconds for people, in s or ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
