"""Our HTTP server: accepts, picks the protocol of each connection, sweeps deadlines, drains."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import cast

from dynamo.frontend.server.connection import Connection, reset_transport
from dynamo.frontend.server.dispatcher import Dispatcher
from dynamo.frontend.server.exchange import Handle, RenderError
from dynamo.frontend.server.http1 import Http1Connection
from dynamo.frontend.server.http2 import PREFACE, Http2Connection
from dynamo.frontend.server.limits import Limits

FLUSH_S = 0.5  # for the last answers to leave after a shutdown has cancelled their handlers


class NativeServer:
    def __init__(
        self,
        handle: Handle,
        sock: socket.socket,
        limits: Limits,
        render_error: RenderError,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`sock` listens already. It is open until `close`, also while this server does not accept."""
        self.dispatcher = Dispatcher(handle, limits, render_error)
        self.limits = limits
        self.num_accepted = 0
        self._socket = sock
        self._ssl_context = ssl_context
        self._connections: set[Connection] = set()
        self._emptied = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    @property
    def num_in_flight(self) -> int:
        return self.dispatcher.num_in_flight

    async def start(self) -> None:
        await self._listen()
        self._keeper = self._loop.create_task(self._keep())

    async def close(self, grace_s: float) -> None:
        """Let what is in flight finish for up to `grace_s`, then cut it off. Until nothing is in flight, who comes is
        accepted and gets one answer of the handler, which knows better than a refused connection can tell."""
        self.dispatcher.is_draining = True
        self._shut_down_connections()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.dispatcher.wait_emptied()
                self._refuse_connections()
                await self._wait_connections()
        self._refuse_connections()
        await self.dispatcher.cancel_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._wait_connections()
        for connection in tuple(self._connections):
            connection.reset()
        await self._wait_connections()
        if self._keeper is not None:
            self._keeper.cancel()

    # ---- connections

    def add(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._socket.fileno() == -1:  # accepted before that was closed, made after
            connection.shut_down()
        elif len(self._connections) >= self.limits.max_connections:
            self._stop_listening()

    def remove(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    def _shut_down_connections(self) -> None:
        for connection in tuple(self._connections):
            connection.shut_down()

    async def _wait_connections(self) -> None:
        while self._connections:
            self._emptied.clear()
            await self._emptied.wait()

    # ---- listening

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(
            lambda: _Greeter(self),
            sock=self._socket.dup(),
            ssl=self._ssl_context,
            ssl_handshake_timeout=self.limits.head_timeout_s if self._ssl_context else None,
        )

    def _stop_listening(self) -> None:
        """Further connections wait in the backlog; those that the kernel handed over in the same tick are kept."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _refuse_connections(self) -> None:
        """The kernel does so once nobody has the socket open."""
        self._stop_listening()
        self._socket.close()
        self._shut_down_connections()

    # ---- time

    async def _keep(self) -> None:
        """Every deadline of every connection is looked at here, instead of a timer per request."""
        interval_s = _sweep_interval_s(self.limits)
        while True:
            await asyncio.sleep(interval_s)
            self.dispatcher.refresh_date()
            now = self._loop.time()
            for connection in tuple(self._connections):
                connection.sweep(now)
            if self._listener is None and self._socket.fileno() != -1 and self._has_room():
                await self._listen()

    def _has_room(self) -> bool:
        return len(self._connections) < self.limits.max_connections


class _Greeter(asyncio.Protocol):
    """Stands in for a connection until its protocol is known: by ALPN, or by its first bytes."""

    def __init__(self, server: NativeServer) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = server._loop.time() + server.limits.idle_timeout_s
        server.num_accepted += 1
        server.add(self)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._become(Http2Connection if tls.selected_alpn_protocol() == "h2" else Http1Connection, "https")

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        if received.startswith(PREFACE):
            self._become(Http2Connection, "http")
        elif not PREFACE.startswith(received):
            self._become(Http1Connection, "http")

    def connection_lost(self, error: Exception | None) -> None:
        self._server.remove(self)

    def _become(self, kind: Callable[..., Http1Connection | Http2Connection], scheme: str) -> None:
        server = self._server
        connection = kind(server.dispatcher, scheme, server.remove)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        server.add(connection)
        server.remove(self)
        if self._received:
            connection.data_received(self._received)

    def sweep(self, now: float) -> None:
        if now >= self._deadline:
            self.reset()

    def shut_down(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        reset_transport(self._transport)


def tls_context(cert_path: str, key_path: str) -> ssl.SSLContext:
    """Raises OSError or ssl.SSLError if the pair cannot be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert_path, key_path)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _sweep_interval_s(limits: Limits) -> float:
    """A second, which the date header needs, or a quarter of the shortest deadline."""
    shortest = min(limits.head_timeout_s, limits.body_timeout_s, limits.idle_timeout_s, limits.stall_timeout_s)
    return min(1.0, shortest / 4)
