"""`/metrics` and `/health` of a router that runs alone: a frontend's router has its frontend for that.

HTTP/1.1 as far as a scraper or a probe needs it: GET, one request per connection, no body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal

import msgspec
from msgspec import Struct

from dynamo.shared.metrics import CONTENT_TYPE

log = logging.getLogger("dynamo.router")

MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 16 << 10
TIMEOUT_S = 5.0


class Health(Struct):
    status: Literal["starting", "ready"]
    workers: int


class MetricsServer:
    """`metrics` makes Prometheus' text."""

    def __init__(self, metrics: Callable[[], bytes], health: Callable[[], Health]) -> None:
        self._metrics = metrics
        self._health = health
        self._server: asyncio.Server | None = None
        self._num_connections = 0

    async def open(self, host: str, port: int) -> None:
        """Raises OSError where the address cannot be had."""
        try:
            self._server = await asyncio.start_server(self._on_connection, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            raise OSError(f"cannot listen on {host} port {port}: {error}; choose another --metrics-port") from error
        port = self._server.sockets[0].getsockname()[1]
        log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Too many at once are closed unanswered."""
        self._num_connections += 1
        try:
            if self._num_connections <= MAX_CONNECTIONS:
                async with asyncio.timeout(TIMEOUT_S):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked went away, is too slow, or speaks something else
        finally:
            self._num_connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"only GET is served here\n")
        match path:
            case b"/metrics":
                return _response(HTTPStatus.OK, CONTENT_TYPE, self._metrics())
            case b"/health":
                health = self._health()
                status = HTTPStatus.OK if health.status == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
                return _response(status, "application/json", msgspec.json.encode(health))
        return _response(HTTPStatus.NOT_FOUND, "text/plain", b"only /metrics and /health are here\n")


def _response(status: HTTPStatus, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
