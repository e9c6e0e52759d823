"""The answer side of the request plane: workers dial in here and stream their tokens.

    worker  handshake{subject} → prologue{error} → item… → complete_final → "sentinel"
    we      "kill" when nobody wants the rest, then close

One `AnswerStream` per request waits under a one-time subject until a worker shows it. Frames are decoded as they
arrive and handed over in batches: all that one read has brought.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, Protocol, Self, TypeAlias, TypeVar, cast

import msgspec

from dynamo.shared.errors import (
    BACKEND_KINDS,
    BackendError,
    BackendFailure,
    Disconnected,
    ResponseTooLarge,
    WorkerError,
    WorkerRefused,
    WorkerTimeout,
)
from dynamo.shared.framing import KILL, SENTINEL, TWO_PART_PREFIX, encode_two_part
from dynamo.shared.protocol import EngineOutput, Handshake, Prologue, ResponseItem, WorkerErrorPayload

log = logging.getLogger("dynamo.engine")

MAX_PENDING_OUTPUTS = 256  # items that may wait for the consumer before the worker's socket is left unread
HANDSHAKE_TIMEOUT_S = 10.0
MAX_LOOSE_PEERS = 8192  # connections without a stream: new ones, and those left that have not closed
DEREGISTERED_SILENCE_S = 30.0  # what a worker that left the table may let its streams wait
LARGE_FRAME = 1 << 20  # bytes; beyond, a copy would stall the loop
LEAVE_TIMEOUT_S = 2.0  # how long a worker may take to close a stream that nobody wants any more

_KILL_FRAME = encode_two_part(KILL)
_PREFIX_SIZE = TWO_PART_PREFIX.size
_decode_handshake = msgspec.json.Decoder(Handshake).decode
_decode_prologue = msgspec.json.Decoder(Prologue).decode

T = TypeVar("T")

Frame: TypeAlias = bytes | bytearray | memoryview
ItemDecoders: TypeAlias = Mapping[str, Callable[[Frame], ResponseItem[T]]]
"""Per payload codec, what reads one data frame of an answer."""

ENGINE_OUTPUTS: ItemDecoders[EngineOutput] = {
    "msgpack": msgspec.msgpack.Decoder(ResponseItem[EngineOutput]).decode,
    "json": msgspec.json.Decoder(ResponseItem[EngineOutput]).decode,
}

# Legacy `error_type` of workers that send no class.
_LEGACY_CLASSES = {
    "InvalidArgument": "InvalidRequest",
    "CannotConnect": "Unavailable",
    "Disconnected": "Unavailable",
    "ConnectionTimeout": "DeadlineExceeded",
    "ResponseTimeout": "DeadlineExceeded",
    "Cancelled": "Cancelled",
    "ResourceExhausted": "CapacityExhausted",
    "WorkerOverloaded": "CapacityExhausted",
    "Unavailable": "Unavailable",
    "WorkerUnavailable": "Unavailable",
    "EngineShutdown": "Unavailable",
    "StreamIncomplete": "Unavailable",
}
_TOLD_STATUSES = (503, 529)  # of those that a handler chooses from 500 on: the others are told as 500
_SAYS_WORKER_IS_GONE = frozenset(
    {"CannotConnect", "Disconnected", "EngineShutdown", "WorkerUnavailable", "StreamIncomplete"}
)


def error_of_worker(payload: WorkerErrorPayload | None, comment: list[str] | None = None) -> WorkerError:
    """The error a worker reported, ours to raise. A worker that says it is going away counts as disconnected."""
    if payload is None:
        return BackendFailure("; ".join(comment or ["nothing"]))
    told = payload.error_type
    legacy = next(iter(told.values()), "") if isinstance(told, dict) else told or ""
    if legacy in _SAYS_WORKER_IS_GONE:
        return Disconnected(f"The worker stopped serving this request: {payload.message or legacy}")
    klass = payload.klass or _LEGACY_CLASSES.get(legacy, "Internal")
    kind = BACKEND_KINDS.get(klass)
    chosen = _http_error(payload.message)
    message, status = (payload.message or klass, None) if chosen is None else (chosen.message, chosen.code)
    if kind is None or (status is not None and 500 <= status not in _TOLD_STATUSES):
        return BackendFailure(message, status or 500)
    return BackendError(message, kind, status if kind.status < 500 else None)


class _HttpError(msgspec.Struct):
    """What a handler's HttpError, which chooses the status of the answer, has in place of a message."""

    message: str
    code: Annotated[int, msgspec.Meta(ge=400, lt=600)]


