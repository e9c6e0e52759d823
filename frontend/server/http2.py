"""HTTP/2, over TLS by ALPN and in clear text by prior knowledge: h2 keeps the protocol's rules, this has the bounds.

Answers wait in their exchange while the flow-control window or the socket is full. The body of a request is
acknowledged, so that more may come, only while it is wanted.
"""

from __future__ import annotations

import contextlib
from asyncio import BaseTransport
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from dynamo.frontend.server.connection import Connection
from dynamo.frontend.server.dispatcher import Dispatcher
from dynamo.frontend.server.exchange import HeaderBlock
from dynamo.frontend.server.limits import Limits
from dynamo.frontend.server.wire_connection import NEVER, WireConnection
from dynamo.frontend.server.wire_exchange import WireExchange, late_body
from dynamo.shared.errors import HeadersTooLarge, TargetTooLong

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM_WINDOW = 64 * 1024  # bytes of body a client may send before it is wanted
CONNECTION_WINDOW = 4 * 1024 * 1024
MAX_UNSENT_REPLIES = 1024 * 1024  # bytes of pings and settings owed to a client that reads nothing

# What costs the client nothing to send and us something to serve is paid from an allowance that refills with time.
ALLOWANCE = 1000
ALLOWANCE_PER_S = 100
RESET_COST = 10

HeaderList = list[tuple[bytes, bytes]]


class Http2Exchange(WireExchange):
    __slots__ = (
        "_connection",
        "_is_head",
        "blocked_since",
        "body_deadline",
        "is_end_sent",
        "num_unacknowledged",
        "stream_id",
        "unsent",
    )

    def __init__(
        self,
        connection: Http2Connection,
        stream_id: int,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
    ) -> None:
        super().__init__(
            method,
            target,
            headers,
            http_version="2",
            scheme=connection.scheme,
            client=connection.client,
            max_body_bytes=connection.limits.max_body_bytes,
        )
        self.stream_id = stream_id
        self.body_deadline = NEVER
        self.num_unacknowledged = 0  # body bytes the client has not got its window back for
        self._connection = connection
        self._is_head = method == "HEAD"
        self.unsent = bytearray()  # not taken by a window or the socket yet
        self.blocked_since = NEVER
        self.is_end_sent = False

    def _request_body(self) -> None:
        self._connection.request_body(self)

    def respond(self, status: int, headers: HeaderBlock, body: bytes = b"") -> None:
        if not self._claim_answer():
            return
        self._connection.send_headers(self, status, b"%bcontent-length: %d\r\n" % (headers, len(body)))
        if not self._is_head:
            self.unsent += body
        self.finish()

    def start(self, status: int, headers: HeaderBlock) -> None:
        if self._claim_answer():
            self._connection.send_headers(self, status, headers)
            self._connection.flush()

    def write(self, data: bytes) -> None:
        if self.is_disconnected or self.is_complete or self._is_head:
            return
        self.unsent += data
        self._connection.send_unsent(self)
        if len(self.unsent) >= self._connection.limits.high_water:
            self.is_writable = False

    def finish(self) -> None:
        if not (self.is_disconnected or self.is_complete):
            self.is_complete = True
            self._connection.send_unsent(self)

    def abort(self) -> None:
        if not (self.is_disconnected or self.is_complete):
            self.is_complete = True
            self._connection.reset_stream(self, ErrorCodes.INTERNAL_ERROR)


