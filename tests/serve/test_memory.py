"""Memory of a server over many requests."""

import gc
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

from tests.kit.images import noise
from tests.kit.processes import status
from tests.kit.served import MODEL, load, serving
from vitar_jax.runtime.endpoint import data_url


@pytest.fixture
def collecting_as_a_server() -> Iterator[None]:
    """Collects garbage as often as Python does by itself. Other tests collect rarely."""
    usual = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*usual)


@pytest.mark.sweep
@pytest.mark.usefixtures("collecting_as_a_server")
def test_memory_is_flat(checkpoint: Path) -> None:
    """Over 2,000 requests, each with another picture and text, after the first 500 of them."""
    http = urllib3.PoolManager(maxsize=16, block=True)

    def ask(number: int) -> None:
        picture = {"type": "image_url", "image_url": {"url": data_url(noise(60, 50, seed=number))}}
        content = [picture, {"type": "text", "text": f"{number} {number * 7919}"}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        reply = http.request("POST", f"{served.url}/v1/chat/completions", json=body)
        assert reply.status == 200 and json.loads(reply.data)["choices"]

    with serving(load(checkpoint)) as served, ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(500)))
        gc.collect()
        before = status("VmRSS")
        list(threads.map(ask, range(500, 2000)))
        gc.collect()
        grown = status("VmRSS") - before
    assert grown < 20 << 20, f"{grown / 2**20:.1f} MiB"