_decode_http_error = msgspec.json.Decoder(_HttpError).decode


def _http_error(message: str) -> _HttpError | None:
    if not message.startswith("{"):
        return None
    try:
        return _decode_http_error(message)
    except msgspec.MsgspecError:
        return None


class Consumer(Protocol[T]):
    """Where a stream's items go."""

    def take(self, outputs: list[T]) -> bool:
        """All that has come at once. False: nothing more before `ready`."""

    async def ready(self) -> bool:
        """After a refusal: when more may come. False if nothing more is wanted."""


class AnswerStream(Generic[T]):
    """What one worker answers to one request, as items of one type.

    `relay` hands it over. A stream fails with a WorkerError when the worker failed, died or fell silent for longer than
    `timeout_s`. Leave through `close()`, which kills a worker that still runs.
    """

    __slots__ = (
        "_connection",
        "_consumer",
        "_error",
        "_is_done",
        "_is_held",
        "_last_frame_at",
        "_loop",
        "_outputs",
        "_server",
        "_waiter",
        "decode",
        "has_prologue",
        "instance_id",
        "is_ending",
        "subject",
        "timeout_s",
    )

    def __init__(
        self,
        server: ResponseServer,
        subject: str,
        instance_id: int,
        decode: Callable[[Frame], ResponseItem[T]],
        timeout_s: float | None,
    ) -> None:
        self._server = server
        self._loop = server.loop
        self._connection: ResponseConnection | None = None
        self._outputs: list[T] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._is_done = False
        self._consumer: Consumer[T] | None = None
        self._is_held = False  # the consumer is to be asked before it gets more
        self._last_frame_at = server.now
        self.subject = subject
        self.instance_id = instance_id
        self.decode = decode
        self.timeout_s = timeout_s
        self.has_prologue = False
        self.is_ending = False  # set by the consumer: the worker said its last word, only the formalities are missing

    async def relay(self, consumer: Consumer[T]) -> None:
        """Give the consumer what arrives until the worker completed or the consumer has enough; raises what it failed
        with.

        Items are taken in the tick in which they arrive, without a task in between: this coroutine only looks after the
        ends and after a consumer that is full.
        """
        self._consumer = consumer
        self._deliver()
        while True:
            if self._is_held:
                if not await consumer.ready():
                    return
                self._is_held = False
                if self._connection is not None:
                    self._connection.resume()
                self._deliver()
            elif self._error is not None:
                raise self._error
            elif self._is_done:
                return
            else:
                self._waiter = self._loop.create_future()
                await self._waiter

    @property
    def is_waiting(self) -> bool:
        """No worker has called home for it yet, and somebody still wants it."""
        return self._server.is_waiting(self)

    def limit_silence(self, timeout_s: float) -> None:
        """From now on, allow at most this much silence."""
        if self.timeout_s is None or self.timeout_s > timeout_s:
            self.timeout_s = timeout_s
            self._last_frame_at = self._server.now

    def fail(self, error: WorkerError) -> None:
        """End the stream with this error, after what has arrived. The first verdict stands."""
        if not self._is_done and self._error is None:
            self._error = error
            self._wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody wants more. Safe at any time and more than once."""
        self._server.forget(self)
        self._consumer = None
        if self._connection is not None:
            self._connection.leave(kill=not (self._is_done or self.is_ending))
            self._connection = None

    def check_silence(self, now: float) -> None:
        if self.timeout_s is not None and now - self._last_frame_at > self.timeout_s:
            self.fail(WorkerTimeout(f"The worker sent nothing for {self.timeout_s:g} s."))

    # ---- called by the connection

    def attach(self, connection: ResponseConnection) -> None:
        self._connection = connection
        self._last_frame_at = self._server.now

    def push(self, item: ResponseItem[T]) -> None:
        annotated = item.data
        if annotated is not None:
            if annotated.event is None and annotated.error is None:
                if annotated.data is not None:
                    self._outputs.append(annotated.data)
            elif annotated.error is not None or annotated.event == "error":
                self.fail(error_of_worker(annotated.error, annotated.comment))
        if item.complete_final:
            self._is_done = self._error is None

    def begin(self, prologue: Prologue) -> None:
        """The engine accepted the request, or did not."""
        self.has_prologue = True
        if prologue.error is None:
            return
        if prologue.typed_error is not None:
            self.fail(error_of_worker(prologue.typed_error))
        else:
            self.fail(WorkerRefused(f"The worker refused the request: {prologue.error}"))

    def end_of_read(self) -> None:
        """All frames of one read were pushed."""
        self._last_frame_at = self._server.now
        self._deliver()
        if len(self._outputs) > MAX_PENDING_OUTPUTS and self._connection is not None:
            self._connection.pause()

    def _deliver(self) -> None:
        if self._outputs and not self._is_held and self._consumer is not None:
            outputs, self._outputs = self._outputs, []
            try:
                self._is_held = not self._consumer.take(outputs)
            except Exception as error:  # this runs for the request, so the request fails with it, in `relay`
                self._error = error
        if self._is_held or self._is_done or self._error is not None:
            self._wake()

    def end_of_connection(self, reason: str) -> None:
        self._connection = None
        self.fail(Disconnected(f"The worker went away before it completed the answer ({reason})."))

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


EngineStream: TypeAlias = AnswerStream[EngineOutput]


class ResponseConnection(asyncio.Protocol):
    """One worker's connection for one request: a stream is attached by the handshake, and let go by `leave`."""

    __slots__ = (
        "_has_sentinel",
        "_held",
        "_is_paused",
        "_needed",
        "_server",
        "_stream",
        "_transport",
        "give_up_at",
        "is_left",
    )

    def __init__(self, server: ResponseServer) -> None:
        self._server = server
        self._held = bytearray()  # the beginning of a frame
        self._needed = 0  # bytes of it before another look is worthwhile
        self._is_paused = False
        self._has_sentinel = False  # the worker has said its last word and waits for us to close
        self._stream: AnswerStream[Any] | None = None
        self._transport: asyncio.Transport | None = None
        self.give_up_at = server.loop.time() + HANDSHAKE_TIMEOUT_S  # while it has no stream
        self.is_left = False

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.closed(self)
        stream, self._stream, self._transport = self._stream, None, None
        if stream is not None:
            stream.end_of_connection(str(exc) if exc else "connection closed")

    def data_received(self, data: bytes | bytearray) -> None:
        if self.is_left:
            if SENTINEL in data and self._transport is not None:
                self._transport.abort()
            return
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return
            data, self._held = self._held, bytearray()
        try:
            consumed = self._parse(data)
        except (msgspec.MsgspecError, WorkerError) as error:
            self._give_up(error)
            return
        if consumed < len(data):
            self._held += memoryview(data)[consumed:]
        if self._stream is not None:
            self._stream.end_of_read()

    # ---- frames

    def _parse(self, data: bytes | bytearray) -> int:
        """Handle every whole frame at the front of `data`; how many bytes that were."""
        size, start, max_size = len(data), 0, self._server.max_message_size
        while size - start >= _PREFIX_SIZE:
            header_len, data_len, _checksum = TWO_PART_PREFIX.unpack_from(data, start)
            header_end = start + _PREFIX_SIZE + header_len
            end = header_end + data_len
            if end - start > max_size:
                raise ResponseTooLarge(
                    f"The worker sent a frame of {end - start} bytes; DYN_TCP_MAX_MESSAGE_SIZE allows {max_size}."
                )
            if end > size:
                self._needed = end - start
                return start
            if header_len:
                self._on_control(data[start + _PREFIX_SIZE : header_end])
            elif (stream := self._stream) is not None and data_len:
                frame = data[header_end:end] if data_len < LARGE_FRAME else memoryview(data)[header_end:end]
                stream.push(stream.decode(frame))
            start = end
        self._needed = _PREFIX_SIZE
        return start

    def _on_control(self, header: bytes | bytearray) -> None:
        stream = self._stream
        if stream is None:
            self._on_handshake(header)
        elif not stream.has_prologue:
            stream.begin(_decode_prologue(header))
        else:  # nothing else comes after the prologue
            self._has_sentinel = True

    def _on_handshake(self, header: bytes | bytearray) -> None:
        stream = self._server.claim(_decode_handshake(header).subject)
        if stream is None:
            self.leave(kill=True)
            return
        self._server.introduced(self)
        self._stream = stream
        stream.attach(self)

    def _give_up(self, error: Exception) -> None:
        """The bytes make no sense: what follows them cannot either."""
        stream, self._stream = self._stream, None
        if stream is not None:
            if not isinstance(error, WorkerError):
                error = BackendFailure(f"The worker sent a frame that cannot be read: {error}", 502)
            stream.fail(error)
        else:
            log.warning("dropped a connection to the response port that speaks another protocol: %s", error)
        if self._transport is not None:
            self._transport.abort()

    # ---- called by the stream and the server

    def pause(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def leave(self, *, kill: bool) -> None:
        """Let the stream go. A worker that still runs is told "kill"; in either case it has LEAVE_TIMEOUT_S to end
        itself, for a reset in the middle of its last words would look like a fault to it."""
        self._stream = None
        self.is_left = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._has_sentinel:
            transport.abort()
            return
        self.resume()
        if kill:
            transport.write(_KILL_FRAME)
        self._server.left(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class ResponseServer:
    """Listens where workers call home. `address` is what we advertise; valid after `start`."""

    def __init__(self, host: str, port: int, *, max_message_size: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.max_message_size = max_message_size
        self.address = ""
        self.now = self.loop.time()  # to the second: what deadlines of streams are measured with
        self._host, self._port = host, port
        self._waiting: dict[str, AnswerStream[Any]] = {}
        self._streams: set[AnswerStream[Any]] = set()
        self._loose: set[ResponseConnection] = set()  # without a stream: not introduced yet, or left
        self._connections: set[ResponseConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        sock = _listen(self._host, self._port)
        self._server = await self.loop.create_server(lambda: ResponseConnection(self), sock=sock)
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"{host}:{sock.getsockname()[1]}"
        self._sweep()

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()

    def expect(
        self,
        subject: str,
        instance_id: int,
        decode: Callable[[Frame], ResponseItem[T]],
        timeout_s: float | None,
    ) -> AnswerStream[T]:
        """A stream that the worker who shows `subject` will feed."""
        stream = AnswerStream(self, subject, instance_id, decode, timeout_s)
        self._waiting[subject] = stream
        self._streams.add(stream)
        return stream

    def forget(self, stream: AnswerStream[Any]) -> None:
        self._waiting.pop(stream.subject, None)
        self._streams.discard(stream)

    def is_waiting(self, stream: AnswerStream[Any]) -> bool:
        return stream.subject in self._waiting

    def instance_left(self, instance_id: int) -> None:
        """The instance is no longer registered: it drains, or it is dead. It may go on, but no longer in silence."""
        for stream in self._streams:
            if stream.instance_id == instance_id:
                stream.limit_silence(DEREGISTERED_SILENCE_S)

    # ---- called by connections

    def claim(self, subject: str) -> AnswerStream[Any] | None:
        return self._waiting.pop(subject, None)

    def opened(self, connection: ResponseConnection) -> None:
        self._connections.add(connection)
        self._loose.add(connection)
        if len(self._loose) > MAX_LOOSE_PEERS:
            min(self._loose, key=lambda peer: peer.give_up_at).abort()

    def introduced(self, connection: ResponseConnection) -> None:
        self._loose.discard(connection)

    def left(self, connection: ResponseConnection) -> None:
        connection.give_up_at = self.loop.time() + LEAVE_TIMEOUT_S
        self._loose.add(connection)

    def closed(self, connection: ResponseConnection) -> None:
        self._connections.discard(connection)
        self._loose.discard(connection)

    def _sweep(self) -> None:
        """Once a second: peers that never introduced themselves or never left, workers that fell silent."""
        now = self.now = self.loop.time()
        for connection in [c for c in self._loose if now > c.give_up_at]:
            connection.abort()
        for stream in list(self._streams):
            stream.check_silence(now)
        self._sweeper = self.loop.call_later(1.0, self._sweep)


def _listen(host: str, port: int) -> socket.socket:
    """Accepted sockets inherit what is set here: no lingering in TIME_WAIT (one connection per request), keep-alive
    probes to find a worker whose host died silently."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.bind((host, port))
    sock.listen(4096)
    sock.setblocking(False)
    return sock
