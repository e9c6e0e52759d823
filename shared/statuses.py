"""What an HTTP status is called by the APIs that are spoken here."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple


class StatusNames(NamedTuple):
    """Its reason phrase, and the kinds of error of OpenAI, Anthropic, gRPC and of a stream of Dynamo 1.6.1."""

    phrase: str
    openai: str
    anthropic: str
    grpc: str
    dynamo: str


_INVALID, _SERVER, _INTERNAL = "invalid_request_error", "server_error", "internal_server_error"
_AUTHENTICATION, _PERMISSION, _LIMIT = "authentication_error", "permission_error", "rate_limit_error"
_NOT_FOUND, _UNAVAILABLE, _TIMEOUT, _OVERLOADED = (
    "not_found_error",
    "service_unavailable",
    "timeout_error",
    "overloaded",
)
_BUSY, _API = "overloaded_error", "api_error"

STATUSES: Final[Mapping[int, StatusNames]] = {
    400: StatusNames("Bad Request", _INVALID, _INVALID, "INVALID_ARGUMENT", _INVALID),
    401: StatusNames("Unauthorized", _AUTHENTICATION, _AUTHENTICATION, "UNAUTHENTICATED", _AUTHENTICATION),
    403: StatusNames("Forbidden", _PERMISSION, _PERMISSION, "PERMISSION_DENIED", _PERMISSION),
    404: StatusNames("Not Found", _INVALID, _NOT_FOUND, "NOT_FOUND", _NOT_FOUND),
    405: StatusNames("Method Not Allowed", _INVALID, _INVALID, "UNIMPLEMENTED", _INVALID),
    408: StatusNames("Request Timeout", _INVALID, _INVALID, "DEADLINE_EXCEEDED", _INVALID),
    409: StatusNames("Conflict", _INVALID, _INVALID, "ABORTED", _INVALID),
    413: StatusNames("Payload Too Large", _INVALID, "request_too_large", "RESOURCE_EXHAUSTED", _INVALID),
    414: StatusNames("URI Too Long", _INVALID, _INVALID, "INVALID_ARGUMENT", _INVALID),
    415: StatusNames("Unsupported Media Type", _INVALID, _INVALID, "INVALID_ARGUMENT", _INVALID),
    422: StatusNames("Unprocessable Entity", _INVALID, _INVALID, "INVALID_ARGUMENT", _INVALID),
    429: StatusNames("Too Many Requests", _LIMIT, _LIMIT, "RESOURCE_EXHAUSTED", _LIMIT),
    431: StatusNames("Request Header Fields Too Large", _INVALID, _INVALID, "INVALID_ARGUMENT", _INVALID),
    499: StatusNames("Client Closed Request", _INVALID, _INVALID, "CANCELLED", "request_cancelled"),
    500: StatusNames("Internal Server Error", _SERVER, _API, "INTERNAL", _INTERNAL),
    501: StatusNames("Not Implemented", _SERVER, _API, "UNIMPLEMENTED", "not_implemented_error"),
    502: StatusNames("Bad Gateway", _SERVER, _API, "INTERNAL", _INTERNAL),
    503: StatusNames("Service Unavailable", _UNAVAILABLE, _BUSY, "UNAVAILABLE", _UNAVAILABLE),
    504: StatusNames("Gateway Timeout", "timeout", _TIMEOUT, "DEADLINE_EXCEEDED", _TIMEOUT),
    529: StatusNames("Overloaded", _OVERLOADED, _BUSY, "RESOURCE_EXHAUSTED", _UNAVAILABLE),
}


def names_of(status: int) -> StatusNames:
    """One that only a worker would think of is called as the first of its kind, by its own phrase."""
    if (names := STATUSES.get(status)) is not None:
        return names
    general = STATUSES[400 if status < 500 else 500]
    try:
        return general._replace(phrase=HTTPStatus(status).phrase)
    except ValueError:
        return general
