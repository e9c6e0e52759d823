"""The event plane over ZeroMQ: each publisher binds a PUB socket, each subscriber has one SUB socket for all of them.

message   topic | publisher_id u64 BE | sequence u64 BE | 0x01, u32 BE length, envelope
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Sequence
from typing import cast

import zmq

from dynamo.shared.event_plane import Transport
from dynamo.shared.turns import TurnBudget

log = logging.getLogger("dynamo.events")

KIND = "Zmq"
HIGH_WATER_MARK = 10_000  # messages per peer; a subscriber that falls further behind sees a gap
MAX_MESSAGE_BYTES = 64 << 20
RECONNECT_MS = (100, 2_000)  # first pause, longest pause
HEARTBEAT_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 15_000
FAREWELL_MS = 200  # how long closing may wait for the last messages to leave

_U64 = struct.Struct(">Q")
_PREFIX = struct.Struct(">BI")
_VERSION = 1
_NUM_FRAMES = 4
_DONTWAIT = zmq.Flag.DONTWAIT


class NotAnEvent(ValueError):
    """The frames are not those of an event."""


def frames_of(topic: bytes, publisher_id: int, sequence: int, envelope: bytes) -> list[bytes]:
    prefix = _PREFIX.pack(_VERSION, len(envelope))
    return [topic, _U64.pack(publisher_id), _U64.pack(sequence), prefix + envelope]


def envelope_of(frames: Sequence[bytes]) -> bytes:
    """The encoded envelope. Raises NotAnEvent."""
    if len(frames) != _NUM_FRAMES or len(frames[3]) < _PREFIX.size:
        raise NotAnEvent(f"{len(frames)} frames, expected {_NUM_FRAMES}")
    version, length = _PREFIX.unpack_from(frames[3])
    if version != _VERSION or length != len(frames[3]) - _PREFIX.size:
        raise NotAnEvent(f"version {version} and length {length} do not fit {len(frames[3])} bytes")
    return frames[3][_PREFIX.size :]


class ZmqOutlet:
    """The publisher's end. Sending never waits: what a subscriber does not read in time is lost to it alone."""

    def __init__(self, host: str, topic: str, publisher_id: int) -> None:
        self._host = f"[{host}]" if ":" in host else host
        self._topic = topic.encode()
        self._publisher_id = publisher_id
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        _set_options(self._socket)

    async def open(self) -> Transport:
        """Raises OSError when the address is none of this host's."""
        self._socket.setsockopt(zmq.IPV6, "[" in self._host)  # with it, IPv4 addresses would be announced as IPv6
        try:
            self._socket.bind(f"tcp://{self._host}:*")
        except zmq.ZMQError as error:
            raise OSError(
                f"cannot publish events at {self._host}: {error.strerror}; set DYN_EVENT_PLANE_HOST to an address of "
                "this host"
            ) from error
        return Transport(KIND, {"endpoint": self._socket.getsockopt_string(zmq.LAST_ENDPOINT)})

    def send(self, sequence: int, envelope: bytes) -> bool:
        try:
            self._socket.send_multipart(frames_of(self._topic, self._publisher_id, sequence, envelope), _DONTWAIT)
        except zmq.Again:
            return False
        return True

    async def close(self) -> None:
        self._socket.close(linger=FAREWELL_MS)


class ZmqInlet:
    """The subscriber's end, driven by the loop. Hands over encoded envelopes; `on_malformed` is told of what is none.

    The socket's FD is edge-triggered, so a turn ends only when there was nothing more to receive, and whatever else
    touches the socket asks for another turn.
    """

    def __init__(
        self, topic: str, on_envelope: Callable[[bytes], None], on_malformed: Callable[[Exception], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_envelope = on_envelope
        self._on_malformed = on_malformed
        self._topic = topic.encode()
        self._is_turn_scheduled = False
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        _set_options(self._socket)
        self._socket.setsockopt(zmq.SUBSCRIBE, self._topic)
        self._fd = cast(int, self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._turn)

    def connect(self, endpoint: str) -> None:
        """Raises OSError when that is no address."""
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)  # for the connections to come
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise OSError(f"cannot subscribe at {endpoint!r}: {error.strerror}") from error
        self._schedule_turn()

    def disconnect(self, endpoint: str) -> None:
        self._socket.disconnect(endpoint)
        self._schedule_turn()

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=0)

    def _schedule_turn(self) -> None:
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turn_scheduled = False
        is_drained = False
        try:
            is_drained = self._drain()
        finally:
            if not is_drained:
                self._schedule_turn()

    def _drain(self) -> bool:
        """Whether nothing is left to receive."""
        budget = TurnBudget()
        while not self._socket.closed:
            try:
                frames = self._socket.recv_multipart(_DONTWAIT)
            except zmq.Again:
                return True
            self._handle(frames)
            if not budget.spend(len(frames[-1])):
                return False
        return True

    def _handle(self, frames: list[bytes]) -> None:
        if frames[0] != self._topic:  # ZeroMQ compares only the beginning
            return
        try:
            envelope = envelope_of(frames)
        except NotAnEvent as error:
            self._on_malformed(error)
            return
        self._on_envelope(envelope)


def _set_options(socket: zmq.Socket[bytes]) -> None:
    for name, value in (
        (zmq.LINGER, 0),
        (zmq.SNDHWM, HIGH_WATER_MARK),
        (zmq.RCVHWM, HIGH_WATER_MARK),
        (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
        (zmq.RECONNECT_IVL, RECONNECT_MS[0]),
        (zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1]),
        (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
        (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
    ):
        socket.setsockopt(name, value)
