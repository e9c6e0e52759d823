"""Payload codecs of the request plane: bytes of a request in, whole response frames out.

A data frame is `{"data": {"data": <item>}, "complete_final": false}`; all but the item is constant and encoded once.
Some endpoints of Dynamo's own send items bare: `{"data": <item>, "complete_final": false}`.
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


MARKER = "<item>"
WRAPPED: Any = {"data": {"data": MARKER}, "complete_final": False}
BARE: Any = {"data": MARKER, "complete_final": False}


def _envelope(encode: Callable[[Any], bytes], frame: Any) -> tuple[bytes, bytes]:
    """The bytes before and after the item, found by encoding one that cannot be mistaken."""
    before, _, after = encode(frame).partition(encode(MARKER))
    return before, after


def _codecs(frame: Any) -> dict[str, PayloadCodec]:
    msgpack, json = msgspec.msgpack.Encoder().encode, msgspec.json.Encoder().encode
    return {
        "msgpack": PayloadCodec(msgpack, msgspec.msgpack.Decoder().decode, _envelope(msgpack, frame)),
        "json": PayloadCodec(json, msgspec.json.Decoder().decode, _envelope(json, frame)),
    }


CODECS = _codecs(WRAPPED)
BARE_CODECS = _codecs(BARE)
