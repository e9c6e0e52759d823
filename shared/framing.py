"""Byte framing of the request plane, without IO.

two-part   u64 BE header_len | u64 BE data_len | u64 BE checksum (0) | header | data
request    u16 BE path_len | path | u16 BE headers_len | headers (JSON) | u32 BE payload_len | payload (a two-part)
ack        u32 BE len | bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

TWO_PART_PREFIX = struct.Struct(">QQQ")
ACK_PREFIX = struct.Struct(">I")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

MAX_MESSAGE_SIZE = 32 * 1024 * 1024  # bytes; DYN_TCP_MAX_MESSAGE_SIZE

# Control frames, whole: a JSON string as header, no data.
SENTINEL = b'"sentinel"'
STOP = b'"stop"'
KILL = b'"kill"'


class FrameTooLarge(Exception):
    """A peer announced a frame over the limit; the connection cannot be resynchronised."""


def encode_two_part(header: bytes, data: bytes = b"") -> bytes:
    return b"".join((TWO_PART_PREFIX.pack(len(header), len(data), 0), header, data))


def encode_request(path: bytes, headers: bytes, header: bytes, data: bytes) -> bytes:
    """One frame on a pooled worker connection; `header` is the control message, `data` the encoded request."""
    payload_len = TWO_PART_PREFIX.size + len(header) + len(data)
    return b"".join(
        (
            _U16.pack(len(path)),
            path,
            _U16.pack(len(headers)),
            headers,
            _U32.pack(payload_len),
            TWO_PART_PREFIX.pack(len(header), len(data), 0),
            header,
            data,
        )
    )


def encode_ack(text: bytes = b"") -> bytes:
    return ACK_PREFIX.pack(len(text)) + text


class TwoPartDecoder:
    """Incremental: `push` what arrived, iterate over the whole `(header, data)` frames it completed."""

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._max_size = max_size
        self._buffer = bytearray()

    def push(self, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
        buffer = self._buffer
        buffer += chunk
        start, size = 0, TWO_PART_PREFIX.size
        try:
            while len(buffer) - start >= size:
                header_len, data_len, _checksum = TWO_PART_PREFIX.unpack_from(buffer, start)
                if header_len + data_len > self._max_size:
                    raise FrameTooLarge(f"frame of {header_len + data_len} bytes, limit {self._max_size}")
                end = start + size + header_len + data_len
                if len(buffer) < end:
                    return
                header_end = start + size + header_len
                yield bytes(buffer[start + size : header_end]), bytes(buffer[header_end:end])
                start = end
        finally:
            del buffer[:start]


class RequestDecoder:
    """Worker side of a request connection: yields `(path, headers, payload)`."""

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._max_size = max_size
        self._buffer = bytearray()

    def push(self, chunk: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
        buffer = self._buffer
        buffer += chunk
        while (bounds := self._bounds()) is not None:
            path_end, headers_end, end = bounds
            frame = (
                bytes(buffer[2:path_end]),
                bytes(buffer[path_end + 2 : headers_end]),
                bytes(buffer[headers_end + 4 : end]),
            )
            del buffer[:end]
            yield frame

    def _bounds(self) -> tuple[int, int, int] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        path_end = 2 + _U16.unpack_from(buffer, 0)[0]
        if len(buffer) < path_end + 2:
            return None
        headers_end = path_end + 2 + _U16.unpack_from(buffer, path_end)[0]
        if len(buffer) < headers_end + 4:
            return None
        payload_len = _U32.unpack_from(buffer, headers_end)[0]
        if payload_len > self._max_size:
            raise FrameTooLarge(f"request of {payload_len} bytes, limit {self._max_size}")
        end = headers_end + 4 + payload_len
        return (path_end, headers_end, end) if len(buffer) >= end else None


class AckDecoder:
    """Frontend side of a request connection: yields the text of each ack, empty when accepted."""

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._max_size = max_size
        self._buffer = bytearray()

    def push(self, chunk: bytes) -> Iterator[bytes]:
        buffer = self._buffer
        buffer += chunk
        while len(buffer) >= 4:
            (length,) = ACK_PREFIX.unpack_from(buffer, 0)
            if length > self._max_size:
                raise FrameTooLarge(f"ack of {length} bytes, limit {self._max_size}")
            if len(buffer) < 4 + length:
                return
            text = bytes(buffer[4 : 4 + length])
            del buffer[: 4 + length]
            yield text
