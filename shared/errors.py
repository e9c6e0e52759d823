"""Everything that can go wrong with a request, classified by whose fault it is.

    DynamoError
    ├── RequestError              the client's: fix the request
    │   ├── InvalidRequest        400  a field is missing, of the wrong type or out of range
    │   │   └── Unprocessable     422  the same of an admin route's body, where 1.6.1 says so
    │   ├── Unauthorized          401  the admin key is missing or wrong
    │   ├── ModelNotFound         404
    │   ├── RouteNotFound         404
    │   ├── MethodNotAllowed      405
    │   ├── RequestTimeout        408  the body did not arrive in time
    │   ├── PayloadTooLarge       413
    │   ├── TargetTooLong         414
    │   ├── UnsupportedMediaType  415
    │   ├── HeadersTooLarge       431
    │   └── ClientDisconnected    499  never sent; counted and logged
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
    │   └── BackendError          as the worker's own error class says
    │       └── BackendFailure    500  a fault of the worker's own
    └── InternalError             500  a bug of ours; the message says nothing else

The HTTP, gRPC and SSE forms of these are made in one place each, from `status`, `type`, `code`, `param`.
"""

from __future__ import annotations


class DynamoError(Exception):
    """Base of all. `message` is for clients, `log_message` for operators."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None

    @property
    def message(self) -> str:
        return str(self)

    @property
    def log_message(self) -> str:
        """What operators may know."""
        return str(self)


class RequestError(DynamoError):
    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    """`param` is the path of the field at fault, as in `messages[0].content`."""

    code = "invalid_value"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class Unprocessable(InvalidRequest):
    status = 422


class Unauthorized(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model!r} does not exist or is not registered with this gateway.")
        self.param = "model"


class RouteNotFound(RequestError):
    status = 404
    code = "route_not_found"


class MethodNotAllowed(RequestError):
    """`allow` is the value of the Allow header."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"{path} does not accept {method}; it accepts {allow}.")
        self.allow = allow


class RequestTimeout(RequestError):
    status = 408
    code = "request_timeout"


class PayloadTooLarge(RequestError):
    status = 413
    code = "payload_too_large"


class TargetTooLong(RequestError):
    status = 414
    code = "uri_too_long"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(RequestError):
    status = 431
    code = "headers_too_large"


class ClientDisconnected(RequestError):
    status = 499
    code = "client_disconnected"


class UnavailableError(DynamoError):
    status = 503
    type = "service_unavailable"
    retry_after_s = 1


class ModelNotReady(UnavailableError):
    code = "model_not_ready"


class RouterAway(UnavailableError):
    code = "router_away"


class AtCapacity(UnavailableError):
    code = "at_capacity"


class Overloaded(UnavailableError):
    status = 529
    type = "overloaded"
    code = "overloaded"


class ShuttingDown(UnavailableError):
    code = "shutting_down"


class WorkerError(DynamoError):
    """`is_suspect`: the instance itself is in doubt and is not asked again for a while. `is_migratable`: another worker
    may take the request over. `summary` is what clients are told where the error's own text is for operators:
    addresses, and what workers say of their insides."""

    status = 503
    type = "service_unavailable"
    retry_after_s: int | None = 1
    is_suspect: bool = True
    is_migratable: bool = True
    summary: str = ""

    @property
    def message(self) -> str:
        return self.summary or str(self)


class CannotConnect(WorkerError):
    code = "worker_unreachable"
    summary = "No worker could be reached; the request was not begun."


class WorkerRefused(CannotConnect):
    """The worker is there and said no before it began, without saying whose fault that was."""

    code = "worker_refused"
    is_suspect = False
    summary = "The worker refused the request before it began."


class Disconnected(WorkerError):
    code = "worker_disconnected"
    summary = "The worker went away before the answer was complete."


class WorkerTimeout(WorkerError):
    status = 504
    type = "timeout"
    code = "worker_timeout"


class ResponseTooLarge(WorkerError):
    status = 502
    code = "worker_response_too_large"
    is_suspect = False
    is_migratable = False


class BackendError(WorkerError):
    """The worker answered with an error of its own; its class decides the status."""

    is_suspect = False
    retry_after_s: int | None = None

    def __init__(
        self, message: str, status: int = 500, code: str = "backend_error", type: str = "server_error"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.type = type
        self.is_migratable = code in ("worker_unavailable", "overloaded", "worker_timeout")


class BackendFailure(BackendError):
    """The worker failed for reasons of its own."""

    summary = "The worker failed to serve this request."


class InternalError(DynamoError):
    code = "internal_error"

    def __init__(self, message: str = "The gateway hit an internal error; the request id is in x-request-id.") -> None:
        super().__init__(message)
