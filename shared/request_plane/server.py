"""The request plane of a worker: one TCP listener for all endpoints of the process.

Requests arrive pipelined on the frontends' pooled connections and are acknowledged in order: an empty ack accepts, a
text refuses. The answer takes another way (`call_home`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import cast

import msgspec

from dynamo.shared.framing import FrameTooLarge, RequestDecoder, TwoPartDecoder, encode_ack
from dynamo.shared.network import routable_host
from dynamo.shared.protocol import CallHome, ControlMessage
from dynamo.shared.request_plane.call_home import Call, Handler, serve_call
from dynamo.shared.request_plane.codec import CODECS, PayloadCodec
from dynamo.shared.serving_config import ServingConfig

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
LISTEN_BACKLOG = 1024

ACCEPTED = b""
OVERLOADED = b"Server overloaded: worker at capacity"


Codecs = Mapping[str, PayloadCodec]


class RequestRefused(Exception):
    """Refused before any handler saw it; the text goes into the ack."""


class RequestServer:
    """Owns the listener, its connections and the requests in flight."""

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._handlers: dict[bytes, tuple[Handler, Codecs]] = {}
        self._in_flight: dict[asyncio.Task[None], bytes] = {}
        self._connections: set[RequestConnection] = set()
        self._server: asyncio.Server | None = None
        self.address = ""

    async def open(self) -> None:
        """Listen. Raises OSError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        host = self._config.host or routable_host()
        self._server = await loop.create_server(
            lambda: RequestConnection(self, self._config.max_message_size),
            host,
            self._config.rpc_port,
            backlog=LISTEN_BACKLOG,
        )
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def add(self, path: str, handler: Handler, codecs: Codecs = CODECS) -> None:
        if path.encode() in self._handlers:
            raise ValueError(f"endpoint {path} is already served by this process")
        self._handlers[path.encode()] = handler, codecs

    def remove(self, path: str) -> None:
        """Refuse new requests for it; running ones go on."""
        self._handlers.pop(path.encode(), None)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def accept(self, path: bytes, payload: bytes) -> bytes:
        """Start to serve a request; returns the text of its ack."""
        if path not in self._handlers:
            return b"Server unavailable: unknown endpoint " + path
        handler, codecs = self._handlers[path]
        if len(self._in_flight) >= self._config.request_limit:
            return OVERLOADED
        try:
            call = _decode_call(payload, codecs)
        except RequestRefused as error:
            # 1.6.1 acknowledges such a request and forgets it, which leaves the frontend waiting.
            logger.warning("refused a request for %s: %s", path.decode(errors="replace"), error)
            return f"Server unavailable: {error}".encode()
        task = asyncio.get_running_loop().create_task(serve_call(call, handler))
        self._in_flight[task] = path
        task.add_done_callback(self._in_flight.pop)
        return ACCEPTED

    def cancel(self, path: str) -> None:
        """End the running requests of one endpoint; their streams close without complete_final."""
        for task, task_path in tuple(self._in_flight.items()):
            if task_path == path.encode():
                task.cancel()

    async def drain(self, timeout_s: float) -> None:
        """Wait for the requests in flight, then cancel the rest."""
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=timeout_s)
        if self._in_flight:
            logger.warning("cancelling %d requests still running after %g s", len(self._in_flight), timeout_s)
            for task in self._in_flight:
                task.cancel()
            await asyncio.wait(self._in_flight)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.close()
        await self._server.wait_closed()

    def connected(self, connection: RequestConnection) -> bool:
        """False when there are too many already."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def disconnected(self, connection: RequestConnection) -> None:
        self._connections.discard(connection)


class RequestConnection(asyncio.Protocol):
    """One pooled connection of one frontend."""

    def __init__(self, server: RequestServer, max_message_size: int) -> None:
        self._server = server
        self._decoder = RequestDecoder(max_message_size)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        if not self._server.connected(self):
            logger.warning("closing a new connection: %d are open already", MAX_CONNECTIONS)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.disconnected(self)

    def data_received(self, data: bytes) -> None:
        acks = []
        try:
            for path, _headers, payload in self._decoder.push(data):
                acks.append(encode_ack(self._server.accept(path, payload)))
        except FrameTooLarge as error:
            logger.warning("closing the connection of %s: %s", self._transport.get_extra_info("peername"), error)
            self._transport.close()
        if acks:
            self._transport.write(b"".join(acks))

    def pause_writing(self) -> None:
        """A frontend that does not read its acks may not send more."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def close(self) -> None:
        self._transport.close()


_control_decoder = msgspec.json.Decoder(ControlMessage)
_home_decoder = msgspec.json.Decoder(CallHome)


def _decode_call(payload: bytes, codecs: Codecs) -> Call:
    frame = next(TwoPartDecoder(len(payload)).push(payload), None)
    if frame is None:
        raise RequestRefused("the payload is not one whole two-part frame")
    try:
        control = _control_decoder.decode(frame[0])
        home = _home_decoder.decode(control.connection_info.info)
    except msgspec.DecodeError as error:
        raise RequestRefused(f"control message: {error}") from None
    _check(control, home)
    metadata = {} if control.metadata is msgspec.UNSET else control.metadata
    return Call(home, codecs[control.payload_codec], frame[1], metadata)


def _check(control: ControlMessage, home: CallHome) -> None:
    if control.connection_info.transport != "tcp_server":
        raise RequestRefused(
            f"response transport {control.connection_info.transport!r}: only tcp_server is spoken here"
        )
    if control.request_type != "single_in":
        raise RequestRefused(f"request type {control.request_type!r}: only single_in is served here")
    if control.payload_codec not in CODECS:
        raise RequestRefused(f"payload codec {control.payload_codec!r}: use one of {', '.join(CODECS)}")
    if home.context != control.id:
        raise RequestRefused(f"connection info is for request {home.context}, not {control.id}")
