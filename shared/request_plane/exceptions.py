"""Exceptions a handler may raise, named as in `dynamo.llm.exceptions`, and how each looks on the wire.

    DynamoException
    ├── InvalidArgument      the request is at fault
    ├── Cancelled            somebody asked to stop
    ├── ConnectionTimeout    what this worker asked did not answer in time
    ├── CannotConnect, Disconnected, EngineShutdown, StreamIncomplete, WorkerUnavailable
    │                        not here, not now: a frontend may ask another worker
    └── Unknown
    HttpError                an HTTP status and message chosen by the handler

Any other exception is told by its class name and text, as the kind that `BUILTINS` gives it or Unknown.
Source: the answers of a 1.6.1 worker to each of these.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from dynamo.shared.protocol import WorkerErrorPayload


class DynamoException(Exception):
    """Base; `kind` is the name on the wire, `category` and `reason` its place in the error catalogue."""

    kind = "Unknown"
    category = "Internal"
    reason = "backend.unknown"


class Unknown(DynamoException):
    pass


class InvalidArgument(DynamoException):
    kind = "InvalidArgument"
    category = "InvalidRequest"
    reason = "backend.invalid_argument"


class CannotConnect(DynamoException):
    kind = "CannotConnect"
    category = "Unavailable"
    reason = "backend.cannot_connect"


class Disconnected(DynamoException):
    kind = "Disconnected"
    category = "Unavailable"
    reason = "backend.disconnected"


class ConnectionTimeout(DynamoException):
    kind = "ConnectionTimeout"
    category = "DeadlineExceeded"
    reason = "backend.connection_timeout"


class Cancelled(DynamoException):
    kind = "Cancelled"
    category = "Cancelled"
    reason = "backend.cancelled"


class EngineShutdown(DynamoException):
    kind = "EngineShutdown"
    category = "Unavailable"
    reason = "backend.engine_shutdown"


class StreamIncomplete(DynamoException):
    kind = "StreamIncomplete"
    category = "Unavailable"
    reason = "backend.stream_incomplete"


class WorkerUnavailable(DynamoException):
    kind = "WorkerUnavailable"
    category = "Unavailable"
    reason = "backend.worker_unavailable"


class HttpError(Exception):
    """Answer the client with this status and message."""

    def __init__(self, code: int, message: str) -> None:
        if not 0 <= code < 600:
            raise ValueError(f"HttpError code {code}: expected 0 to 599")
        super().__init__(f"HTTP {code}: {message}")
        self.code = code
        self.message = message


class ErrorPayload(WorkerErrorPayload, omit_defaults=True):
    """A DynamoError as a worker writes it; `public` is what the frontend may show to the client."""

    diagnostic: str = ""
    public: dict[str, Any] | None = None


def error_payload(error: BaseException) -> ErrorPayload:
    """The error item that ends a stream."""
    if isinstance(error, DynamoException):
        return _dynamo_payload(error)
    if isinstance(error, HttpError):
        message = msgspec.json.encode({"message": error.message, "code": error.code}).decode()
        return ErrorPayload(message, "InvalidArgument", "InvalidRequest", "request.invalid", message)
    message = f"{type(error).__name__}: {error}"
    kind = _kind_of(error)
    return ErrorPayload(message, {"Backend": kind.kind}, kind.category, kind.reason, message)


def prologue_payload(error: BaseException) -> ErrorPayload:
    """What a frontend is told when there was no stream to begin with."""
    message = f"{type(error).__name__}: {error}"
    return ErrorPayload(message, "Unknown", "Internal", "runtime.unclassified", message)


def _dynamo_payload(error: DynamoException) -> ErrorPayload:
    message = str(error)
    # WorkerUnavailable is older than the Backend family and kept its flat name.
    error_type: str | dict[str, str] = error.kind if isinstance(error, WorkerUnavailable) else {"Backend": error.kind}
    public = {"type": "message", "message": message} if isinstance(error, InvalidArgument) else None
    return ErrorPayload(message, error_type, error.category, error.reason, message, public)


# The first match counts.
BUILTINS: tuple[tuple[type[BaseException], type[DynamoException]], ...] = (
    (ValueError, InvalidArgument),
    (TypeError, InvalidArgument),
    (ConnectionRefusedError, CannotConnect),
    (ConnectionError, Disconnected),
    (TimeoutError, ConnectionTimeout),
    (asyncio.CancelledError, Cancelled),
)


def _kind_of(error: BaseException) -> type[DynamoException]:
    return next((kind for builtin, kind in BUILTINS if isinstance(error, builtin)), Unknown)
