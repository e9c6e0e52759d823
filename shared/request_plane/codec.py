"""Payload codecs of the request plane: bytes of a request in, whole response frames out.

A data frame is `{"data": {"data": <item>}, "complete_final": false}`; all but the item is constant and encoded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dynamo.shared.framing import TWO_PART_PREFIX, encode_two_part
from dynamo.shared.request_plane.exceptions import ErrorPayload


class PayloadCodec:
    """`decode` raises msgspec.DecodeError; `item` and `error` return frames ready to be written."""

    def __init__(
        self, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], item_envelope: tuple[bytes, bytes]
    ) -> None:
        self.decode = decode
        self.complete_final = encode_two_part(b"", encode({"complete_final": True}))
        self._encode = encode
        self._before, self._after = item_envelope
        self._envelope_len = len(self._before) + len(self._after)

    def item(self, value: Any) -> bytes:
        encoded = self._encode(value)
        prefix = TWO_PART_PREFIX.pack(0, self._envelope_len + len(encoded), 0)
        return b"".join((prefix, self._before, encoded, self._after))

    def error(self, payload: ErrorPayload) -> bytes:
        frame = {"data": {"event": "error", "error": payload}, "complete_final": False}
        return encode_two_part(b"", self._encode(frame))


def _envelope(encode: Callable[[Any], bytes]) -> tuple[bytes, bytes]:
    """The bytes before and after the item, found by encoding one that cannot be mistaken."""
    marker = encode("<item>")
    before, _, after = encode({"data": {"data": "<item>"}, "complete_final": False}).partition(marker)
    return before, after


def _codec(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> PayloadCodec:
    return PayloadCodec(encode, decode, _envelope(encode))


CODECS: dict[str, PayloadCodec] = {
    "msgpack": _codec(msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode),
    "json": _codec(msgspec.json.Encoder().encode, msgspec.json.Decoder().decode),
}
