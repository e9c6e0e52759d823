"""Everything that can go wrong with a request, classified by whose fault it is.

    DynamoError
    ├── RequestError              the client's: fix the request
    │   ├── InvalidRequest        400  a field is missing, of the wrong type or out of range
    │   │   └── Unprocessable     422  the same of an admin route's body, where 1.6.1 says so
    │   ├── Unauthorized          401  the admin key is missing or wrong
    │   ├── ModelNotFound         404
    │   ├── WrongKindOfModel      404  there, and not for what the route does
    │   ├── NoModelOfKind         404  none is there for what the route does
    │   ├── ResponseNotFound      404
    │   ├── RouteNotFound         404
    │   ├── MethodNotAllowed      405
    │   ├── RequestTimeout        408  the body did not arrive in time
    │   ├── PayloadTooLarge       413
    │   ├── TargetTooLong         414
    │   ├── UnsupportedMediaType  415
    │   ├── HeadersTooLarge       431
    │   ├── ClientDisconnected    499  never sent; counted and logged
    │   └── UnsupportedFeature    501  the API has it, this gateway does not
    ├── UnavailableError          ours, for now: the same request may be sent again
    │   ├── ModelNotReady         503  known, but no worker can be asked
    │   ├── RouterAway            503  only the router can answer, and it does not
    │   ├── AtCapacity            503  the process holds as many requests as it may
    │   ├── Overloaded            529
    │   └── ShuttingDown          503
    ├── WorkerError               the worker's
    │   ├── CannotConnect         503  unreachable: surely nothing was begun
    │   │   └── WorkerRefused     503  reachable, and refused the request before beginning it
    │   ├── Disconnected          503  the stream ended before the worker completed it
    │   ├── WorkerTimeout         504  no byte for longer than allowed
    │   ├── ResponseTooLarge      502  a frame over the size limit
    │   ├── BackendError          as the worker's own error class says
    │   └── BackendFailure        500  a fault of the worker's own
    └── InternalError             500  a bug of ours; the message says nothing else

A class has its status and its code, or codes, with what they mean; what a status is called elsewhere is in `statuses`.
Nothing else is written down about errors: `catalogue` reads it from here, and so does docs/errors.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias

from dynamo.shared.statuses import names_of


class DynamoError(Exception):
    """Base of all. `message` is for clients, `log_message` for operators. `meaning` is what the catalogue says of
    `code`, where a class has just one. `retry_after_s` is None where the same request need not be sent again.
    `is_logged` says that the log has more of it than clients are told, under the request's id."""

    meaning: ClassVar[str]
    status: int = 500
    code: str = ""
    param: str | None = None
    retry_after_s: int | None = None
    is_logged: bool = False
    details: Mapping[str, int] | None = None

    @property
    def type(self) -> str:
        """The kind of error in OpenAI's words."""
        return names_of(self.status).openai

    @property
    def message(self) -> str:
        return str(self)

    @property
    def log_message(self) -> str:
        """What operators may know."""
        return str(self)


# ---- the client's


class RequestError(DynamoError):
    status = 400


InvalidCode: TypeAlias = Literal[
    "invalid_value",
    "invalid_json",
    "invalid_type",
    "missing_field",
    "duplicate_field",
    "out_of_range",
    "conflicting_fields",
    "unsupported_field",
    "unsupported_value",
    "unsupported_content",
    "no_chat_template",
    "context_length_exceeded",
    "truncated",
]


class InvalidRequest(RequestError):
    """`param` is the path of the field at fault, as in `messages[0].content`. `codes` tells what each code means."""

    code: InvalidCode = "invalid_value"
    codes: ClassVar[Mapping[InvalidCode, str]] = {
        "invalid_value": "The field named by `param` has a value that it cannot have, or the request is not HTTP.",
        "invalid_json": "The body is not JSON in UTF-8; the message says from which byte on.",
        "invalid_type": "The field has a value of another type than it takes.",
        "missing_field": "A field that must be given is not.",
        "duplicate_field": "The body gives the field twice.",
        "out_of_range": "The value is of the right type, and too small, too large, too long or empty.",
        "conflicting_fields": "The field does not go with another one that is named in the message.",
        "unsupported_field": "The field is of the API, or unknown, and has no effect here; leave it out.",
        "unsupported_value": "The field can have this value in the API, and not with this gateway or this model.",
        "unsupported_content": "The model cannot read this kind of content, as pictures are for one that reads text.",
        "no_chat_template": "The model cannot chat; use /v1/completions.",
        "context_length_exceeded": "The prompt leaves no room for an answer in the context; the message has numbers.",
        "truncated": "The client closed its side before the request was complete.",
    }

    def __init__(self, message: str, param: str | None = None, code: InvalidCode | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class Unprocessable(InvalidRequest):
    codes: ClassVar[Mapping[InvalidCode, str]] = {
        "missing_field": "A field that must be given is not in the body of an admin route.",
        "invalid_type": "A field in the body of an admin route has a value of another type than it takes.",
    }
    status = 422


class Unauthorized(RequestError):
    code = "invalid_api_key"
    meaning = "The route takes the admin key, and this is not it."
    status = 401


class ModelNotFound(RequestError):
    code = "model_not_found"
    meaning = "No worker has registered a model of this name."
    status = 404

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model!r} does not exist or is not registered with this gateway.")
        self.param = "model"


