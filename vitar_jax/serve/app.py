"""The server's HTTP interface, an ASGI application: authentication, limits, and OpenAI's form of replies."""

import asyncio
import dataclasses
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.endpoint import data_url
from vitar_jax.serve.conversation import Beginner
from vitar_jax.serve.engine_thread import EngineThread
from vitar_jax.serve.kept import KeptEpisodes, as_report, as_zip
from vitar_jax.serve.metrics import Metrics
from vitar_jax.serve.openapi import openapi
from vitar_jax.serve.page import HEADERS, INDEX, page_files
from vitar_jax.serve.playing import EventStream, Playing
from vitar_jax.serve.requests import ChatRequest, RequestError, RequestLimits

_PREVIEW = (1024, 1024)  # largest width and height of a preview
LEFT = 499  # the status of a request whose client has disconnected, for the metrics


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
      model: Name of the model.
      key: API key that requests must send. Empty means none.
      files: Folder of files that requests may name. None means no file.
      body_bytes: Maximum size of a request's body.
      image_pixels: Maximum size of an image before it is resized.
      queue: Maximum number of episodes that wait for a slot.
      seconds: Maximum time of a request, including its time in the queue.
    """

    model: str
    key: str = ""
    files: Path | None = None
    body_bytes: int = 64 << 20
    image_pixels: int = 50_000_000
    queue: int = 256
    seconds: float = 600.0


class Server:
    """A server of one player. `app` is its ASGI application, whose lifespan runs the engine's thread.

    Args:
      failed: Called once if the engine has failed, after which all requests fail.
    """

    def __init__(self, player: Player, config: ServerConfig, failed: Callable[[], None] = lambda: None):
        self.config, self.metrics = config, Metrics()
        self.engine = EngineThread(player.scheduler)
        self.player, self._beginner = player, Beginner(player, config.files, config.image_pixels)
        self.failed, self._created = failed, int(time.time())
        self.kept, self._files = KeptEpisodes(2 * config.image_pixels), page_files()
        slots, limits = player.engine.config.slots, player.engine.limits
        self._limits = RequestLimits(limits.tokens, limits.images, slots, player.processor.images.max_pixels)
        self._room = slots + config.queue  # episodes that may begin
        self.metrics.slots.set(slots)
        handlers = {HTTPException: _http_error, RequestError: _request_error, Exception: _bug}
        routes = [
            self._route("/v1/chat/completions", self._chat, "POST"),
            self._route("/v1/models", self._models),
            self._route("/v1/models/{model:path}", self._one_model),
            self._route("/health", self._health, key=False),
            self._route("/metrics", self._metrics),
            self._route("/openapi.json", self._openapi, key=False),
            # A browser sends no key when it opens a page or follows a link. The id of a kept episode is a secret by itself.
            self._route("/", self._page, key=False),
            self._route("/page/preview", self._preview, "POST"),
            self._route("/page/{name}", self._page, key=False),
            self._route("/episodes/{id}/trajectories.zip", self._zip, key=False),
            self._route("/episodes/{id}/report", self._report, key=False),
        ]
        self.app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.engine.start()
        yield
        self.engine.close()

    def _route(self, path: str, answer: Callable[[Request], Awaitable[Response]], method: str = "GET", *, key: bool = True):
        """Returns a route that checks the key and counts requests."""

        async def endpoint(request: Request) -> Response:
            status = 500
            try:
                if key:
                    self._check_key(request)
                response = await answer(request)
                status = response.status_code
                return response
            except (RequestError, HTTPException) as error:
                status = error.status if isinstance(error, RequestError) else error.status_code
                raise
            except ClientDisconnect:
                status = LEFT
                return Response(status_code=LEFT)
            finally:
                self.metrics.requests.labels(path, status).inc()

        return Route(path, endpoint, methods=[method])

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.config.key and not hmac.compare_digest(given.encode(), self.config.key.encode()):
            raise RequestError(401, "the Authorization header has no valid key", code="invalid_api_key")

    async def _models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def _one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["model"])
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        model = {"id": self.config.model, "object": "model", "created": self._created, "owned_by": "vitar_jax"}
        player = self.player
        model |= {"max_model_len": self._limits.tokens, "protocols": sorted(player.protocols)}
        return model | {"protocol": player.protocol.name, "options_only": player.options_only}

    def _check_model(self, name: str) -> None:
        if name != self.config.model:
            raise RequestError(
                404, f"model: got {name[:100]!r}, expected {self.config.model!r}", param="model", code="model_not_found"
            )

    async def _health(self, _: Request) -> Response:
        if self.engine.failure:
            raise RequestError(503, "the engine has failed", code="engine_failed")
        return _json({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _chat(self, request: Request) -> Response:
        arrived = time.monotonic()
        self._check_room(1)
        pool, loop = self.player.pool, asyncio.get_running_loop()
        body = await self._body(request)
        asked = await loop.run_in_executor(pool, ChatRequest.read, body, self._limits)
        self._check_model(asked.model)
        self._check_room(asked.n)
        self.metrics.episodes.inc(asked.n)
        self._room -= asked.n
        playing = None
        try:
            episodes = await loop.run_in_executor(pool, self._beginner.begin, asked)
            playing = Playing(self, request, asked, episodes, arrived)
            if asked.stream:
                return EventStream(playing)
            return _json(await playing.reply())
        finally:
            if playing is None:
                self._release(asked.n)
            elif not asked.stream:
                playing.close()

    async def _openapi(self, _: Request) -> Response:
        return _json(openapi(self.config.model, sorted(self.player.protocols), self._limits, key=bool(self.config.key)))

    async def _page(self, request: Request) -> Response:
        name = request.path_params.get("name", INDEX)
        if name not in self._files:
            raise HTTPException(404)
        content, kind = self._files[name]
        return Response(content, headers=HEADERS, media_type=kind)

    async def _preview(self, request: Request) -> Response:
        """Answers with an image as this server opens it, for formats that browsers do not read."""
        body = await self._body(request, "application/octet-stream")

        def preview() -> dict[str, Any]:
            image = open_image(body, name="image", max_pixels=self.config.image_pixels, single=True)
            width, height = image.size
            image.thumbnail(_PREVIEW)
            return {"width": width, "height": height, "image_url": data_url(image)}

        try:
            return _json(await asyncio.get_running_loop().run_in_executor(self.player.pool, preview))
        except ImageError as error:
            raise RequestError(400, str(error), code="invalid_image") from error

    async def _zip(self, request: Request) -> Response:
        return Response(await asyncio.to_thread(as_zip, self._kept(request)), media_type="application/zip")

    async def _report(self, request: Request) -> Response:
        pieces = self.player.processor.chat.pieces
        page = await asyncio.to_thread(as_report, self._kept(request), self.config.model, pieces)
        return Response(page, headers={"Referrer-Policy": "no-referrer"}, media_type="text/html")

    def _kept(self, request: Request) -> Sequence[Trajectory]:
        if not (found := self.kept.find(request.path_params["id"])):
            raise RequestError(404, "the server does not keep this episode, or no longer", code="not_found")
        return found

    def _check_room(self, episodes: int) -> None:
        if self.engine.failure:
            raise RequestError(503, "the engine has failed", code="engine_failed")
        if episodes > self._room:
            raise RequestError(429, "the queue is full; try again later", code="queue_full")

    def closed(self, episodes: int, arrived: float, prompt: int, completion: int) -> None:
        """Counts a finished request in the metrics and makes room for other episodes."""
        self._release(episodes)
        self.metrics.seconds.observe(time.monotonic() - arrived)
        self.metrics.tokens.labels("prompt").inc(prompt)
        self.metrics.tokens.labels("completion").inc(completion)

    def _release(self, episodes: int) -> None:
        """Lets other episodes begin."""
        self.metrics.episodes.dec(episodes)
        self._room += episodes

    async def _body(self, request: Request, expected: str = "application/json") -> bytes:
        most = self.config.body_bytes
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != expected:  # browsers send some other types to another site without a preflight
            raise RequestError(415, f"expected Content-Type: {expected}", code="unsupported_media_type")
        body = bytearray()
        try:
            async with asyncio.timeout(self.config.seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise RequestError(413, f"the body has more than the {most} bytes allowed", code="body_too_large")
        except TimeoutError:
            raise RequestError(408, "the body took too long to arrive", code="timeout") from None
        return bytes(body)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, "application/json")


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 413: {"Connection": "close"}}
    return _json(error.to_json(), error.status, headers.get(error.status))


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers for a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    said = RequestError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}", code="not_found")
    return _json(said.to_json(), error.status_code, error.headers)


async def _bug(_: Request, error: Exception) -> Response:
    del error  # the server logs it
    return _json(RequestError(500, "the server has failed on this request", code="internal_error").to_json(), 500)
