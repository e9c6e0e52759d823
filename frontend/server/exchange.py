"""One request and the right to answer it once; the only thing the application sees of HTTP.

    respond(...)                        a whole answer
    start(...) write(...)* finish()     a stream; abort() instead of finish() tells the client that it is incomplete

A handler gets the exchange when the request's headers have arrived. Calls after a disconnect are ignored, so that a
handler may be on its way out when it learns of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable

from dynamo.shared.errors import ClientDisconnected, DynamoError

HeaderBlock = bytes
"""Header lines as HTTP/1.1 sends them: lower-case names, each line ended, as in `b"content-type: text/plain\\r\\n"`.

The constant part of a hot answer is a constant. Length, framing, date and connection headers are the server's.
"""


class Exchange(ABC):
    __slots__ = (
        "client",
        "http_version",
        "is_complete",
        "is_disconnected",
        "is_started",
        "is_writable",
        "method",
        "on_disconnect",
        "path",
        "query",
        "scheme",
    )

    method: str
    path: str  # percent-decoded, without the query
    query: str  # as sent, without the question mark
    http_version: str  # "1.0", "1.1" or "2"
    scheme: str  # "http" or "https"
    client: str  # "address:port" of the peer
    is_started: bool  # an answer has begun
    is_complete: bool  # the answer is over, whole or aborted
    is_disconnected: bool
    is_writable: bool  # False from the high-water mark of unsent bytes until the low-water mark
    on_disconnect: Callable[[], object] | None
    """Called once, in the loop tick in which the client is seen to be gone, unless the answer is complete by then.

    A client that closes its sending side is gone: nothing tells that apart from a close.
    """

    @abstractmethod
    def header(self, name: str) -> str | None:
        """First value of a request header; `name` in lower case."""

    @abstractmethod
    def headers_starting(self, prefixes: tuple[bytes, ...]) -> dict[str, str]:
        """Request headers whose lower-case name starts with one of these; of one given twice the first value."""

    @abstractmethod
    async def read_body(self) -> bytes:
        """The whole request body; once.

        Raises PayloadTooLarge, RequestTimeout, InvalidRequest (its framing is broken) or ClientDisconnected.
        """

    @abstractmethod
    def respond(self, status: int, headers: HeaderBlock, body: bytes = b"") -> None:
        """Answer whole, in one write."""

    @abstractmethod
    def start(self, status: int, headers: HeaderBlock) -> None:
        """Begin an answer of unknown length."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Never blocks: what the client does not take yet is buffered, so look at `is_writable` and `drain`."""

    @abstractmethod
    async def drain(self) -> None:
        """Return once `is_writable`; raises ClientDisconnected. Several may wait at once."""

    @abstractmethod
    def finish(self) -> None:
        """End the stream cleanly."""

    @abstractmethod
    def abort(self) -> None:
        """End the stream so that the client cannot take it for a complete one."""


Handle = Callable[[Exchange], Awaitable[None]]
RenderError = Callable[[str, DynamoError, str], bytes]
"""(path, error, x-request-id) to the JSON body of an error that was born in the server, before or beside any handler.
The path is "/" where it is not known yet."""


def render_headers(pairs: Iterable[tuple[str, str]]) -> HeaderBlock:
    """Raises ValueError for a name or value that would break out of its line."""
    lines = []
    for name, value in pairs:
        if not name or any(c in "\r\n\0" for c in name + value):
            raise ValueError(f"not a header: {name!r}: {value!r}")
        lines.append(f"{name.lower()}: {value}\r\n")
    return "".join(lines).encode("latin-1")


def client_gone() -> ClientDisconnected:
    return ClientDisconnected("The client closed the connection before the answer was complete.")
