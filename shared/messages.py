"""What acceptors and the router say to each other over ZeroMQ (acceptor DEALER, router ROUTER).

One ZeroMQ message is a msgpack array of these structs: whatever a side had to say in one tick of its loop. Every
struct is a positional array with an integer tag. A new field goes last and has a default.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Wire(Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages."""


# --------------------------------------------------------------------------- the model table


class Worker(Wire, frozen=True):
    """One routable endpoint instance. Exactly one of `address` and `nats_subject` is set."""

    instance_id: int
    address: str = ""  # host:port of its request plane
    path: str = ""  # endpoint path to put in the request frame
    nats_subject: str = ""
    codec: str = "json"
    device_type: str = ""


class WorkerSet(Wire, frozen=True):
    """Workers of one (namespace, component, endpoint, model, worker type) whose cards agree.

    `key` names the set. `card` is the raw card JSON of its first member. `rejected` counts instances whose card's
    mdcsum differs: they are not members until the set drains.
    """

    key: str
    model: str
    namespace: str
    component: str
    endpoint: str
    worker_type: str
    mdcsum: str
    card: bytes
    members: list[int]
    rejected: int = 0


# --------------------------------------------------------------------------- acceptor -> router


class Hello(Wire, tag=1, frozen=True):
    """First message of an acceptor on every (re)connect. A new `incarnation` of `acceptor` frees what the old one held;
    `active` re-announces this incarnation's placements as (request_id, instance_id, num_tokens)."""

    acceptor: str
    incarnation: int
    active: list[tuple[int, int, int]] = []


class Place(Wire, tag=2, frozen=True):
    """Ask for a worker. `request_id` is unique within the acceptor's incarnation. `block_hashes` are packed u64 LE
    sequence hashes, empty unless the mode is kv. `excluded` were tried already. `instance_id` and `dp_rank` pin the
    choice. `mdcsum` names the card that the prompt was made for: only sets that go by it are asked; "" asks any.
    """

    request_id: int
    model: str
    num_tokens: int
    block_hashes: bytes = b""
    excluded: list[int] = []
    instance_id: int | None = None
    dp_rank: int | None = None
    mdcsum: str = ""


class Free(Wire, tag=3, frozen=True):
    """The request is over, however it ended."""

    request_id: int


class WorkerFailed(Wire, tag=4, frozen=True):
    """The acceptor could not reach this instance or lost it mid-stream: inhibit it for a while."""

    instance_id: int
    reason: str


class Heartbeat(Wire, tag=5, frozen=True):
    """Sent each second; an acceptor silent for longer than the router's expiry is taken for dead."""


class Goodbye(Wire, tag=6, frozen=True):
    """An orderly exit."""


AcceptorMessage = Hello | Place | Free | WorkerFailed | Heartbeat | Goodbye

# --------------------------------------------------------------------------- router -> acceptor


class Welcome(Wire, tag=1, frozen=True):
    """Answer to Hello: the whole table. `router_mode` tells the acceptor whether to send block hashes."""

    router_mode: str
    version: int
    workers: list[Worker]
    worker_sets: list[WorkerSet]


class TableDelta(Wire, tag=2, frozen=True):
    """Change of the table from `version - 1` to `version`; a set in `sets_up` replaces the one of the same key."""

    version: int
    workers_up: list[Worker] = []
    workers_down: list[int] = []
    sets_up: list[WorkerSet] = []
    sets_down: list[str] = []


class Placed(Wire, tag=3, frozen=True):
    request_id: int
    instance_id: int
    worker_set: str
    dp_rank: int | None = None
    overlap_blocks: int = 0


class Refused(Wire, tag=4, frozen=True):
    """No placement. `code` is an error code of `dynamo.shared.errors`: model_not_found, model_not_ready, overloaded,
    invalid_value."""

    request_id: int
    code: str
    message: str
    retry_after_s: int = 1


RouterMessage = Welcome | TableDelta | Placed | Refused

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode  # a list of messages -> bytes
decode_from_acceptor = msgspec.msgpack.Decoder(list[AcceptorMessage]).decode
decode_from_router = msgspec.msgpack.Decoder(list[RouterMessage]).decode
