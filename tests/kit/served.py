"""Our server in this process, at a free port, with a player whose turns take several calls of the device."""

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from openai import OpenAI

from tests.kit.processes import free_port
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.player import Player
from vitar_jax.serve.app import Server, ServerConfig

MODEL = "micro"


def load(checkpoint: Path, *, slots: int = 4, chunk: int = 4) -> Player:
    player = Player.load(checkpoint, slots=slots)
    engine, config = player.engine, dataclasses.replace(player.engine.config, chunk=chunk, quorum=1)
    banned = np.asarray(engine.banned)
    return dataclasses.replace(
        player, engine=Engine(config, engine.processor, engine.limits, banned, matmul_precision="highest")
    )


@dataclasses.dataclass(frozen=True)
class Served:
    """A running server, its root URL, and a client of it."""

    server: Server
    url: str
    client: OpenAI


@contextmanager
def serving(player: Player, key: str = "", **config: Any) -> Iterator[Served]:
    """Yields a server that runs until the end of the `with` block."""
    server, port = Server(player, ServerConfig(MODEL, key, **config)), free_port()
    listener = uvicorn.Server(uvicorn.Config(server.app, port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        while not listener.started:
            assert thread.is_alive()
            thread.join(0.005)
        url = f"http://127.0.0.1:{port}"
        with OpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0) as client:
            yield Served(server, url, client)
    finally:
        listener.should_exit = True
        thread.join()
