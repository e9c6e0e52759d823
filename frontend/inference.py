"""Serving one generation over HTTP: admission, cancellation, the stream or the whole answer, and the books."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

from dynamo.frontend.answer_extras import extras_of, wants_dry_run, worker_ids
from dynamo.frontend.metrics import FrontendMetrics, RequestRecord
from dynamo.frontend.mouths import Asked, Mouth
from dynamo.frontend.openai_answers import Choice
from dynamo.frontend.parsers.message import merged
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.prepared import Prepared
from dynamo.frontend.preprocess import unpack_token_ids
from dynamo.frontend.renderer import Renderer
from dynamo.frontend.routing_headers import RoutingHeaderReader, RoutingHeaders
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.frontend.sse import KeepAlive, SseStream
from dynamo.frontend.trace_headers import trace_headers
from dynamo.shared.errors import (
    ClientDisconnected,
    DynamoError,
    InternalError,
    Overloaded,
    ShuttingDown,
    UnsupportedMediaType,
)

log = logging.getLogger("dynamo.http")
access_log = logging.getLogger("dynamo.access")

JSON = b"content-type: application/json\r\n"
MAX_NOTED_UNKNOWN = 100
_JSON_TYPE = re.compile(r"\s*application/(?:[\w.+-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


R = TypeVar("R", contravariant=True)
P = TypeVar("P")


class RequestIds(NamedTuple):
    """`own` names the request here and at workers, `shown` is what the answer's x-request-id says."""

    own: str
    shown: str


Handler: TypeAlias = Callable[[Exchange, HeaderBlock, RequestIds], Awaitable[None]]
"""(exchange, headers every answer to it carries, ids of the request)"""


class Service(Protocol):
    """`endpoint` is its name in metrics; requests have `unknown_fields`."""

    endpoint: ClassVar[str]

    def decode(self, body: bytes) -> Any:
        """Raises InvalidRequest naming the field."""


class WholeService(Service, Protocol[R, P]):
    """An API whose answers come in one piece."""

    async def prepare(self, pipeline: Pipeline, request: R, record: RequestRecord, headers: RoutingHeaders) -> P: ...

    async def answer(self, pipeline: Pipeline, request: R, prepared: P, record: RequestRecord) -> bytes:
        """The body."""


S = TypeVar("S", bound=Service)
Answer: TypeAlias = Callable[[Exchange, HeaderBlock, S, Any, RequestRecord], Awaitable[None]]