class ResponseNotFound(RequestError):
    code = "response_not_found"
    meaning = "No response of this id is stored: it was not, or made room for newer ones."
    status = 404

    def __init__(self, id: str, param: str | None = None) -> None:
        super().__init__(f"No response {id!r} is stored here; it may have made room for newer ones.")
        self.param = param


class WrongKindOfModel(RequestError):
    """`kinds` are those of the model."""

    code = "wrong_kind_of_model"
    meaning = "The model is registered, and not for what this route does."
    status = 404

    def __init__(self, model: str, kind: str, kinds: Iterable[str]) -> None:
        super().__init__(f"The model {model!r} is registered for {', '.join(sorted(kinds))}, and not for {kind}.")
        self.param = "model"


class NoModelOfKind(RequestError):
    """1.6.1 has no such route until a worker makes one, and answers with an empty 404."""

    code = "no_model_of_kind"
    meaning = "No model is registered yet for what this route does; a worker that comes may change that."
    status = 404

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"No model is registered for {kind} yet; a worker registers one with register_model and ModelType.{kind}."
        )
        self.param = "model"


class RouteNotFound(RequestError):
    code = "route_not_found"
    meaning = "There is nothing at this path."
    status = 404


class MethodNotAllowed(RequestError):
    """`allow` is the value of the Allow header."""

    code = "method_not_allowed"
    meaning = "The path takes other methods, which the header Allow names."
    status = 405

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"{path} does not accept {method}; it accepts {allow}.")
        self.allow = allow


class RequestTimeout(RequestError):
    code = "request_timeout"
    meaning = "The request did not arrive in time."
    status = 408


class PayloadTooLarge(RequestError):
    code = "payload_too_large"
    meaning = "The body is larger than the limit in the message."
    status = 413


class TargetTooLong(RequestError):
    code = "uri_too_long"
    meaning = "The path with its query is longer than the limit in the message."
    status = 414


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"
    meaning = "The content-type is not application/json."
    status = 415


class HeadersTooLarge(RequestError):
    code = "headers_too_large"
    meaning = "The headers are larger, or more, than the limit in the message."
    status = 431


class ClientDisconnected(RequestError):
    code = "client_disconnected"
    meaning = "The client left before the answer was complete: for logs and metrics alone."
    status = 499


class UnsupportedFeature(RequestError):
    """`param` is the path of the field that asks for it."""

    code = "unsupported_feature"
    meaning = "The API has it, and this gateway does not."
    status = 501

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


# ---- ours, for now


class UnavailableError(DynamoError):
    status = 503
    retry_after_s = 1


class ModelNotReady(UnavailableError):
    code = "model_not_ready"
    meaning = "The model is registered, and no worker of it can take requests now."


class RouterAway(UnavailableError):
    code = "router_away"
    meaning = "Only the router can answer this, and it does not."


class AtCapacity(UnavailableError):
    code = "at_capacity"
    meaning = "The HTTP server handles as many requests as it may."


class Overloaded(UnavailableError):
    code = "overloaded"
    meaning = "All workers, or this gateway, have as much to do as they may."
    status = 529


class ShuttingDown(UnavailableError):
    code = "shutting_down"
    meaning = "This gateway is going away; another one can take the request."


# ---- the worker's


class WorkerError(DynamoError):
    """`is_suspect`: the instance itself is in doubt and is not asked again for a while. `is_migratable`: another worker
    may take the request over. `summary` is what clients are told where the error's own text is for operators:
    addresses, and what workers say of their insides."""

    status = 503
    retry_after_s: int | None = 1
    is_suspect: bool = True
    is_migratable: bool = True
    summary: str = ""

    @property
    def message(self) -> str:
        return self.summary or str(self)


