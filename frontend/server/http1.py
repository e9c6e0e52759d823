"""HTTP/1.0 and 1.1: httptools parses, this keeps order, bounds and deadlines.

Requests of one connection are handled one after the other, in order of arrival; pipelined ones wait parsed. At any time
one deadline is running (`_deadline`), and what it means follows from the state: an unfinished head or body, a silent
connection, or a last answer that the client does not fetch. The server's sweep looks at it.
"""

from __future__ import annotations

import logging
from asyncio import BaseTransport
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import httptools

from dynamo.frontend.server.connection import Connection
from dynamo.frontend.server.dispatcher import Dispatcher
from dynamo.frontend.server.exchange import HeaderBlock
from dynamo.frontend.server.wire_connection import NEVER, WireConnection
from dynamo.frontend.server.wire_exchange import WireExchange, late_body
from dynamo.shared.errors import (
    DynamoError,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    RequestTimeout,
    TargetTooLong,
)

log = logging.getLogger(__name__)

FEED_SIZE = 8 * 1024  # bytes parsed at a time; bounds how many requests are found at once
BODY_FEED_SIZE = 64 * 1024  # while a body arrives, which is most of what follows then
MAX_PIPELINED = 8  # parsed requests that may wait before parsing and reading pause
CHUNK_OVERHEAD = 16  # bytes of chunk framing allowed per byte of body, above a fixed allowance
CHUNK_OVERHEAD_FREE = 64 * 1024
LINGER_S = 2.0  # in which a refused client may read the answer while what it still sends is discarded

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"
STATUS_LINES[529] = b"HTTP/1.1 529 Site Is Overloaded\r\n"
BODYLESS_STATUSES = frozenset({204, 304})
METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
SINGULAR_HEADERS = frozenset({b"host", b"content-length", b"transfer-encoding"})


class Http1Exchange(WireExchange):
    __slots__ = ("_connection", "_is_chunked", "_is_head", "expects_continue", "keep_alive", "refusal")

    def __init__(
        self,
        connection: Http1Connection,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
        http_version: str,
        keep_alive: bool,
    ) -> None:
        super().__init__(
            method,
            target,
            headers,
            http_version=http_version,
            scheme=connection.scheme,
            client=connection.client,
            max_body_bytes=connection.limits.max_body_bytes,
        )
        self._connection = connection
        self._is_chunked = False
        self._is_head = method == "HEAD"
        self.expects_continue = False
        self.keep_alive = keep_alive
        self.refusal: DynamoError | None = None  # answered with this instead of by the handler

    def _request_body(self) -> None:
        self._connection.request_body(self)

    def respond(self, status: int, headers: HeaderBlock, body: bytes = b"") -> None:
        if not self._claim_answer():
            return
        length = b"" if status in BODYLESS_STATUSES else b"content-length: %d\r\n" % len(body)
        if self._is_head or not length:
            body = b""
        self._connection.write(b"%b%b%b\r\n%b" % (self._head(status, headers), length, self._persistence(), body))
        self._complete()

    def start(self, status: int, headers: HeaderBlock) -> None:
        if not self._claim_answer():
            return
        self._is_chunked = self.http_version == "1.1" and not self._is_head and status not in BODYLESS_STATUSES
        self.keep_alive = self.keep_alive and self._is_chunked
        framing = b"transfer-encoding: chunked\r\n" if self._is_chunked else b""
        self._connection.write(b"%b%b%b\r\n" % (self._head(status, headers), framing, self._persistence()))

    def write(self, data: bytes) -> None:
        if self.is_disconnected or self.is_complete or self._is_head or not data:
            return
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def finish(self) -> None:
        if self.is_disconnected or self.is_complete:
            return
        if self._is_chunked:
            self._connection.write(b"0\r\n\r\n")
        self._complete()

    def abort(self) -> None:
        if self.is_disconnected or self.is_complete:
            return
        self.is_complete = True
        if self._is_chunked:
            self._connection.end()  # what was written still arrives, and the missing last chunk tells
        else:
            self._connection.reset()

    def _head(self, status: int, headers: HeaderBlock) -> bytes:
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return line + headers + self._connection.dispatcher.date

    def _persistence(self) -> bytes:
        self.keep_alive = self.keep_alive and self.is_body_complete and not self._connection.dispatcher.is_draining
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"" if self.http_version == "1.1" else b"connection: keep-alive\r\n"

    def _complete(self) -> None:
        self.is_complete = True
        self._connection.advance(self)


