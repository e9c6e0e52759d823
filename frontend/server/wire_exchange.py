"""The half of an exchange that HTTP/1.1 and HTTP/2 share: header lookup, body collection, disconnect and write waits.

A connection pushes what arrives (`push_body`, `end_body`, `fail_body`) and says when the client is gone
(`disconnect`) or slow (`set_writable`); the application awaits.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from urllib.parse import unquote

from dynamo.frontend.server.exchange import Exchange, client_gone
from dynamo.shared.errors import DynamoError, PayloadTooLarge, RequestTimeout

UNWANTED_BODY_BYTES = 64 * 1024  # held for a handler that has not asked for the body; then the client has to wait


class WireExchange(Exchange):
    __slots__ = (
        "_body_error",
        "_body_parts",
        "_body_waiter",
        "_drain_waiter",
        "_headers",
        "_max_body_bytes",
        "body_size",
        "is_body_complete",
        "is_body_wanted",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
        *,
        http_version: str,
        scheme: str,
        client: str,
        max_body_bytes: int,
    ) -> None:
        self.method = method
        self.path, self.query = split_target(target)
        self.http_version = http_version
        self.scheme = scheme
        self.client = client
        self.is_disconnected = self.is_started = self.is_complete = False
        self.is_writable = True
        self.on_disconnect = None
        self._headers = headers
        self._max_body_bytes = max_body_bytes
        self._body_parts: list[bytes] = []
        self._body_error: DynamoError | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self.body_size = 0
        self.is_body_complete = self.is_body_wanted = False

    def header(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def headers_starting(self, prefixes: tuple[bytes, ...]) -> dict[str, str]:
        return {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in self._headers.items()
            if name.startswith(prefixes)
        }

    # ---- request body

    async def read_body(self) -> bytes:
        if not self.is_body_complete and self._body_error is None:
            self._body_waiter = asyncio.get_running_loop().create_future()
            self.is_body_wanted = True
            self._request_body()
            await self._body_waiter
        if self._body_error is not None:
            raise self._body_error
        parts, self._body_parts = self._body_parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @abstractmethod
    def _request_body(self) -> None:
        """The handler has begun to wait: let the client send."""

    @property
    def is_body_hoarded(self) -> bool:
        """More has arrived than is held for a handler that may never ask."""
        return not self.is_body_wanted and self.body_size > UNWANTED_BODY_BYTES and self._body_error is None

    def push_body(self, data: bytes) -> None:
        self.body_size += len(data)
        if self.body_size > self._max_body_bytes:
            self.refuse_body_size()
        elif self._body_error is None:
            self._body_parts.append(data)

    def end_body(self) -> None:
        self.is_body_complete = True
        self._wake_reader()

    def refuse_body_size(self) -> None:
        self.fail_body(oversized_body(self._max_body_bytes))

    def fail_body(self, error: DynamoError) -> None:
        if not self.is_body_complete and self._body_error is None:
            self._body_error = error
            self._body_parts.clear()
            self._wake_reader()

    def _wake_reader(self) -> None:
        waiter = self._body_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ---- the client's side of the answer

    async def drain(self) -> None:
        if self.is_disconnected:
            raise client_gone()
        if not self.is_writable:
            waiter = self._drain_waiter
            if waiter is None or waiter.done():
                waiter = self._drain_waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(waiter)  # the choices of a request all wait for it, and one may be cancelled alone

    def set_writable(self, is_writable: bool) -> None:
        self.is_writable = is_writable
        waiter = self._drain_waiter
        if is_writable and waiter is not None and not waiter.done():
            waiter.set_result(None)

    def disconnect(self) -> None:
        """The client is gone. Everything that waits for it learns so now."""
        if self.is_disconnected or self.is_complete:
            return
        self.is_disconnected = True
        self.fail_body(client_gone())
        waiter = self._drain_waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(client_gone())
        if self.on_disconnect is not None:
            self.on_disconnect()

    def _claim_answer(self) -> bool:
        """Whether an answer may begin; a second one is a bug of the handler."""
        if self.is_disconnected:
            return False
        if self.is_started:
            raise RuntimeError(f"{self.method} {self.path} is answered already")
        self.is_started = True
        return True


def split_target(target: bytes) -> tuple[str, str]:
    """Decoded path, and query as sent. Takes the forms `/path?query`, `http://host/path?query` and `*`."""
    raw_path, _, query = target.partition(b"?")
    if raw_path[:1] not in (b"/", b"*"):
        _, _, after_scheme = raw_path.partition(b"://")
        raw_path = b"/" + after_scheme.partition(b"/")[2]
    path = raw_path.decode("latin-1")
    return (unquote(path) if "%" in path else path), query.decode("latin-1")


def oversized_body(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than the limit of {max_bytes} bytes.")


def late_body(num_bytes: int) -> RequestTimeout:
    return RequestTimeout(
        f"The request body did not arrive in time: after {num_bytes} bytes of it, the rest is missing."
    )
