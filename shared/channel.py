"""ZeroMQ sockets on an asyncio loop, for the messages acceptors and the router exchange.

No task and no future per message: the loop watches the socket's FD, one *turn* hands over everything that has
arrived and then sends everything that was said since the last turn, as one ZeroMQ message per peer.

The FD is edge-triggered and means "look at EVENTS", nothing more. Any call on the socket, a send too, may swallow the
edge; so a turn that touched the socket looks at EVENTS again before it ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import msgspec
import zmq

from dynamo.shared.messages import AcceptorMessage, RouterMessage, decode_from_acceptor, decode_from_router, encode

log = logging.getLogger("dynamo.channel")

MAX_RECEIVES_PER_TURN = 256  # then other callbacks of the loop get their chance
MAX_PENDING = 65_536  # messages waiting for one peer whose queue is full
MAX_MESSAGE_BYTES = 64 << 20  # inbound to the router, whose port may be reachable by others
HIGH_WATER_MARK = 1_000  # ZeroMQ messages, that is turns
HEARTBEAT_MS = 1_000  # how often ZeroMQ pings a silent peer
HEARTBEAT_TIMEOUT_MS = 5_000
SOON_S = 0.002
FAREWELL_MS = 100  # how long `close` may wait for the last batch to leave

_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)
_DONTWAIT = zmq.Flag.DONTWAIT
_IDENTITY_FOLLOWED = zmq.Flag.SNDMORE | zmq.Flag.DONTWAIT


def _int_option(socket: zmq.Socket[Any], name: int) -> int:
    return cast(int, socket.getsockopt(name))


def _may_schedule_in_batches() -> bool:
    """A batch thread does not interrupt the one that wakes it. On a busy core ZeroMQ's thread then moves several
    messages at a time, which halves the router's cost; on an idle one nothing changes.

    Tried out here: where it is forbidden (a sandbox) ZeroMQ would end the process.
    """
    try:
        policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.sched_setscheduler(0, policy, parameters)
    except (AttributeError, OSError):
        return False
    return True


class Channel:
    """One socket and its turns; children say how to receive and what to send. Made and used inside the running loop."""

    kind: ClassVar[int]

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context(io_threads=1)
        if _may_schedule_in_batches():
            self._context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
        self._socket: zmq.Socket[bytes] = self._context.socket(self.kind)
        self._is_turn_scheduled = False
        self.num_malformed = 0
        for name, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, HIGH_WATER_MARK),
            (zmq.RCVHWM, HIGH_WATER_MARK),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
        ):
            self._socket.setsockopt(name, value)

    def _watch(self) -> None:
        self._loop.add_reader(_int_option(self._socket, zmq.FD), self._turn)
        self._schedule_turn()

    def close(self) -> None:
        """Send what is still pending, briefly, and give everything back. Safe to call twice."""
        if self._socket.closed:
            return
        self._flush()
        self._loop.remove_reader(_int_option(self._socket, zmq.FD))
        self._socket.close(linger=FAREWELL_MS)
        self._context.term()

    def _schedule_turn(self) -> None:
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._socket.closed:
            return
        self._is_turn_scheduled = True  # what callbacks send now leaves at the end of this very turn
        try:
            self._flush()
            num_received = self._drain()  # looks at EVENTS after that flush, too
            has_answered = num_received > 0 and not self._socket.closed and self._flush()
        finally:
            self._is_turn_scheduled = False
        if self._has_unsent or has_answered or num_received == MAX_RECEIVES_PER_TURN:
            self._look_again()

    def _look_again(self) -> None:
        if self._has_work(self._events()):
            self._schedule_turn()

    def _drain(self) -> int:
        num_received = 0
        while num_received < MAX_RECEIVES_PER_TURN and self._events() & _POLLIN:
            self._receive()
            num_received += 1
        return num_received

    def _events(self) -> int:
        return 0 if self._socket.closed else _int_option(self._socket, zmq.EVENTS)

    def _has_work(self, events: int) -> bool:
        return bool(events & _POLLIN)

    @property
    def _has_unsent(self) -> bool:
        raise NotImplementedError

    def _receive(self) -> None:
        raise NotImplementedError

    def _flush(self) -> bool:
        """Send what is pending; whether the socket was touched."""
        raise NotImplementedError

    def _note_malformed(self, peer: str, error: Exception) -> None:
        self.num_malformed += 1
        if self.num_malformed == 1:
            log.warning(
                "dropped a message of %s that is none of ours (%s); do both ends run the same version? "
                "Further ones are only counted",
                peer,
                error,
            )


class RouterChannel(Channel):
    """The router's end: knows its peers by identity. A peer that cannot be reached any more, or that does not read for
    MAX_PENDING messages, is reported to `on_lost` once per attempt and what was pending for it is dropped."""

    kind = zmq.ROUTER

    def __init__(
        self,
        address: str,
        *,
        on_messages: Callable[[bytes, list[AcceptorMessage]], None],
        on_lost: Callable[[bytes], None],
    ) -> None:
        super().__init__()
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._pending: dict[bytes, list[RouterMessage]] = {}
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(f"cannot listen on {address}: {error.strerror}; choose another --bind") from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._watch()

    def send(self, identity: bytes, messages: Iterable[RouterMessage]) -> None:
        """Queue for the end of this tick. No message at all tells the peer that we live, and us whether it does."""
        self._schedule_turn()
        self._pending.setdefault(identity, []).extend(messages)

    def _receive(self) -> None:
        identity = self._socket.recv(_DONTWAIT)
        frame = self._socket.recv(_DONTWAIT, copy=False)
        is_ours = not frame.more
        while frame.more:
            frame = self._socket.recv(_DONTWAIT, copy=False)
        try:
            if not is_ours:
                raise ValueError("more than one frame")
            messages = decode_from_acceptor(frame.buffer)
        except (msgspec.MsgspecError, ValueError) as error:
            self._note_malformed(f"peer {identity.hex()}", error)
            return
        self._on_messages(identity, messages)

    @property
    def _has_unsent(self) -> bool:
        return bool(self._pending)

    def _flush(self) -> bool:
        if not self._pending:
            return False
        pending, self._pending = self._pending, {}
        for identity, batch in pending.items():
            self._send_batch(identity, batch)
        return True

    def _send_batch(self, identity: bytes, batch: list[RouterMessage]) -> None:
        try:
            self._socket.send(identity, _IDENTITY_FOLLOWED)
            self._socket.send(encode(batch), _DONTWAIT)
        except zmq.Again:  # the next turn, at the latest the peer's next heartbeat, tries again
            if len(batch) < MAX_PENDING:
                self._pending[identity] = batch + self._pending.get(identity, [])
            else:
                self._on_lost(identity)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._on_lost(identity)


class DealerChannel(Channel):
    """An acceptor's end: one router, which may come and go. `on_disconnect` follows its death at once; what was pending
    then is dropped, for a router that comes back knows nothing of it."""

    kind = zmq.DEALER

    def __init__(
        self,
        address: str,
        *,
        on_messages: Callable[[list[RouterMessage]], None],
        on_connect: Callable[[], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        super().__init__()
        self.address = address
        self.is_connected = False
        self._on_messages = on_messages
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._pending: list[AcceptorMessage] = []
        self._is_soon_scheduled = False
        for name, value in ((zmq.IMMEDIATE, 1), (zmq.RECONNECT_IVL, 50), (zmq.RECONNECT_IVL_MAX, 500)):
            self._socket.setsockopt(name, value)
        self._monitor = _ConnectionMonitor(self._socket, self._loop, self._note_connection)
        self._socket.connect(address)
        self._watch()

    def close(self) -> None:
        if not self._socket.closed:
            self._monitor.close()
            super().close()
        self.is_connected = False

    def send(self, message: AcceptorMessage) -> bool:
        """Queue for the end of this tick. False, and nothing is sent, while no router is connected or none reads."""
        if not self.is_connected or len(self._pending) >= MAX_PENDING:
            return False
        self._pending.append(message)
        if not self._is_turn_scheduled:
            self._schedule_turn()
        return True

    def send_soon(self, message: AcceptorMessage) -> bool:
        """As `send`, for what nobody waits for: it leaves with the next message, at the latest after SOON_S."""
        if not self.is_connected or len(self._pending) >= MAX_PENDING:
            return False
        self._pending.append(message)
        if not self._is_turn_scheduled and not self._is_soon_scheduled:
            self._is_soon_scheduled = True
            self._loop.call_later(SOON_S, self._soon)
        return True

    def _soon(self) -> None:
        self._is_soon_scheduled = False
        if self._pending:
            self._schedule_turn()

    def _receive(self) -> None:
        try:
            messages = decode_from_router(self._socket.recv(_DONTWAIT))
        except msgspec.MsgspecError as error:
            self._note_malformed("the router", error)
            return
        self._on_messages(messages)

    @property
    def _has_unsent(self) -> bool:
        return bool(self._pending)

    def _flush(self) -> bool:
        if not self._pending:
            return False
        try:
            self._socket.send(encode(self._pending), _DONTWAIT)
        except zmq.Again:
            return True
        self._pending = []
        return True

    def _has_work(self, events: int) -> bool:
        return bool(events & _POLLIN or (self._pending and events & _POLLOUT))

    def _note_connection(self, is_connected: bool) -> None:
        if is_connected == self.is_connected:
            return
        self.is_connected = is_connected
        self._pending = []
        self._schedule_turn()
        if is_connected:
            self._on_connect()
        else:
            self._on_disconnect()


class _ConnectionMonitor:
    """Tells when the socket's one peer is really there (handshake done) and when it is gone."""

    _EVENTS = int(zmq.EVENT_HANDSHAKE_SUCCEEDED) | int(zmq.EVENT_DISCONNECTED)

    def __init__(
        self, socket: zmq.Socket[bytes], loop: asyncio.AbstractEventLoop, on_change: Callable[[bool], None]
    ) -> None:
        self._watched = socket
        self._loop = loop
        self._on_change = on_change
        self._socket: zmq.Socket[Any] = socket.get_monitor_socket(self._EVENTS)
        self._loop.add_reader(_int_option(self._socket, zmq.FD), self._turn)
        self._loop.call_soon(self._turn)

    def close(self) -> None:
        self._loop.remove_reader(_int_option(self._socket, zmq.FD))
        self._watched.disable_monitor()
        self._socket.close(linger=0)

    def _turn(self) -> None:
        while not self._socket.closed and _int_option(self._socket, zmq.EVENTS) & _POLLIN:
            event, _value = struct.unpack("=HI", self._socket.recv_multipart(_DONTWAIT)[0])
            self._on_change(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)