class Inference:
    """Runs any mouth. `is_draining` refuses what is new; what runs may finish."""

    def __init__(
        self,
        pipeline: Pipeline,
        routing_headers: RoutingHeaderReader,
        metrics: FrontendMetrics,
        keep_alive: KeepAlive,
        max_concurrent_requests: int,
    ) -> None:
        self._pipeline = pipeline
        self._routing_headers = routing_headers
        self._metrics = metrics
        self._keep_alive = keep_alive
        self._max_concurrent_requests = max_concurrent_requests
        self._noted_unknown: set[str] = set()
        self.num_active = 0
        self.is_draining = False

    async def serve(self, mouth: Mouth[Any], exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        """Answers, or raises the DynamoError that is to be the answer."""
        await self._serve(mouth, self._answer, exchange, headers, ids)

    async def serve_whole(
        self, service: WholeService[Any, Any], exchange: Exchange, headers: HeaderBlock, ids: RequestIds
    ) -> None:
        """The same for an answer that comes in one piece."""
        await self._serve(service, self._answer_whole, exchange, headers, ids)

    async def _serve(
        self, service: S, answer: Answer[S], exchange: Exchange, headers: HeaderBlock, ids: RequestIds
    ) -> None:
        record = RequestRecord(ids.own, ids.shown, service.endpoint, perf_counter())
        _cancel_on_disconnect(exchange)
        self.num_active += 1
        try:
            self._admit(exchange)
            record.trace_headers = trace_headers(exchange)
            request = service.decode(await exchange.read_body())
            if request.unknown_fields:
                self._note_unknown(request.unknown_fields)
            await answer(exchange, headers, service, request, record)
        except DynamoError as error:
            record.error = error
            raise
        except asyncio.CancelledError:
            record.error = ClientDisconnected() if exchange.is_disconnected else ShuttingDown()
            raise
        except Exception:
            record.error = InternalError()
            raise
        finally:
            self.num_active -= 1
            self._metrics.end(record, perf_counter())
            if access_log.isEnabledFor(logging.DEBUG):
                _log_access(record, perf_counter())

    def _admit(self, exchange: Exchange) -> None:
        if self.is_draining:
            raise ShuttingDown("This gateway is shutting down; send the request to another one.")
        if self.num_active > self._max_concurrent_requests:
            raise Overloaded(f"This gateway already serves {self._max_concurrent_requests} requests; try again.")
        require_json(exchange)

    def _note_unknown(self, names: tuple[str, ...]) -> None:
        """Each name once in the life of the process: a client that sends one sends it always."""
        for name in names:
            if name not in self._noted_unknown and len(self._noted_unknown) < MAX_NOTED_UNKNOWN:
                self._noted_unknown.add(name)
                log.warning("a client sends the field %.80r, which is unknown here and has no effect", name)

    async def _answer_whole(
        self,
        exchange: Exchange,
        headers: HeaderBlock,
        service: WholeService[Any, Any],
        request: Any,
        record: RequestRecord,
    ) -> None:
        prepared = await service.prepare(self._pipeline, request, record, self._routing_headers.read(exchange))
        self._metrics.begin(record)
        exchange.respond(200, JSON + headers, await service.answer(self._pipeline, request, prepared, record))

    async def _answer(
        self,
        exchange: Exchange,
        headers: HeaderBlock,
        mouth: Mouth[Any],
        request: Asked,
        record: RequestRecord,
    ) -> None:
        record.is_stream = bool(request.stream)
        routing_headers = self._routing_headers.read(exchange)
        record.answer_id = routing_headers.answer_id
        batch = await mouth.prepare(self._pipeline, request, record, routing_headers)
        self._metrics.begin(record)
        created = int(time.time())
        if wants_dry_run(request.nvext):
            await self._answer_dry(exchange, headers, mouth, request, batch[0], record, created)
            return
        if (extras := extras_of(request.nvext, exchange)) is not None:
            extras.ask(batch, self._pipeline.block_size(batch[0]))
        if record.is_stream:
            renderer = mouth.renderer(request, record, created, extras)
            await self._stream(SseStream(exchange, headers, self._keep_alive), renderer, batch, record)
            return
        collector = Collector(len(batch))
        await self._pipeline.run(batch, record, collector)
        nvext, choices = None, collector.choices()
        if extras is not None:
            nvext, headers = extras.of_whole(record, choices[0]), headers + extras.headers(record)
        exchange.respond(200, JSON + headers, mouth.body(request, record, created, choices, nvext))

    async def _answer_dry(
        self,
        exchange: Exchange,
        headers: HeaderBlock,
        mouth: Mouth[Any],
        request: Asked,
        prepared: Prepared,
        record: RequestRecord,
        created: int,
    ) -> None:
        """Where the (first) prompt would go, and its tokens; nothing is generated, and nothing is placed."""
        placed = await self._pipeline.choose(prepared)
        nvext = {"worker_id": worker_ids(placed), "token_ids": unpack_token_ids(prepared.token_ids)}
        if not record.is_stream:
            exchange.respond(200, JSON + headers, mouth.body(request, record, created, [Choice()], nvext))
            return
        sse = SseStream(exchange, headers, self._keep_alive)
        sse.finish(mouth.renderer(request, record, created, None).unanswered(nvext))
        sse.close()

    async def _stream(self, sse: SseStream, renderer: Renderer, batch: list[Prepared], record: RequestRecord) -> None:
        try:
            await self._pipeline.run(batch, record, EventSink(sse, renderer))
            sse.finish(renderer.last())
        except ClientDisconnected:
            raise
        except Exception as failure:
            if not sse.is_started:
                raise
            record.error = _told_of(failure, record)
            sse.finish(renderer.failed(record.error))
        finally:
            sse.close()


class Collector:
    """Sink of a unary answer. The client gets nothing before the end, so it is never full: `max_tokens` bounds it."""

    def __init__(self, num_choices: int) -> None:
        self._choices = [Choice(index, []) for index in range(num_choices)]

    def push(self, delta: Delta) -> bool:
        choice = self._choices[delta.index]
        assert choice.parts is not None
        choice.parts += delta.parts if delta.parts is not None else (delta.text,)
        if delta.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        if delta.logprobs:
            choice.logprobs = (choice.logprobs or []) + delta.logprobs
        if delta.news is not None:
            choice.add_news(delta.news)
        return False

    async def drain(self) -> None:
        """There is nothing to wait for."""

    def choices(self) -> list[Choice]:
        for choice in self._choices:
            assert choice.parts is not None
            choice.parts = merged(choice.parts)
        return self._choices


class EventSink:
    """Sink of a stream: each delta leaves as server-sent events."""

    def __init__(self, sse: SseStream, renderer: Renderer) -> None:
        self._sse = sse
        self._render = renderer.of

    def push(self, delta: Delta) -> bool:
        self._sse.write(self._render(delta))
        return not self._sse.exchange.is_writable

    async def drain(self) -> None:
        await self._sse.exchange.drain()


def require_json(exchange: Exchange) -> None:
    """Raises UnsupportedMediaType."""
    content_type = exchange.header("content-type")
    if content_type != "application/json" and not _JSON_TYPE.fullmatch(content_type or ""):
        raise UnsupportedMediaType(f"The content-type must be application/json, not {content_type or 'missing'}.")


def _cancel_on_disconnect(exchange: Exchange) -> None:
    """Whatever the request is waiting for, it stops in the tick in which the client is seen to be gone."""
    task = asyncio.current_task()
    assert task is not None
    exchange.on_disconnect = task.cancel


def _told_of(failure: Exception, record: RequestRecord) -> DynamoError:
    """What the client may know."""
    if isinstance(failure, DynamoError):
        return failure
    log.error("request %s failed in mid-answer", record.label, exc_info=failure)
    return InternalError()


def _log_access(record: RequestRecord, now: float) -> None:
    error = record.error
    access_log.debug(
        "%s %s",
        record.endpoint,
        error.code if error else "ok",
        extra={
            "request_id": record.request_id,
            "x_request_id": record.shown_id,
            "model": record.model,
            "status": error.status if error else 200,
            "elapsed_ms": round((now - record.started_at) * 1000, 3),
            "ttft_ms": round((record.first_token_at - record.started_at) * 1000, 3) if record.first_token_at else None,
            "prompt_tokens": record.num_prompt_tokens,
            "output_tokens": record.num_output_tokens,
            "worker": f"{record.instance_id:x}",
        },
    )
