"""Answers of Anthropic's API: the blocks of a message, whole and as a stream of events."""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo.frontend.error_formats import ErrorFormat
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import Choice, JsonObject
from dynamo.frontend.parsers.message import MessagePart, ToolCallDelta, kind_of, text_of
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.postprocess import Delta
from dynamo.shared.errors import DynamoError

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
UNREADABLE = "unreadable_json"
"""Where a model's arguments are not a JSON object, the block's `input`, which must be one, has them under this name."""

_encode = msgspec.json.Encoder().encode
_decode_input = msgspec.json.Decoder(dict[str, Any]).decode


def message_body(record: RequestRecord, choice: Choice, nvext: JsonObject | None) -> bytes:
    body = _message(record, [_block(part) for part in choice.parts or ()])
    body |= _stop(choice.finish_reason, choice.stop_reason) | {"usage": _usage(record)}
    if nvext:
        body["nvext"] = nvext
    return _encode(body)


class MessageRenderer:
    """Events of one message. A block ends when a part of another kind, or another call, begins."""

    def __init__(self, record: RequestRecord, errors: ErrorFormat) -> None:
        self._record = record
        self._errors = errors
        self._is_started = False
        self._index = -1
        self._open: type | int | None = None  # kind of the open block; of a call its number
        self._delta_head = b""
        self._stop: JsonObject = {}

    def of(self, delta: Delta) -> bytes:
        if delta.finish_reason is not None:
            self._stop = _stop(delta.finish_reason, delta.stop_reason)
        events = [] if self._is_started else [self._start()]
        for part in delta.parts or ((delta.text,) if delta.text else ()):
            if self._open != (kind := kind_of(part)):
                events.append(self._close() + self._begin(part, kind))
            if text := text_of(part):
                events.append(b"%b%b}}\n\n" % (self._delta_head, _encode(text)))
        return b"".join(events)

    def last(self) -> bytes:
        end = {"type": "message_delta", "delta": self._stop, "usage": _usage(self._record)}
        start = b"" if self._is_started else self._start()
        return start + self._close() + _event("message_delta", end) + _event("message_stop", {"type": "message_stop"})

    def failed(self, error: DynamoError) -> bytes:
        return self._errors.event(error, self._record.shown_id)

    def unanswered(self, nvext: JsonObject) -> bytes:
        self._stop = _stop(None, None)
        return self._start(nvext) + self.last()

    def _start(self, nvext: JsonObject | None = None) -> bytes:
        """How much of the prompt was cached is not known yet; the last event tells."""
        self._is_started = True
        record = self._record
        message = _message(record, []) | _stop(None, None)
        message["usage"] = {"input_tokens": record.num_prompt_tokens, "output_tokens": 0}
        if nvext:
            message["nvext"] = nvext
        return _event("message_start", {"type": "message_start", "message": message})

    def _begin(self, part: MessagePart, kind: type | int) -> bytes:
        self._open = kind
        self._index += 1
        name, field = _DELTAS[type(part)]
        self._delta_head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
            % (self._index, name, field)
        )
        block = _empty_block(part)
        return _event(
            "content_block_start", {"type": "content_block_start", "index": self._index, "content_block": block}
        )

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", {"type": "content_block_stop", "index": self._index})


_DELTAS = {
    str: (b"text_delta", b"text"),
    Reasoning: (b"thinking_delta", b"thinking"),
    ToolCallDelta: (b"input_json_delta", b"partial_json"),
}


def _event(name: str, data: JsonObject) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))


def _message(record: RequestRecord, content: list[JsonObject]) -> JsonObject:
    return {
        "id": f"msg_{record.request_id}",
        "type": "message",
        "role": "assistant",
        "model": record.model,
        "content": content,
    }


def _stop(finish_reason: str | None, stop_reason: str | int | None) -> JsonObject:
    """A stop string is told by name; a stop token is an end like any other."""
    if finish_reason == "stop" and isinstance(stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    return {"stop_reason": _STOP_REASONS.get(finish_reason or ""), "stop_sequence": None}


def _usage(record: RequestRecord) -> JsonObject:
    """`input_tokens` are those that were not cached, as Anthropic counts."""
    cached = record.num_cached_tokens or 0
    return {
        "input_tokens": record.num_prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": record.num_output_tokens,
    }


def _empty_block(part: MessagePart) -> JsonObject:
    if isinstance(part, str):
        return {"type": "text", "text": ""}
    if isinstance(part, Reasoning):
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}


def _block(part: MessagePart) -> JsonObject:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Reasoning):
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part.arguments)}


def _input(arguments: str) -> JsonObject:
    try:
        return _decode_input(arguments or "{}")
    except msgspec.DecodeError:
        return {UNREADABLE: arguments}
