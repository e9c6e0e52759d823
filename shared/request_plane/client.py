"""The asking side of the request plane: pooled, pipelined connections to workers.

`generate` sends one request and returns the stream its worker will feed. A request that no worker has begun fails with
CannotConnect or WorkerAtCapacity, and may be placed again without harm.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from dynamo.shared.errors import BACKEND_KINDS, BackendError, CannotConnect, Disconnected, PayloadTooLarge
from dynamo.shared.framing import AckDecoder, FrameTooLarge, encode_request
from dynamo.shared.messages import Worker
from dynamo.shared.protocol import PreprocessedRequest
from dynamo.shared.request_plane.stream import (
    ENGINE_OUTPUTS,
    AnswerStream,
    EngineStream,
    ItemDecoders,
    ResponseServer,
)

log = logging.getLogger("dynamo.engine")

BUSY_ACKS = 32  # unanswered requests on every pooled connection before another one is opened
MAX_WRITE_BUFFER = 64 * 1024 * 1024  # bytes a worker may leave unread on one connection
IDLE_TIMEOUT_S = 300.0

T = TypeVar("T")

_encoders = {"msgpack": msgspec.msgpack.Encoder().encode, "json": msgspec.json.Encoder().encode}


class WorkerAtCapacity(BackendError):
    """The worker's admission control refused the request unseen."""

    def __init__(self, text: str) -> None:
        super().__init__(f"The worker is at capacity: {text}", BACKEND_KINDS["CapacityExhausted"])


@dataclass(frozen=True)
class EngineLimits:
    """Seconds, connections, requests and bytes; see the `tcp_*` options of the frontend's config."""

    connect_timeout_s: float = 5.0
    ack_timeout_s: float = 5.0
    pool_size: int = 100
    channel_buffer: int = 1024
    max_message_size: int = 32 * 1024 * 1024
    stream_timeout_s: float | None = None


_random_hex: list[str] = []


def fresh_uuid() -> str:
    """A random id in UUID form, without the cost of a UUID object or of a system call for each."""
    if not _random_hex:
        pool = os.urandom(16 * 256).hex()
        _random_hex.extend(pool[i : i + 32] for i in range(0, len(pool), 32))
    h = _random_hex.pop()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}"


class WorkerConnection(asyncio.Protocol):
    """One pooled connection. Acks come back in the order of the requests, which is all that tells them apart."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._acks = AckDecoder(pool.limits.max_message_size)
        self._transport: asyncio.Transport | None = None
        self.unacked: deque[tuple[float, AnswerStream[Any]]] = deque()
        self.uncalled: set[AnswerStream[Any]] = set()  # acked, not called home yet
        self.used_at = pool.loop.time()

    @property
    def is_usable(self) -> bool:
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and len(self.unacked) < self._pool.limits.channel_buffer
            and transport.get_write_buffer_size() < MAX_WRITE_BUFFER
        )

    def send(self, frame: bytes, stream: AnswerStream[Any]) -> None:
        assert self._transport is not None
        self.used_at = self._pool.loop.time()
        self.unacked.append((self.used_at, stream))
        self._transport.write(frame)

    def check_time(self, now: float) -> None:
        """A worker that does not acknowledge is stuck: give up its connection, and with it all that waits there."""
        self.uncalled = {stream for stream in self.uncalled if stream.is_waiting}
        if self.unacked and now - self.unacked[0][0] > self._pool.limits.ack_timeout_s:
            self.close(f"no acknowledgement within {self._pool.limits.ack_timeout_s:g} s")
        elif not self.unacked and not self.uncalled and now - self.used_at > IDLE_TIMEOUT_S:
            self.close("idle")

    def close(self, reason: str) -> None:
        self._fail_all(reason)
        if self._transport is not None:
            self._transport.abort()

    def _fail_all(self, reason: str) -> None:
        """Requests not acknowledged have surely not begun; of the others only the worker knew."""
        unacked, self.unacked = self.unacked, deque()
        uncalled, self.uncalled = self.uncalled, set()
        for _sent_at, stream in unacked:
            if stream.is_waiting:
                stream.fail(CannotConnect(f"The worker at {self._pool.address} did not take the request: {reason}."))
        for stream in uncalled:
            if stream.is_waiting:
                stream.fail(
                    Disconnected(f"The worker at {self._pool.address} went away before it answered ({reason}).")
                )

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.connections.discard(self)
        self._fail_all(str(exc) if exc else "connection closed")

    def data_received(self, data: bytes) -> None:
        try:
            for text in self._acks.push(data):
                self._on_ack(text)
        except FrameTooLarge as error:
            self.close(str(error))

    def _on_ack(self, text: bytes) -> None:
        if not self.unacked:
            self.close("it acknowledged a request that was never sent")
            return
        _sent_at, stream = self.unacked.popleft()
        if text.startswith(b"Server overloaded:"):
            stream.fail(WorkerAtCapacity(text.decode(errors="replace")))
        elif text.startswith(b"Server unavailable:"):
            stream.fail(CannotConnect(f"The worker refused the request: {text.decode(errors='replace')}"))
        elif stream.is_waiting:
            self.uncalled.add(stream)


class WorkerPool:
    """Connections to one address. A busy pool grows in the background; the request at hand never waits for that."""

    def __init__(self, address: str, limits: EngineLimits) -> None:
        self.address = address
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.connections: set[WorkerConnection] = set()
        self._connecting: asyncio.Task[WorkerConnection] | None = None

    async def connection(self) -> WorkerConnection:
        """A connection to send on at once. Raises CannotConnect, WorkerAtCapacity."""
        if (best := self._least_busy()) is not None:
            if len(best.unacked) >= BUSY_ACKS and len(self.connections) < self.limits.pool_size:
                self._connect()
            return best
        if len(self.connections) >= self.limits.pool_size:
            raise WorkerAtCapacity(f"{len(self.connections)} connections to {self.address} are full")
        connection = await asyncio.shield(self._connect())
        if not connection.is_usable:
            raise CannotConnect(f"The worker at {self.address} closed the connection at once.")
        return connection

    @property
    def is_unused(self) -> bool:
        return not self.connections and (self._connecting is None or self._connecting.done())

    def close(self, reason: str) -> None:
        for connection in list(self.connections):
            connection.close(reason)

    def _least_busy(self) -> WorkerConnection | None:
        best: WorkerConnection | None = None
        for connection in self.connections:
            if connection.is_usable and (best is None or len(connection.unacked) < len(best.unacked)):
                best = connection
                if not best.unacked:
                    break
        return best

    def _connect(self) -> asyncio.Task[WorkerConnection]:
        """One attempt at a time; everybody who needs it waits for the same one."""
        if self._connecting is None or self._connecting.done():
            self._connecting = self.loop.create_task(self._open())
            self._connecting.add_done_callback(_retrieve_error)
        return self._connecting

    async def _open(self) -> WorkerConnection:
        host, _, port = self.address.rpartition(":")
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                _transport, connection = await self.loop.create_connection(
                    lambda: WorkerConnection(self), host.strip("[]"), int(port)
                )
        except (OSError, TimeoutError, ValueError) as error:
            reason = str(error) or f"no connection within {self.limits.connect_timeout_s:g} s"
            raise CannotConnect(f"The worker at {self.address} cannot be reached: {reason}.") from error
        self.connections.add(connection)
        return connection


def _retrieve_error(task: asyncio.Task[WorkerConnection]) -> None:
    """A failed attempt in the background is nobody's news; the next request tries again and is told."""
    if not task.cancelled():
        task.exception()


