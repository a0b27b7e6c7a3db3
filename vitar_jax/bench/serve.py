"""Benchmark of the server against `transformers serve` and against the offline player, with the same weights and requests.

Clients send requests with an image one after another, at several numbers of clients, and read the streamed replies. The two
servers are processes of their own, and are timed alternately. All replies are greedy and of at most `tokens` tokens.
"""

import contextlib
import dataclasses
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from PIL import Image

from vitar_jax.bench.pairs import Disagreement, Pair, Row, run_pair
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import ConfigError
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.endpoint import message

TARGETS = {8: 2.0}  # minimum speed relative to `transformers serve`, by the number of clients
OFFLINE_TARGET = 0.9  # minimum share of the offline player's speed
START_SECONDS = 600  # maximum time in which a server must start
SYSTEM = "You are an assistant for medical images."
QUESTION = "Describe what you see, and where."
SIDES = (96, 256)  # minimum and maximum side of the images (pixels)


@dataclasses.dataclass(frozen=True)
class Replies:
    """What a run of requests measured.

    Attributes:
      first: Seconds from sending a request to the first text of its reply, one entry per request.
      prompt, completion: Number of tokens of all prompts and replies, as the server counts them.
    """

    first: tuple[float, ...]
    prompt: int
    completion: int


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A running server.

    Attributes:
      name: Name for people.
      url: Base URL, without /v1.
      model: Name of the model in requests.
    """

    name: str
    url: str
    model: str

    def send(self, bodies: Sequence[dict[str, Any]], clients: int) -> Replies:
        """Sends all requests, each client one at a time, and reads their replies to the end.

        Raises:
          RuntimeError: If a reply is not a stream of chat completions that ends.
        """
        http = urllib3.PoolManager(maxsize=clients, timeout=START_SECONDS, retries=False)
        encoded = [json.dumps(body | {"model": self.model}).encode() for body in bodies]
        with ThreadPoolExecutor(clients) as pool:
            replies = list(pool.map(lambda body: self._read(http, body), encoded))
        firsts, usages = zip(*replies, strict=True)
        return Replies(firsts, *(sum(usage[f"{kind}_tokens"] for usage in usages) for kind in ("prompt", "completion")))

    def _read(self, http: urllib3.PoolManager, body: bytes) -> tuple[float, dict[str, int]]:
        began, first, usage = time.perf_counter(), None, None
        headers = {"Content-Type": "application/json"}
        response = http.request("POST", f"{self.url}/v1/chat/completions", body=body, headers=headers, preload_content=False)
        lines = []
        for line in response:
            lines.append(line)
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            spoken = any(one["delta"].get("content") or one.get("event") or "event" in chunk for one in chunk["choices"])
            first = time.perf_counter() - began if spoken and first is None else first
        if response.status != 200 or usage is None:
            said = b"".join(lines)[-300:].decode(errors="replace")
            raise RuntimeError(f"{self.name}: got no whole reply (status {response.status}: {said})")
        return time.perf_counter() - began if first is None else first, usage


def samples(count: int) -> list[Sample]:
    """Returns questions about one image of noise each, of different sizes."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(*SIDES, (count, 2))
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]
    return [Sample(str(number), QUESTION, (image,), "") for number, image in enumerate(images)]


def bodies(asked: Sequence[Sample], tokens: int, **fields: Any) -> list[dict[str, Any]]:
    """Returns the requests for samples, without the model."""
    common = {"max_tokens": tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **fields}
    system = [] if "protocol" in fields else [message("system", SYSTEM)]
    return [{"messages": [*system, message("user", one.question, one.images)]} | common for one in asked]


