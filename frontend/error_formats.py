"""An error as the clients of each API read it: the body of an answer, and what ends a stream that has begun."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from dynamo.shared.errors import DynamoError
from dynamo.shared.statuses import names_of

_encode = msgspec.json.Encoder().encode


class ErrorFormat(Protocol):
    """`request_id` is that of x-request-id. A message that does not tell all names it, for the log tells the rest."""

    def body(self, error: DynamoError, request_id: str | None = None) -> bytes: ...

    def event(self, error: DynamoError, request_id: str | None = None) -> bytes:
        """The last of a stream: nothing follows, so that nobody takes it for a whole answer."""


class OpenAiErrors:
    """`{"error":{"message","type","param","code"}}`, of which a failed stream has one more frame."""

    def body(self, error: DynamoError, request_id: str | None = None) -> bytes:
        fields: dict[str, Any] = {
            "message": _message(error, request_id),
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
        return _encode({"error": fields | ({"details": error.details} if error.details else {})})

    def event(self, error: DynamoError, request_id: str | None = None) -> bytes:
        return b"data: %b\n\n" % self.body(error, request_id)


class DynamoErrors:
    """As 1.6.1 has them: bodies are flat, with the reason phrase as the type and the status as the code, and a failed
    stream ends with an envelope and, like a whole one, with `[DONE]`. `overloaded_status` stands for 529."""

    def __init__(self, overloaded_status: int = 529) -> None:
        self._overloaded_status = overloaded_status

    def body(self, error: DynamoError, request_id: str | None = None) -> bytes:
        fields: dict[str, Any] = {
            "message": _message(error, request_id),
            "type": names_of(error.status).phrase,
            "code": self._status(error),
        }
        return _encode(fields | ({"details": error.details} if error.details else {}))

    def event(self, error: DynamoError, request_id: str | None = None) -> bytes:
        fields = {
            "message": _message(error, request_id),
            "type": names_of(error.status).dynamo,
            "code": self._status(error),
        }
        return b"data: %b\n\ndata: [DONE]\n\n" % _encode({"error": fields})

    def _status(self, error: DynamoError) -> int:
        return self._overloaded_status if error.status == 529 else error.status


class AnthropicErrors:
    """`{"type":"error","error":{"type","message"},"request_id"}`, which a failed stream has as an event `error`."""

    def body(self, error: DynamoError, request_id: str | None = None) -> bytes:
        told = {"type": names_of(error.status).anthropic, "message": _message(error, request_id)}
        return _encode({"type": "error", "error": told, "request_id": request_id})

    def event(self, error: DynamoError, request_id: str | None = None) -> bytes:
        return b"event: error\ndata: %b\n\n" % self.body(error, request_id)


class ErrorFormats:
    """Which format the errors at a path have. Also for what no route takes: a client of an API that has missed its
    path is told so in the form that it reads."""

    def __init__(self, usual: ErrorFormat, anthropic: ErrorFormat) -> None:
        self._usual = usual
        self._anthropic = anthropic

    def of(self, path: str) -> ErrorFormat:
        is_anthropic = path == "/v1/messages" or path.startswith("/v1/messages/")
        return self._anthropic if is_anthropic else self._usual

    def body_at(self, path: str, error: DynamoError, request_id: str) -> bytes:
        return self.of(path).body(error, request_id)


def error_formats(name: str, overloaded_status: int) -> ErrorFormats:
    """`name` is a choice of `--error-format`."""
    usual: ErrorFormat = DynamoErrors(overloaded_status) if name == "dynamo" else OpenAiErrors()
    return ErrorFormats(usual, AnthropicErrors())


def _message(error: DynamoError, request_id: str | None) -> str:
    if error.is_logged and request_id is not None:
        return f"{error.message} The log has more of request {request_id}."
    return error.message
