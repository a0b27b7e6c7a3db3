"""A chat request in the engine, and its reply in OpenAI's form: whole, or as server-sent events."""

import asyncio
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from vitar_jax.episodes.episode import Episode
from vitar_jax.evaluation.report_episode import episode as report_episode
from vitar_jax.evaluation.report_masks import turn_masks
from vitar_jax.runtime.endpoint import data_url
from vitar_jax.serve.engine_thread import Progress, Report, Seat
from vitar_jax.serve.requests import ChatRequest, RequestError

if TYPE_CHECKING:
    from vitar_jax.serve.app import Server


class Playing:
    """A request whose episodes are begun. Call one of `reply` and `events` once, then `close`."""

    def __init__(self, server: "Server", request: Request, asked: ChatRequest, episodes: Sequence[Episode], arrived: float):
        self._server, self._request, self._asked, self._episodes, self._arrived = server, request, asked, episodes, arrived
        self._prompt = episodes[0].token_ids[:]
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": server.config.model}
        self._completed = 0  # tokens
        self._news: asyncio.Queue[tuple[int, Progress | BaseException]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def report(number: int) -> Report:
            def put(news: Progress | BaseException) -> None:
                with suppress(RuntimeError):  # the loop is closed, because the server has ended
                    loop.call_soon_threadsafe(self._news.put_nowait, (number, news))

            return put

        self._seats = [Seat(episode, asked.stop, report(number)) for number, episode in enumerate(episodes)]

    def close(self) -> None:
        """Cancels the episodes that have not ended, and lets others begin."""
        for seat in self._seats:
            self._server.engine.cancel(seat)
        self._server.closed(len(self._seats), self._arrived, len(self._prompt), self._completed)

    async def reply(self) -> dict[str, Any]:
        """Returns the body of the whole reply."""
        choices = [_Choice() for _ in self._episodes]
        async for number, progress in self._play():
            choice = choices[number]
            choice.text += progress.text
            choice.token_ids += progress.token_ids
            choice.logprobs += progress.logprobs
            choice.finish_reason = progress.finish_reason
            if self._asked.protocol:
                choice.events += await self._episode_events(number, progress)
        return {
            **self._head,
            "object": "chat.completion",
            **self._prompt_ids(),
            "choices": [self._choice(number, choice) for number, choice in enumerate(choices)],
            "usage": self._usage(),
        }

    def _choice(self, number: int, choice: "_Choice") -> dict[str, Any]:
        episode = self._episodes[number]
        text = (episode.predicted_answer or "") if self._asked.protocol else choice.text
        value = {"index": number, "message": {"role": "assistant", "content": text, "refusal": None}}
        value |= {"finish_reason": choice.finish_reason, **self._tokens(episode, choice.token_ids, choice.logprobs)}
        return value | ({"events": choice.events} if self._asked.protocol else {})

    async def events(self) -> AsyncIterator[str]:
        """Yields the reply as server-sent events. If an error occurs, it is the last event."""
        try:
            for number in range(len(self._episodes)):
                first = {} if number else self._prompt_ids()
                yield self._chunk(number, {"role": "assistant", "content": ""}, **first)
            async for number, progress in self._play():
                episode, reason, text = self._episodes[number], progress.finish_reason or None, progress.text
                if self._asked.protocol:
                    for event in await self._episode_events(number, progress):
                        yield self._chunk(number, {}, event=event)
                    text = (episode.predicted_answer or "") if reason else ""
                more = self._tokens(episode, progress.token_ids, progress.logprobs)
                yield self._chunk(number, {"content": text} if text else {}, reason, more)
            if self._asked.include_usage:
                yield _event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except RequestError as error:
            yield _event(error.to_json())

    async def _play(self) -> AsyncIterator[tuple[int, Progress]]:
        """Plays the episodes, and yields their progress.

        Raises:
          RequestError: If the time limit is exceeded, or the engine has failed.
          ClientDisconnect: If the client has disconnected.
        """

        async def watch() -> None:
            while (await self._request.receive())["type"] != "http.disconnect":
                pass
            self._news.put_nowait((0, ClientDisconnect()))

        server, left, watcher = self._server, len(self._seats), asyncio.create_task(watch())
        try:
            for seat in self._seats:
                server.engine.submit(seat)
            while left:
                async with asyncio.timeout(self._arrived + server.config.seconds - time.monotonic()):
                    number, news = await self._news.get()
                if isinstance(news, ClientDisconnect):
                    raise news
                if isinstance(news, BaseException):
                    server.failed()
                    raise RequestError(500, "the engine has failed", code="engine_failed") from news
                if not self._completed:
                    server.metrics.first.observe(time.monotonic() - self._arrived)
                self._completed += len(news.token_ids)
                left -= bool(news.finish_reason)
                yield number, news
        except TimeoutError:
            raise RequestError(504, f"the reply took longer than {server.config.seconds:g} seconds", code="timeout") from None
        finally:
            watcher.cancel()

    def _chunk(self, number: int, delta: Any, reason: str | None = None, more: Mapping[str, Any] = {}, **extra: Any) -> str:
        choice = {"index": number, "delta": delta, "finish_reason": reason, **more}
        return _event({**self._head, "object": "chat.completion.chunk", **extra, "choices": [choice]})

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": self._prompt} if self._asked.return_token_ids else {}

    def _tokens(self, episode: Episode, token_ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, Any]:
        """Returns the fields of a choice's tokens that the request asks for, including the token that ended it."""
        fields: dict[str, Any] = {}
        if self._asked.logprobs:
            pieces = zip(episode.processor.chat.pieces(token_ids), logprobs, strict=True)
            fields["logprobs"] = {"content": [_logprob(*piece) for piece in pieces]}
        return fields | ({"token_ids": list(token_ids)} if self._asked.return_token_ids else {})

    async def _episode_events(self, number: int, progress: Progress) -> list[dict[str, Any]]:
        """Returns the events of an episode: text as it is written, turns with boxes and images of their tools, and the end.

        A turn with masks also has `shown_masks`, in which a report shows them.
        """
        events: list[dict[str, Any]] = [{"type": "text", "text": progress.text}] if progress.text else []
        if progress.turn is not None:
            shown = progress.image and await asyncio.to_thread(data_url, progress.image)
            event = {"type": "turn", **progress.turn.to_json(), "image_url": shown}
            if progress.turn.masks:
                episode = self._episodes[number]
                event["shown_masks"] = turn_masks(episode.token_ids, progress.turn, episode.processor.chat.pieces)
            events.append(_without_nan(event))
        if progress.finish_reason:
            episode = self._episodes[number]
            end = {"type": "end", "predicted_answer": episode.predicted_answer, "end_reason": episode.end_reason}
            events.append(end | (await asyncio.to_thread(self._keep, episode) if self._asked.store else {}))
        return events

    def _keep(self, episode: Episode) -> dict[str, Any]:
        """Keeps the record of an ended episode. Returns it as a report shows it, without tokens and pixels."""
        record = self._server.player.record(episode)
        self._server.kept.add(self._head["id"], record)
        view = report_episode(record, None, "", None, episode.processor.chat.pieces)
        return {"episode": _without_nan(view | {"tokens": None})}

    def _usage(self) -> dict[str, int]:
        prompt, completed = len(self._prompt), self._completed
        return {"prompt_tokens": prompt, "completion_tokens": completed, "total_tokens": prompt + completed}


@dataclasses.dataclass
class _Choice:
    """A reply as it grows."""

    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    events: list[Any] = dataclasses.field(default_factory=list)
    finish_reason: str = ""


class EventStream(StreamingResponse):
    """Server-sent events. Closes the request even if the client disconnects before the first event."""

    def __init__(self, playing: Playing):
        super().__init__(playing.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._playing = playing

    async def __call__(self, *connection: Any) -> None:
        try:
            with suppress(ClientDisconnect):
                await super().__call__(*connection)
        finally:
            self._playing.close()


def _without_nan(value: Any) -> Any:
    """Returns JSON values with null for NaN and infinity, which a model may write."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"