class EngineClient:
    """Sends requests to workers and owns the pools. One per acceptor."""

    def __init__(self, server: ResponseServer, limits: EngineLimits) -> None:
        self._server = server
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._pools: dict[str, WorkerPool] = {}
        self._sweeper = self._loop.call_later(1.0, self._sweep)

    async def generate(
        self,
        worker: Worker,
        request_id: str,
        request: PreprocessedRequest,
        trace_headers: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> EngineStream:
        """Ask a worker to generate; raises what `call` does."""
        return await self.call(worker, request_id, request, ENGINE_OUTPUTS, trace_headers, metadata)

    async def call(
        self,
        worker: Worker,
        request_id: str,
        request: Any,
        items: ItemDecoders[T],
        trace_headers: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> AnswerStream[T]:
        """Send the request; the worker finds `metadata` in its context. The stream fails later if the worker does; here
        are raised CannotConnect, WorkerAtCapacity and, for a request over the frame limit, PayloadTooLarge."""
        subject = fresh_uuid()
        body = _encoders[worker.codec](request)
        frame = encode_request(
            worker.path.encode(),
            _headers(request_id, worker.path, trace_headers),
            self._control_message(request_id, subject, worker.codec, metadata),
            body,
        )
        if len(frame) > self._limits.max_message_size:
            raise PayloadTooLarge(
                f"The request is {len(frame)} bytes on the way to the worker; DYN_TCP_MAX_MESSAGE_SIZE allows "
                f"{self._limits.max_message_size}."
            )
        pool = self._pools.get(worker.address)
        if pool is None:
            pool = self._pools[worker.address] = WorkerPool(worker.address, self._limits)
        connection = await pool.connection()
        stream = self._server.expect(subject, worker.instance_id, items[worker.codec], self._limits.stream_timeout_s)
        connection.send(frame, stream)
        return stream

    def close(self) -> None:
        self._sweeper.cancel()
        for pool in self._pools.values():
            pool.close("the gateway is stopping")

    def _control_message(self, request_id: str, subject: str, codec: str, metadata: dict[str, str] | None) -> bytes:
        """Written out by hand: ids, codec and address need no escaping. `info` is JSON inside a JSON string."""
        info = (
            f'{{\\"address\\":\\"{self._server.address}\\",\\"subject\\":\\"{subject}\\",'
            f'\\"context\\":\\"{request_id}\\",\\"stream_type\\":\\"response\\"}}'
        )
        more = f',"metadata":{msgspec.json.encode(metadata).decode()}' if metadata else ""
        return (
            f'{{"id":"{request_id}","request_type":"single_in","response_type":"many_out","payload_codec":"{codec}",'
            f'"connection_info":{{"transport":"tcp_server","info":"{info}"}}{more}}}'
        ).encode()

    def _sweep(self) -> None:
        now = self._loop.time()
        for address, pool in list(self._pools.items()):
            for connection in list(pool.connections):
                connection.check_time(now)
            if pool.is_unused:
                del self._pools[address]
        self._sweeper = self._loop.call_later(1.0, self._sweep)


def _headers(request_id: str, path: str, trace_headers: dict[str, str] | None) -> bytes:
    fields = f'"request-id":"{request_id}","x-endpoint-path":"{path}","x-frontend-send-ts-ns":"{time.time_ns()}"'
    if not trace_headers:
        return f"{{{fields}}}".encode()
    return f"{{{fields},{msgspec.json.encode(trace_headers).decode()[1:]}".encode()
