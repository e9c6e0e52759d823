"""The exchange over granian's RSGI, an alternative to the server of our own.

What granian 2.8 does not offer is absent here: a stream is buffered without bound for a slow client, so `is_writable`
is always true; there is no deadline for a slow reader, and an aborted stream ends like a whole
one. Its worker is driven in the loop that runs, by the same steps as granian's own embedded server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from granian._futures import _future_watcher_wrapper, _new_cbscheduler
from granian._granian import RSGIProtocolClosed, RSGIWorker, SocketHolder, WorkerSignal
from granian.http import HTTP1Settings, HTTP2Settings
from granian.rsgi import Scope

from dynamo.frontend.server.dispatcher import Dispatcher
from dynamo.frontend.server.exchange import Exchange, Handle, HeaderBlock, RenderError, client_gone
from dynamo.frontend.server.limits import Limits
from dynamo.frontend.server.wire_exchange import late_body, oversized_body

BACKLOG = 4096


class GranianExchange(Exchange):
    __slots__ = ("_limits", "_protocol", "_scope", "_stream")

    def __init__(self, scope: Scope, protocol: Any, limits: Limits) -> None:
        self.method = scope.method
        self.path = scope.path
        self.query = scope.query_string
        self.http_version = scope.http_version
        self.scheme = scope.scheme
        self.client = scope.client
        self.is_started = self.is_complete = self.is_disconnected = False
        self.is_writable = True
        self.on_disconnect = None
        self._scope = scope
        self._protocol = protocol
        self._limits = limits
        self._stream: Any = None

    def header(self, name: str) -> str | None:
        value: str | None = self._scope.headers.get(name)
        return value

    def headers_starting(self, prefixes: tuple[bytes, ...]) -> dict[str, str]:
        headers = self._scope.headers
        return {name: headers.get(name) for name, _value in headers.items() if name.encode().startswith(prefixes)}

    async def read_body(self) -> bytes:
        limits = self._limits
        length = self.header("content-length")
        if length is not None and length.isdecimal() and int(length) > limits.max_body_bytes:
            raise oversized_body(limits.max_body_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                async for chunk in self._protocol:
                    body += chunk
                    if len(body) > limits.max_body_bytes:
                        raise oversized_body(limits.max_body_bytes)
        except TimeoutError:
            raise late_body(len(body)) from None
        except RSGIProtocolClosed:
            raise client_gone() from None
        return bytes(body)

    def respond(self, status: int, headers: HeaderBlock, body: bytes = b"") -> None:
        if self.is_disconnected:
            return
        self.is_started = self.is_complete = True
        with contextlib.suppress(RSGIProtocolClosed):
            self._protocol.response_bytes(status, _header_list(headers), body)

    def start(self, status: int, headers: HeaderBlock) -> None:
        if self.is_disconnected:
            return
        self.is_started = True
        with contextlib.suppress(RSGIProtocolClosed):
            self._stream = self._protocol.response_stream(status, _header_list(headers))

    def write(self, data: bytes) -> None:
        if self._stream is not None and data and not self.is_disconnected:
            with contextlib.suppress(RSGIProtocolClosed):
                self._stream.send_bytes(data)  # done when it returns: the awaitable it gives is a formality

    async def drain(self) -> None:
        if self.is_disconnected:
            raise client_gone()

    def finish(self) -> None:
        self.is_complete = True
        self._stream = None

    def abort(self) -> None:
        self.finish()

    async def watch_disconnect(self) -> None:
        await self._protocol.client_disconnect()
        if self.is_complete:
            return
        self.is_disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()


class GranianServer:
    def __init__(
        self,
        handle: Handle,
        sock: socket.socket,
        limits: Limits,
        render_error: RenderError,
        tls_pair: tuple[str, str] | None = None,
    ) -> None:
        """`sock` listens already and stays the caller's; `tls_pair` names certificate chain and key, both PEM."""
        self.dispatcher = Dispatcher(handle, limits, render_error)
        self.limits = limits
        self._socket = sock
        self._tls_pair = tls_pair
        self._loop = asyncio.get_running_loop()
        self._signal = WorkerSignal()
        self._stopped = asyncio.Event()

    @property
    def num_in_flight(self) -> int:
        return self.dispatcher.num_in_flight

    async def start(self) -> None:
        self._signal.add_cb(lambda: self._loop.call_soon_threadsafe(self._stopped.set))
        wrap: Any = _future_watcher_wrapper
        schedule: Any = _new_cbscheduler
        scheduler = schedule(self._loop, wrap(self._serve), impl_asyncio=True)
        self._worker().serve_str(scheduler, self._loop, self._signal)

    async def close(self, grace_s: float) -> None:
        """Let what is in flight finish for up to `grace_s`, then cut it off. Until nothing is in flight, the handler
        answers who comes."""
        self.dispatcher.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.dispatcher.wait_emptied()
        self._signal.set()
        await self.dispatcher.cancel_all()
        await self._stopped.wait()

    async def _serve(self, scope: Scope, protocol: Any) -> None:
        exchange = GranianExchange(scope, protocol, self.limits)
        watch = self._loop.create_task(exchange.watch_disconnect())
        task: Any = asyncio.current_task()
        try:
            await self.dispatcher.run(exchange, task)
        finally:
            watch.cancel()

    def _worker(self) -> Any:
        """Arguments as granian's embedded server passes them: its stub lacks some of them."""
        limits = self.limits
        certificate, key = self._tls_pair or (None, None)
        make_worker: Any = RSGIWorker
        make_holder: Any = SocketHolder
        return make_worker(
            1,  # worker id
            (None, make_holder(self._socket.dup().detach(), False, BACKLOG)),  # which closes it at the end
            None,  # no parent process to talk to
            1,  # runtime threads
            1,  # and blocking ones
            1,  # threads that run Python
            30,  # s until an idle one of those ends
            limits.max_connections,  # above which it makes new ones wait
            "auto",  # HTTP/1.1 and 2
            HTTP1Settings(
                header_read_timeout=int(limits.head_timeout_s * 1000), max_buffer_size=max(limits.max_head_bytes, 8192)
            ),
            HTTP2Settings(max_concurrent_streams=limits.max_streams, max_headers_size=limits.max_head_bytes),
            False,  # websockets
            None,  # static files
            self._tls_pair is not None,
            certificate,
            key,
            None,  # key password
            "tls1.2",
            None,  # client CA
            [],  # revocation lists
            False,  # client certificates
            (None, None),  # metrics
        )


def _header_list(block: HeaderBlock) -> list[tuple[str, str]]:
    lines = block.decode("latin-1").split("\r\n")
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines if line)]