class Http2Connection(WireConnection):
    def __init__(self, dispatcher: Dispatcher, scheme: str, on_lost: Callable[[Connection], None]) -> None:
        super().__init__(dispatcher, scheme, on_lost)
        self._h2 = _new_h2(self.limits)
        self._exchanges: dict[int, Http2Exchange] = {}  # until the last byte of the answer is in the socket's buffer
        self._idle_deadline = NEVER
        self._is_draining = False
        self._allowance: float = ALLOWANCE
        self._swept_at = self._loop.time()

    # ---- transport

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._idle_deadline = self._loop.time() + self.limits.idle_timeout_s
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:  # h2 has put into words what is wrong, in a GOAWAY frame
            self._close()
            return
        for event in events:
            self._on_event(event)
        self.flush()

    def eof_received(self) -> None:
        self._close()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send_all_unsent()

    def flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_UNSENT_REPLIES:
                self.reset()

    # ---- what the client sends

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self._on_data(event)
            case h2.events.RequestReceived():
                self._on_request(event)
            case h2.events.StreamEnded(stream_id=stream_id) if stream_id in self._exchanges:
                exchange = self._exchanges[stream_id]
                exchange.body_deadline = NEVER
                exchange.end_body()
            case h2.events.WindowUpdated(stream_id=0):
                self._send_all_unsent()
            case h2.events.WindowUpdated(stream_id=stream_id) if stream_id in self._exchanges:
                self.send_unsent(self._exchanges[stream_id])
            case h2.events.StreamReset(stream_id=stream_id):
                self._charge(RESET_COST)
                if (reset := self._exchanges.get(stream_id)) is not None:
                    self._lose(reset)
            case h2.events.RemoteSettingsChanged():
                self._charge(1)
                self._send_all_unsent()
            case h2.events.ConnectionTerminated():
                self._close()
            case h2.events.PingReceived() | h2.events.PriorityUpdated() | h2.events.UnknownFrameReceived():
                self._charge(1)

    def _on_request(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id
        if self._is_draining:
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        headers: dict[bytes, bytes] = {}
        for name, value in event.headers:
            headers.setdefault(name, value)
        headers.setdefault(b"host", headers.get(b":authority", b""))
        target = headers.get(b":path", b"*")
        exchange = Http2Exchange(self, stream_id, headers[b":method"].decode("latin-1"), target, headers)
        self._exchanges[stream_id] = exchange
        self._idle_deadline = NEVER
        if int(headers.get(b"content-length", b"0")) > self.limits.max_body_bytes:
            exchange.refuse_body_size()
        if len(target) > self.limits.max_target_bytes:
            limit = self.limits.max_target_bytes
            self.dispatcher.refuse(exchange, TargetTooLong(f"The request target is longer than {limit} bytes."))
        elif len(event.headers) > self.limits.max_headers:
            limit = self.limits.max_headers
            self.dispatcher.refuse(exchange, HeadersTooLarge(f"The request has more than {limit} headers."))
        else:
            self.dispatcher.dispatch(exchange)

    def _on_data(self, event: h2.events.DataReceived) -> None:
        num_bytes = event.flow_controlled_length
        exchange = self._exchanges.get(event.stream_id)
        if not num_bytes:
            self._charge(1)
        if exchange is None:
            self._acknowledge(num_bytes, event.stream_id)
            return
        exchange.push_body(event.data)
        exchange.num_unacknowledged += num_bytes
        if exchange.is_body_wanted:
            self._give_window_back(exchange)

    def _charge(self, cost: int) -> None:
        self._allowance -= cost
        if self._allowance < 0 and not self._transport.is_closing():
            self._go_away(ErrorCodes.ENHANCE_YOUR_CALM)
            self._close()

    # ---- request bodies

    def request_body(self, exchange: Http2Exchange) -> None:
        exchange.body_deadline = self._loop.time() + self.limits.body_timeout_s
        self._give_window_back(exchange)
        self.flush()

    def _give_window_back(self, exchange: Http2Exchange) -> None:
        num_bytes, exchange.num_unacknowledged = exchange.num_unacknowledged, 0
        self._acknowledge(num_bytes, exchange.stream_id)

    def _acknowledge(self, num_bytes: int, stream_id: int) -> None:
        if num_bytes:
            with contextlib.suppress(h2.exceptions.ProtocolError):  # reset later in the same read
                self._h2.acknowledge_received_data(num_bytes, stream_id)

    # ---- answers

    def send_headers(self, exchange: Http2Exchange, status: int, headers: HeaderBlock) -> None:
        fields = [(b":status", b"%d" % status), *_header_list(headers + self.dispatcher.date)]
        with contextlib.suppress(h2.exceptions.ProtocolError):  # reset later in the same read
            self._h2.send_headers(exchange.stream_id, fields)

    def send_unsent(self, exchange: Http2Exchange) -> None:
        """As much as the windows and the socket take now."""
        try:
            self._send_frames(exchange)
        except h2.exceptions.ProtocolError:  # reset later in the same read, which is seen next
            return
        if exchange.unsent:
            if exchange.blocked_since == NEVER:
                exchange.blocked_since = self._loop.time()
        elif exchange.is_complete:
            self._forget(exchange)
        if not exchange.is_writable and len(exchange.unsent) <= self.limits.low_water:
            exchange.set_writable(True)

    def _send_frames(self, exchange: Http2Exchange) -> None:
        stream_id, unsent = exchange.stream_id, exchange.unsent
        while unsent and not self._is_write_paused:
            size = min(len(unsent), self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if size <= 0:
                break
            is_last = exchange.is_complete and size == len(unsent)
            self._h2.send_data(stream_id, bytes(unsent[:size]), end_stream=is_last)
            del unsent[:size]
            exchange.blocked_since = NEVER
            exchange.is_end_sent = is_last
            self.flush()
        if exchange.is_complete and not unsent and not exchange.is_end_sent:
            exchange.is_end_sent = True
            self._h2.end_stream(stream_id)
            self.flush()

    def _send_all_unsent(self) -> None:
        for exchange in tuple(self._exchanges.values()):
            if exchange.unsent:
                self.send_unsent(exchange)

    # ---- ends

    def reset_stream(self, exchange: Http2Exchange, code: ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # over already
            self._h2.reset_stream(exchange.stream_id, code)
        self._drop(exchange)
        self.flush()

    def _forget(self, exchange: Http2Exchange) -> None:
        """The answer is sent. A client that still sends its request may stop."""
        if exchange.is_body_complete:
            self._drop(exchange)
        else:
            self.reset_stream(exchange, ErrorCodes.NO_ERROR)

    def _lose(self, exchange: Http2Exchange) -> None:
        exchange.disconnect()
        self._drop(exchange)

    def _drop(self, exchange: Http2Exchange) -> None:
        self._exchanges.pop(exchange.stream_id, None)
        exchange.unsent.clear()
        self._give_window_back(exchange)
        if not self._exchanges:
            self._idle_deadline = self._loop.time() + self.limits.idle_timeout_s
            if self._is_draining:
                self._close()

    def _forget_requests(self) -> None:
        for exchange in tuple(self._exchanges.values()):
            exchange.disconnect()
        self._exchanges.clear()

    def _go_away(self, code: ErrorCodes) -> None:
        """Not by h2, which would refuse to go on with the streams that are open."""
        self.flush()
        frame = GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id, error_code=code)
        self._transport.write(frame.serialize())

    def _close(self) -> None:
        """Once what was written is sent, or the client has stopped taking it."""
        self.flush()
        self._stall.begin(self._loop.time())
        self._forget_requests()
        self._transport.close()

    def shut_down(self) -> None:
        if self._is_draining or self._transport.is_closing():
            return
        self._is_draining = True
        self._go_away(ErrorCodes.NO_ERROR)
        if not self._exchanges:
            self._close()

    # ---- time

    def sweep(self, now: float) -> None:
        self._allowance = min(ALLOWANCE, self._allowance + ALLOWANCE_PER_S * (now - self._swept_at))
        self._swept_at = now
        if self._is_write_paused or self._transport.is_closing():
            if self._stall.is_stalled(now):
                self.reset()
        elif now >= self._idle_deadline:
            self.shut_down()
        for exchange in tuple(self._exchanges.values()):
            self._sweep_exchange(exchange, now)

    def _sweep_exchange(self, exchange: Http2Exchange, now: float) -> None:
        if now >= exchange.body_deadline + exchange.body_size / self.limits.min_body_rate:
            exchange.body_deadline = NEVER
            exchange.fail_body(late_body(exchange.body_size))
        if now >= exchange.blocked_since + self.limits.stall_timeout_s:
            exchange.disconnect()
            self.reset_stream(exchange, ErrorCodes.CANCEL)


def _new_h2(limits: Limits) -> h2.connection.H2Connection:
    config = h2.config.H2Configuration(
        client_side=False, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = h2.connection.H2Connection(config)
    connection.local_settings = h2.settings.Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_head_bytes,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
        },
    )
    return connection


def _header_list(block: HeaderBlock) -> HeaderList:
    return [(name, value) for name, _, value in (line.partition(b": ") for line in block.split(b"\r\n") if line)]