class CannotConnect(WorkerError):
    code = "worker_unreachable"
    meaning = "No worker could be reached; the request was not begun."
    summary = "No worker could be reached; the request was not begun."
    is_logged = True


class WorkerRefused(CannotConnect):
    """The worker is there and said no before it began, without saying whose fault that was."""

    code = "worker_refused"
    meaning = "The worker refused the request before it began."
    is_suspect = False
    summary = "The worker refused the request before it began."


class Disconnected(WorkerError):
    code = "worker_disconnected"
    meaning = "The worker went away before the answer was complete."
    summary = "The worker went away before the answer was complete."
    is_logged = True


class WorkerTimeout(WorkerError):
    code = "worker_timeout"
    meaning = "The worker sent nothing for longer than allowed."
    status = 504


class ResponseTooLarge(WorkerError):
    code = "worker_response_too_large"
    meaning = "The worker sent a frame that is larger than allowed."
    status = 502
    retry_after_s = None
    is_suspect = False
    is_migratable = False


class BackendKind(NamedTuple):
    """What a worker's class of error is here."""

    status: int
    code: str
    meaning: str
    is_retryable: bool = False
    is_migratable: bool = False


# By the worker's name of the class. One that is not named here is the worker's own fault: BackendFailure.
BACKEND_KINDS: Final[Mapping[str, BackendKind]] = {
    "InvalidRequest": BackendKind(400, "invalid_request", "The worker finds fault with the request; in its words."),
    "Unauthenticated": BackendKind(401, "unauthenticated", "The worker does not know the client."),
    "PermissionDenied": BackendKind(403, "permission_denied", "The worker does not let the client do this."),
    "NotFound": BackendKind(404, "not_found", "The worker does not have what the request names."),
    "Conflict": BackendKind(409, "conflict", "The worker cannot do this as things are."),
    "PayloadTooLarge": BackendKind(413, "payload_too_large", "The worker finds the request too large."),
    "UnsupportedMedia": BackendKind(415, "unsupported_media_type", "The worker cannot read this kind of content."),
    "RateLimited": BackendKind(429, "rate_limited", "The worker is asked too often.", True),
    "CapacityExhausted": BackendKind(529, "overloaded", "The worker has as much to do as it may.", True, True),
    "Cancelled": BackendKind(503, "worker_cancelled", "The worker cancelled the generation.", True),
    "Unavailable": BackendKind(503, "worker_unavailable", "The worker cannot serve now.", True, True),
    "DeadlineExceeded": BackendKind(504, "worker_timeout", "What the worker asked did not answer it.", True, True),
}


class BackendError(WorkerError):
    """The worker answered with an error of its own, of this kind. `status` is its choice among those of the kind."""

    is_suspect = False

    def __init__(self, message: str, kind: BackendKind, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status or kind.status
        self.code = kind.code
        self.is_migratable = kind.is_migratable
        self.retry_after_s = 1 if kind.is_retryable else None


class BackendFailure(WorkerError):
    """The worker failed for reasons of its own. `backend_status` is the HTTP status it would have answered with."""

    code = "backend_error"
    meaning = "The worker failed for reasons of its own; `details.backend_status` is its own status."
    status = 500
    retry_after_s = None
    is_suspect = False
    is_migratable = False
    is_logged = True
    summary = "The worker failed to serve this request."

    def __init__(self, message: str, backend_status: int = 500) -> None:
        super().__init__(message)
        self.details = {"backend_status": backend_status}


class InternalError(DynamoError):
    code = "internal_error"
    meaning = "A bug of this gateway; its log tells which, by the request's id."
    is_logged = True

    def __init__(self, message: str = "The gateway hit an internal error.") -> None:
        super().__init__(message)


# ---- all of them


class Entry(NamedTuple):
    """A row of the catalogue."""

    code: str
    status: int
    meaning: str
    is_retryable: bool


def catalogue() -> list[Entry]:
    """Everything that a client can be told, by status and code."""
    of_workers = (Entry(k.code, k.status, k.meaning, k.is_retryable) for k in BACKEND_KINDS.values())
    return sorted([*_entries(DynamoError), *of_workers], key=lambda entry: (entry.status, entry.code))


def _entries(kind: type[DynamoError]) -> Iterator[Entry]:
    own = vars(kind)
    meanings: Mapping[str, str] = {kind.code: kind.meaning} if "meaning" in own else own.get("codes", {})
    for code, meaning in meanings.items():
        yield Entry(code, kind.status, meaning, kind.retry_after_s is not None)
    for narrower in kind.__subclasses__():
        yield from _entries(narrower)