def why_not_transformers_serve(checkpoint: Path) -> str:
    """Returns why `transformers serve` cannot serve a checkpoint here, or an empty string."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        return "its packages are missing: pip install 'transformers[serving]'"
    try:
        from transformers import AutoProcessor

        AutoProcessor.from_pretrained(checkpoint)
    except Exception as error:  # transformers raises many types, also for a package that is missing
        return " ".join(str(error).split(".")[0].split())
    return ""


@contextlib.contextmanager
def running(name: str, model: str, command: Sequence[str], port: int) -> Iterator[Endpoint]:
    """Starts a server as a process, and yields it once it answers.

    Raises:
      ConfigError: If the process ends, or does not answer in time.
    """
    url, http = f"http://127.0.0.1:{port}", urllib3.PoolManager(retries=False)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    if http.request("GET", f"{url}/health").status == 200:
                        break
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise ConfigError(f"{name}: did not start ({log.read()[-500:]})")
                time.sleep(0.1)
            yield Endpoint(name, url, model)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start_ours(checkpoint: Path, slots: int) -> contextlib.AbstractContextManager[Endpoint]:
    port = free_port()
    flags = [f"--checkpoint={checkpoint}", "--model=bench", f"--port={port}", f"--slots={slots}", "--queue=1024"]
    return running("vitar_jax.serve", "bench", [sys.executable, "-m", "vitar_jax.serve", *flags], port)


def start_peer(checkpoint: Path, threads: int, say: Callable[[str], None]) -> contextlib.AbstractContextManager[Endpoint]:
    """Starts `transformers serve`, or the server over `generate` if it cannot run here, and says why."""
    port = free_port()
    if reason := why_not_transformers_serve(checkpoint):
        say(f"peer: transformers' generate behind Starlette, because transformers serve cannot run here: {reason}")
        module = [sys.executable, "-m", "vitar_jax.bench.generate_server", str(checkpoint), str(port), str(threads)]
        return running("generate server", "bench", module, port)
    say("peer: transformers serve")
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(checkpoint.resolve())]
    command += ["--device=auto", "--dtype=float32", "--host=127.0.0.1", f"--port={port}"]
    return running("transformers serve", str(checkpoint.resolve()), command, port)


def measure(
    checkpoint: Path,
    *,
    clients: Sequence[int],
    count: int,
    tokens: int,
    threads: int,
    rounds: int,
    say: Callable[[str], None],
) -> tuple[list[Row], dict[str, Any]]:
    """Times both servers and the offline player.

    Args:
      clients: Numbers of clients at a time.
      count: Number of requests per timing.
      tokens: Maximum number of tokens of a turn.
      threads: Number of CPU threads of each server.
      rounds: Number of timings per side.

    Returns:
      The rows, whose items are requests or episodes, and by name the median seconds to the first text, and tokens per reply.

    Raises:
      Disagreement: If the servers make prompts of different lengths.
    """
    asked, rows, facts = samples(count), [], {}
    with start_ours(checkpoint, max(clients)) as ours, start_peer(checkpoint, threads, say) as peer:
        plain = bodies(asked, tokens)
        facts["peer"] = peer.name
        prompts = [side.send(plain[:1], 1).prompt for side in (ours, peer)]
        if prompts[0] != prompts[1]:
            raise Disagreement(f"{checkpoint}: got a prompt of {prompts[0]} tokens, expected the peer's {prompts[1]}")
        first = Player.load(checkpoint)
        protocol = first.protocol
        whole = bodies(asked, tokens, protocol=protocol.name)
        spoken = Protocol("plain", system=SYSTEM, parser="plain")
        for number in clients:
            offline = Player.load(checkpoint, slots=number)
            heard: dict[str, list[Replies]] = {ours.name: [], peer.name: []}

            def sending(side: Endpoint, requests: Any, clients: int = number, heard: Any = heard) -> Callable[[], None]:
                return lambda: heard.setdefault(side.name, []).append(side.send(requests, clients))

            def playing(rules: Protocol, player: Player = offline) -> Callable[[], None]:
                return lambda: play(player, rules, asked, tokens)

            of = f"{number} clients" if number > 1 else "1 client"
            pairs = [
                Pair(f"requests, {of}", checkpoint.name, sending(ours, plain), sending(peer, plain), TARGETS.get(number)),
                Pair(f"requests, {of}", checkpoint.name, sending(ours, plain), playing(spoken), OFFLINE_TARGET),
                Pair(f"episodes, {of}", checkpoint.name, sending(ours, whole, heard={}), playing(protocol), OFFLINE_TARGET),
            ]
            for pair, against in zip(pairs, (peer.name, "offline player", "offline player"), strict=True):
                rows.append(run_pair(dataclasses.replace(pair, items=count, peer_settings=against), rounds))
                say(f"{pair.name}: {rows[-1].ratio:.2f} times the {against}")
            for name, replies in heard.items():
                firsts = [one for reply in replies for one in reply.first]
                per_reply = replies[-1].completion / count
                facts[f"{name}, {of}"] = {"first_text_seconds": statistics.median(firsts), "tokens_per_reply": per_reply}
    return rows, facts


def play(player: Player, rules: Protocol, asked: Sequence[Sample], tokens: int) -> None:
    """Plays the samples offline, with turns of at most as many tokens as the server's."""
    limits = dataclasses.replace(player.engine.limits, turn_tokens=tokens)
    begun = (Episode(sample, rules, player.processor, limits, Sampling(temperature=0.0)) for sample in asked)
    for _ in player.play([one] for one in begun):
        pass


def text(facts: dict[str, Any]) -> list[str]:
    """Returns lines about the time to the first text and the lengths of replies."""
    return [
        f"{name}: first text after {1000 * found['first_text_seconds']:.0f} ms (median), {found['tokens_per_reply']:.1f} tokens"
        for name, found in facts.items()
        if isinstance(found, dict)
    ]