class Http1Connection(WireConnection):
    def __init__(self, dispatcher: Dispatcher, scheme: str, on_lost: Callable[[Connection], None]) -> None:
        super().__init__(dispatcher, scheme, on_lost)
        self._parser = httptools.HttpRequestParser(self)
        self._current: Http1Exchange | None = None  # being handled
        self._waiting: deque[Http1Exchange] = deque()  # pipelined behind it
        self._incoming: Http1Exchange | None = None  # whose body is arriving; one of the above
        self._deadline = NEVER
        self._is_reading_paused = False
        self._is_input_over = False  # what arrives is discarded
        self._unparsed = b""  # held back while enough requests wait
        self._read_size = 0  # of what the parser is being fed
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._is_in_head = False
        self._raw_head_size = 0  # of all that was fed since the piece in which this head began
        self._raw_body_size = 0
        self._body_framing = b""  # a head to parse the body of an upgrade request with
        self._is_reframing = False

    # ---- transport

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._deadline = self._loop.time() + self.limits.idle_timeout_s

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        self._parse()

    def eof_received(self) -> bool:
        """A client that has closed its side is gone; in the middle of a request it is told so."""
        if self._is_in_head or self._incoming is not None:
            self._stop_input(InvalidRequest("The request ended before it was complete.", code="truncated"))
            return True  # the answer still has to leave
        self.end()
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._current is not None:
            self._current.set_writable(False)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._current is not None:
            self._current.set_writable(True)

    # ---- parser: what it calls while it is fed

    def _parse(self) -> None:
        data, position = self._unparsed, 0
        while position < len(data) and not self._is_input_over and len(self._waiting) < MAX_PIPELINED:
            size = FEED_SIZE if self._incoming is None else BODY_FEED_SIZE
            position += self._feed(data[position : position + size])
            if self._is_in_head:
                self._bound_partial_head()
            elif self._incoming is not None:
                self._bound_chunk_framing(self._incoming)
        self._unparsed = b"" if self._is_input_over else data[position:]
        if self._incoming is not None or self._waiting:
            self._pace_reading()

    def _feed(self, data: bytes) -> int:
        """Parse; returns how much of it was, which is less than all where a request asks for an upgrade."""
        self._read_size = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._decline_upgrade()
            return int(stop.args[0])
        except httptools.HttpParserCallbackError as error:
            self._stop_input(error.__context__)
        except httptools.HttpParserError as error:
            self._stop_input(InvalidRequest(f"The request is not valid HTTP: {error}."))
        return len(data)

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._target = b""
        self._fields = []
        self._raw_head_size = -self._read_size

    def on_url(self, target: bytes) -> None:
        self._target = self._target + target if self._target else target
        if len(self._target) > self.limits.max_target_bytes:
            raise TargetTooLong(f"The request target is longer than {self.limits.max_target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # else it is a trailer
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._is_reframing:
            self._is_reframing = False
            return
        version = self._parser.get_http_version()
        method = self._parser.get_method()
        headers = self._take_headers()
        self._check_head(version, method, headers)
        exchange = Http1Exchange(
            self,
            METHODS.get(method) or method.decode(),
            self._target,
            headers,
            version,
            self._parser.should_keep_alive(),
        )
        self._open_body(exchange, headers)
        self._enqueue(exchange)

    def on_body(self, data: bytes) -> None:
        cast(Http1Exchange, self._incoming).push_body(data)

    def on_message_complete(self) -> None:
        exchange = self._incoming
        if self._body_framing or exchange is None:
            return
        self._incoming = None
        exchange.end_body()
        if exchange is self._current:
            self._deadline = NEVER
        self._is_input_over = not exchange.keep_alive

    # ---- request head

    def _bound_partial_head(self) -> None:
        """Called after each feed that ended inside a head. A value is not seen before its end, so bytes are counted."""
        is_first_feed = self._raw_head_size < 0
        self._raw_head_size += self._read_size
        if self._raw_head_size > self.limits.max_head_bytes:
            self._stop_input(self._head_too_large())
        elif is_first_feed and self._current is None:
            self._deadline = self._loop.time() + self.limits.head_timeout_s

    def _head_too_large(self) -> HeadersTooLarge:
        limits = self.limits
        return HeadersTooLarge(
            f"The request headers are over the limit of {limits.max_head_bytes} bytes or {limits.max_headers} headers."
        )

    def _take_headers(self) -> dict[bytes, bytes]:
        fields, limits = self._fields, self.limits
        if len(fields) > limits.max_headers:
            raise self._head_too_large()
        if self._raw_head_size >= 0 and sum(len(name) + len(value) for name, value in fields) > limits.max_head_bytes:
            raise self._head_too_large()
        headers: dict[bytes, bytes] = {}
        for field, value in fields:
            name = field.lower()
            if name not in headers:
                headers[name] = value
            elif name in SINGULAR_HEADERS:
                raise InvalidRequest(f"The header {name.decode()} may be given once only.")
        return headers

    def _check_head(self, version: str, method: bytes, headers: dict[bytes, bytes]) -> None:
        if version not in ("1.1", "1.0"):
            raise InvalidRequest(f"HTTP/{version} is not spoken on this connection.")
        if version == "1.1" and b"host" not in headers:
            raise InvalidRequest("A request needs a Host header.")
        if method == b"CONNECT":
            raise InvalidRequest("CONNECT is for proxies, and this is none.")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            raise InvalidRequest("The only transfer coding understood here is 'chunked', of HTTP/1.1.")

    def _open_body(self, exchange: Http1Exchange, headers: dict[bytes, bytes]) -> None:
        self._incoming = exchange
        self._raw_body_size = -self._read_size  # the read that holds the end of the head counts for neither
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.limits.max_body_bytes:
            exchange.refuse_body_size()
        if b"expect" in headers:
            exchange.expects_continue = headers[b"expect"].lower() == b"100-continue"
        if self._parser.should_upgrade():
            self._prepare_declined_upgrade(headers)

    # An upgrade (h2c, websocket) may be ignored, but the parser takes what follows such a head for another protocol,
    # body included. To get the body parsed as what it is, it is given to the parser again behind a head of our own.

    def _prepare_declined_upgrade(self, headers: dict[bytes, bytes]) -> None:
        if b"content-length" in headers:
            self._body_framing = b"POST / HTTP/1.1\r\ncontent-length: %b\r\n\r\n" % headers[b"content-length"]
        elif b"transfer-encoding" in headers:
            self._body_framing = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"

    def _decline_upgrade(self) -> None:
        framing, self._body_framing = self._body_framing, b""
        if framing:
            self._is_reframing = True
            self._parser.feed_data(framing)

    # ---- order of requests

    def _enqueue(self, exchange: Http1Exchange) -> None:
        if self._current is None:
            self._handle(exchange)
        else:
            self._waiting.append(exchange)

    def _handle(self, exchange: Http1Exchange) -> None:
        self._current = exchange
        self._deadline = NEVER
        exchange.is_writable = not self._is_write_paused
        if exchange.refusal is None:
            self.dispatcher.dispatch(exchange)
        else:
            self.dispatcher.refuse(exchange, exchange.refusal)

    def advance(self, answered: Http1Exchange) -> None:
        """The current exchange is answered: go on with the next one."""
        self._current = None
        if not answered.keep_alive or self.dispatcher.is_draining:
            self._end_politely(answered)
        elif self._waiting:
            self._handle(self._waiting.popleft())
            self._parse()
        else:
            wait_s = self.limits.head_timeout_s if self._is_in_head else self.limits.idle_timeout_s
            self._deadline = self._loop.time() + wait_s

    def _stop_input(self, reason: BaseException | None) -> None:
        """Nothing after this point of the input can be understood, or is wanted."""
        is_after_last = self._is_input_over
        self._is_input_over = True
        self._is_in_head = False
        incoming, self._incoming = self._incoming, None
        if is_after_last:
            return
        error = reason if isinstance(reason, DynamoError) else InternalError()
        if incoming is not None:
            incoming.keep_alive = False
            incoming.fail_body(error)
        else:
            self._refuse(error)
        if error is not reason:
            log.error("Parsing a request failed", exc_info=reason)

    def _refuse(self, error: DynamoError) -> None:
        refused = Http1Exchange(self, "", self._target or b"/", {}, "1.1", keep_alive=False)
        refused.refusal = error
        self._is_input_over = True
        self._enqueue(refused)

    # ---- pace of reading

    def request_body(self, exchange: Http1Exchange) -> None:
        self._deadline = self._loop.time() + self.limits.body_timeout_s
        if exchange.expects_continue and not exchange.body_size:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._pace_reading()

    def _pace_reading(self) -> None:
        incoming = self._incoming
        should_pause = len(self._waiting) >= MAX_PIPELINED or (incoming is not None and incoming.is_body_hoarded)
        if should_pause and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()
        elif self._is_reading_paused and not should_pause:
            self._is_reading_paused = False
            self._transport.resume_reading()

    def _bound_chunk_framing(self, incoming: Http1Exchange) -> None:
        """Chunk extensions and trailers are no body, and no limit on bodies sees them."""
        self._raw_body_size += self._read_size
        allowed = CHUNK_OVERHEAD_FREE + CHUNK_OVERHEAD * incoming.body_size
        if self._raw_body_size - incoming.body_size > allowed:
            self._stop_input(InvalidRequest("The chunks of the request body are framing more than content."))

    # ---- time

    def sweep(self, now: float) -> None:
        if now >= self._deadline:
            self._expire(now)
        elif (self._is_write_paused or self._transport.is_closing()) and self._stall.is_stalled(now):
            self.reset()

    def _expire(self, now: float) -> None:
        body = self._incoming
        if body is not None and body is self._current:
            self._expire_body(body, now)
        elif self._is_in_head:
            self._stop_input(RequestTimeout(f"The headers did not arrive within {self.limits.head_timeout_s:g} s."))
        else:
            self.end()

    def _expire_body(self, body: Http1Exchange, now: float) -> None:
        earned_until = self._deadline + body.body_size / self.limits.min_body_rate
        if now < earned_until:
            self._deadline = earned_until
            return
        self._deadline = NEVER
        self._is_input_over = True
        body.keep_alive = False
        body.fail_body(late_body(body.body_size))

    # ---- ends

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def _end_politely(self, answered: Http1Exchange) -> None:
        """Closing on a client that still sends would reset the connection and could take the answer with it."""
        is_still_sending = not answered.is_body_complete or answered.refusal is not None
        self._is_input_over = True
        self._incoming = None
        self._waiting.clear()
        self._unparsed = b""
        if not is_still_sending:
            self.end()
            return
        self._deadline = self._loop.time() + LINGER_S
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def end(self) -> None:
        """Close once what was written is sent, or the client has stopped taking it."""
        self._is_input_over = True
        self._deadline = NEVER
        self._stall.begin(self._loop.time())
        self._forget_requests()
        self._transport.close()

    def reset(self) -> None:
        self._is_input_over = True
        super().reset()

    def shut_down(self) -> None:
        """Close when nothing is being answered; answers in flight say `connection: close` by the dispatcher's word."""
        if self._current is None and not self._is_input_over:
            self.end()

    def _forget_requests(self) -> None:
        self._waiting.clear()
        self._incoming = None
        current, self._current = self._current, None
        if current is not None:
            current.disconnect()
