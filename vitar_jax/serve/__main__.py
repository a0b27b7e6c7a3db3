"""Serves a checkpoint to clients of OpenAI's chat completions API. Needs the extra `serve`.

Examples:
  python -m vitar_jax.serve --checkpoint=runs/quickstart/grpo/model
  python -m vitar_jax.serve --checkpoint=DIR --host=0.0.0.0 --api_key_variable=VITAR_API_KEY --files=images

  client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
  client.chat.completions.create(model="grpo", messages=[...], extra_body={"protocol": "zoom"})

/v1/chat/completions adds no system message to the messages of a request. Images are data URLs, or files below --files; the
server fetches no URL. The temperature is 0 unless a request sets it. With `protocol`, a request plays the whole episode of a
question: the reply is its answer, and `event` (`events`, without streaming) has its turns, their boxes and the images that
tools returned. With `store` too, the server keeps the records of the last requests at /episodes/ID/trajectories.zip and
/episodes/ID/report, where ID is that of the reply.

A browser finds a page at /, which asks about an image and shows the episode as it is played. The server also has /v1/models,
/health, /metrics (Prometheus) and /openapi.json, which says what requests may hold. Requests share --slots and are batched
continuously. A client that disconnects frees its slot. On SIGTERM the server finishes the requests that it has, and then exits.
"""

import logging
import os
import signal
import sys
from pathlib import Path

import jax
from absl import flags

from vitar_jax.errors import ConfigError
from vitar_jax.rollout.player import Player
from vitar_jax.runtime import cli
from vitar_jax.runtime.help import subject
from vitar_jax.runtime.user_errors import fail

try:
    import uvicorn

    from vitar_jax.serve.app import Server, ServerConfig
except ModuleNotFoundError as error:
    fail(f"serve: {error}; install the extra `serve`")

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def api_key(file: str, variable: str) -> str:
    """Returns the key in a file, else in an environment variable, or an empty string if neither is named.

    Raises:
      ConfigError: If the file cannot be read, the variable is not set, or the key is empty.
    """
    if not file and not variable:
        return ""
    try:
        key = Path(file).read_text().strip() if file else os.environ.get(variable, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api_key_file={file}: cannot be read ({error})") from error
    if not key:
        raise ConfigError(f"--api_key_file={file}: is empty" if file else f"--api_key_variable={variable}: is not set")
    return key


def main() -> None:
    given = flags.FLAGS
    if given.checkpoint is None:
        raise ConfigError("serve: expected --checkpoint=DIR; --help shows examples")
    if jax.process_count() > 1:
        raise ConfigError("serve: got several processes, expected one; a server runs in one process")
    files = Path(given.files) if given.files else None
    if files and not files.is_dir():
        raise ConfigError(f"--files={files}: is not a folder")
    key = api_key(given.api_key_file, given.api_key_variable)
    player = Player.load(
        given.checkpoint, protocol=given.protocol, slots=given.slots, tensor=given.tensor, **cli.loading_flags()
    )
    player.start()
    parts = [part for part in Path(given.checkpoint).parts if part not in ("model", "best", "/")]
    config = ServerConfig(
        given.model or (parts[-1] if parts else "checkpoint"),
        key,
        files,
        body_bytes=given.max_body_bytes,
        image_pixels=given.max_image_pixels,
        queue=given.queue,
        seconds=given.max_seconds,
    )
    server = Server(player, config, failed=lambda: setattr(listener, "should_exit", True))
    listener = uvicorn.Server(
        uvicorn.Config(
            server.app,
            host=given.host,
            port=given.port,
            log_level=logging.WARNING,
            lifespan="on",
            timeout_graceful_shutdown=int(given.max_seconds) + 1,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn handles both, and afterwards calls what was here before
        signal.signal(number, lambda *_: None)
    root = f"http://{given.host}:{given.port}"
    cli.say(f"model {config.model}: serving at {root}/v1, with a page at {root}/")
    if given.host not in _LOOPBACK and not key:
        cli.say("note: anyone who can reach this address can use the server; set --api_key_file or --api_key_variable")
    listener.run()
    if server.engine.failure:
        sys.exit(1)


def define_flags() -> None:
    with subject("Address and access"):
        flags.DEFINE_string("model", "", "Name of the model in requests (default: the stage's or the checkpoint's).")
        flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
        flags.DEFINE_integer("port", 8000, "Port to listen at.", lower_bound=1, upper_bound=65535)
        flags.DEFINE_string("files", "", "Folder whose files requests may name (default: none, so images are data URLs).")
        flags.DEFINE_string("api_key_file", "", "File with the API key that requests must send (default: no key).")
        flags.DEFINE_string("api_key_variable", "", "Environment variable with the API key, instead of --api_key_file.")
    with subject("Limits"):
        flags.DEFINE_integer("max_body_bytes", 64 << 20, "Maximum size of a request (bytes).", lower_bound=1)
        flags.DEFINE_integer("max_image_pixels", 50_000_000, "Maximum size of an image before it is resized.", lower_bound=1)
        flags.DEFINE_float("max_seconds", 600.0, "Maximum time of a request (seconds).", lower_bound=0.001)
        flags.DEFINE_integer("queue", 256, "Maximum number of replies that wait for a slot.", lower_bound=0)
    with subject("Loading a checkpoint"):
        flags.DEFINE_string("checkpoint", None, "Checkpoint with its tokenizer: a directory, a gs:// URL or a hub repository.")
        flags.DEFINE_string(
            "protocol", "", "Protocol whose turns set how many images an episode may have (default: the checkpoint's)."
        )
        flags.DEFINE_integer("slots", 16, "Number of replies that the model writes at a time.", lower_bound=1)
        flags.DEFINE_integer("tensor", 1, "Number of devices that share one copy of the weights.")
        cli.define_loading_flags()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
