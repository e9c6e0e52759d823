"""What acceptors and the router say to each other over ZeroMQ (acceptor DEALER, router ROUTER).

One ZeroMQ message is a msgpack array of these structs: whatever a side had to say in one tick of its loop. Every
struct is a positional array with an integer tag. A new field goes last and has a default.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from dynamo.shared.protocol import RouterConfigOverride, RoutingConstraints


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


class ActiveRequest(Wire, frozen=True):
    """A placement that an acceptor holds, told to a router that may not know it. `num_output_blocks` have grown since
    the prompt. `block_hashes` may be left out to keep the message small: then it counts as tokens only. `label` and
    `hints` are those of its `Place`."""

    request_id: int
    instance_id: int
    num_tokens: int
    dp_rank: int | None = None
    is_prefill_completed: bool = False
    num_output_blocks: int = 0
    block_hashes: bytes = b""
    label: str = ""
    hints: RoutingHints | None = None


class Hello(Wire, tag=1, frozen=True):
    """First message of an acceptor on every (re)connect. A new `incarnation` of `acceptor` frees what the old one held;
    `active` re-announces this incarnation's placements."""

    acceptor: str
    incarnation: int
    active: list[ActiveRequest] = []


class RoutingHints(Wire, frozen=True):
    """What few requests say about their own placement.

    `priority_jump`: seconds by which it counts as having come earlier; `strict_priority` goes before it. `policy_class`
    names a queue of the policy file. `expected_output_tokens` is the client's guess. `session_id` keeps a conversation
    on one worker; `is_session_final` ends that. `allowed_worker_ids` None means all. `router_config` goes over the
    router's own weights. `wants_receipt` asks for a `Receipt`.
    """

    priority_jump: float = 0.0
    strict_priority: int = 0
    policy_class: str = ""
    expected_output_tokens: int | None = None
    session_id: str = ""
    is_session_final: bool = False
    allowed_worker_ids: list[int] | None = None
    constraints: RoutingConstraints | None = None
    lora_name: str | None = None
    router_config: RouterConfigOverride | None = None
    wants_receipt: bool = False


class Place(Wire, tag=2, frozen=True):
    """Ask for a worker. `request_id` is unique within the acceptor's incarnation. `block_hashes` are packed u64 LE
    sequence hashes of the prompt's full blocks, empty unless the router asked for them. `excluded` were tried already.
    `instance_id` and `dp_rank` pin the choice. `mdcsum` names the card that the prompt was made for: only sets that go
    by it are asked; "" asks any. `label` is the request's id in logs. `endpoint` (namespace/component/name) asks only
    the workers there, whatever their type, and `model` only chooses between several models that they serve.

    The answer is Placed or Refused, perhaps after Queued; Free takes the question back.
    """

    request_id: int
    model: str
    num_tokens: int
    block_hashes: bytes = b""
    excluded: list[int] = []
    instance_id: int | None = None
    dp_rank: int | None = None
    mdcsum: str = ""
    label: str = ""
    hints: RoutingHints | None = None
    endpoint: str = ""


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


class PrefillCompleted(Wire, tag=7, frozen=True):
    """The first token of this request has come: its prompt is load no longer. Sent when `Settings.tracks_prefill`."""

    request_id: int


class OutputGrown(Wire, tag=8, frozen=True):
    """The output of this request has filled further blocks; sent when `Settings.tracks_output_blocks`."""

    request_id: int
    num_blocks: int = 1


class Explain(Wire, tag=9, frozen=True):
    """What would the router answer to `place`, and why? Nothing is placed. Answered by Explained or Refused, both with
    the request id of `place`."""

    place: Place


class Thresholds(Wire, frozen=True):
    """When workers of a model count as overloaded; None switches a test off. Fractions are of the worker's KV blocks
    and of its `max_num_batched_tokens`."""

    model: str
    active_decode_blocks_threshold: float | None = None
    active_prefill_tokens_threshold: int | None = None
    active_prefill_tokens_threshold_frac: float | None = None


class GetThresholds(Wire, tag=10, frozen=True):
    """Answered by ThresholdsAre with one model's thresholds, or with those of all; Refused for an unknown model."""

    request_id: int
    model: str | None = None


class SetThresholds(Wire, tag=11, frozen=True):
    """`replaces`: None switches off; otherwise None leaves a value as it is. Answered like GetThresholds."""

    request_id: int
    thresholds: Thresholds
    replaces: bool = False


AcceptorMessage = (
    Hello
    | Place
    | Free
    | WorkerFailed
    | Heartbeat
    | Goodbye
    | PrefillCompleted
    | OutputGrown
    | Explain
    | GetThresholds
    | SetThresholds
)

# --------------------------------------------------------------------------- router -> acceptor


class Settings(Wire, tag=8, frozen=True):
    """What a router wants to hear from its acceptors, from now on. `tracks_prefill` asks for PrefillCompleted,
    `tracks_output_blocks` for OutputGrown."""

    needs_block_hashes: bool = False
    tracks_prefill: bool = False
    tracks_output_blocks: bool = False


class Welcome(Wire, tag=1, frozen=True):
    """Answer to Hello: the whole table."""

    router_mode: str
    version: int
    workers: list[Worker]
    worker_sets: list[WorkerSet]
    settings: Settings = Settings()


class TableDelta(Wire, tag=2, frozen=True):
    """Change of the table from `version - 1` to `version`; a set in `sets_up` replaces the one of the same key."""

    version: int
    workers_up: list[Worker] = []
    workers_down: list[int] = []
    sets_up: list[WorkerSet] = []
    sets_down: list[str] = []


class Receipt(Wire, frozen=True):
    """Why this worker. Blocks are of the prompt; `external_blocks` lie beyond the worker's own disk. Costs are in
    blocks, lower is better; None where nothing was compared. `reason` is one of: cost, pinned, affinity, policy, mode.
    """

    reason: str
    num_candidates: int = 0
    request_blocks: int = 0
    device_blocks: int = 0
    host_blocks: int = 0
    disk_blocks: int = 0
    external_blocks: int = 0
    cost: float | None = None
    runner_up: int | None = None  # instance id
    runner_up_dp_rank: int | None = None
    runner_up_cost: float | None = None
    queue_wait_ms: float = 0.0
    policy: str = ""


class Placed(Wire, tag=3, frozen=True):
    """`overlap_blocks` of the prompt are expected in the worker's device cache."""

    request_id: int
    instance_id: int
    worker_set: str
    dp_rank: int | None = None
    overlap_blocks: int = 0
    receipt: Receipt | None = None


class Refused(Wire, tag=4, frozen=True):
    """No placement. `code` is an error code of `dynamo.shared.errors`: model_not_found, model_not_ready, overloaded,
    queue_full, invalid_value, internal_error."""

    request_id: int
    code: str
    message: str
    retry_after_s: int = 1


class Queued(Wire, tag=5, frozen=True):
    """Every worker has enough to do: the answer comes later, however long that takes."""

    request_id: int


class Candidate(Wire, frozen=True):
    """One worker rank as the router sees it for one request. `prefill_tokens`, `decode_blocks` and `num_requests` are
    its load without the request; `new_blocks` of the prompt are in none of its running requests. `verdict`: eligible,
    or why not."""

    instance_id: int
    dp_rank: int
    verdict: str = "eligible"
    device_blocks: int = 0
    host_blocks: int = 0
    disk_blocks: int = 0
    external_blocks: int = 0
    prefill_tokens: int = 0
    decode_blocks: float = 0.0
    new_blocks: int = 0
    num_requests: int = 0
    cost: float | None = None


class Explained(Wire, tag=6, frozen=True):
    """`choice` is None when the request would be refused or queued, `outcome` says so."""

    request_id: int
    outcome: str
    worker_set: str
    block_size: int
    request_blocks: int
    choice: Placed | None
    candidates: list[Candidate]


class ThresholdsAre(Wire, tag=7, frozen=True):
    request_id: int
    thresholds: list[Thresholds]


RouterMessage = Welcome | TableDelta | Placed | Refused | Queued | Explained | ThresholdsAre | Settings

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode  # a list of messages -> bytes
decode_from_acceptor = msgspec.msgpack.Decoder(list[AcceptorMessage]).decode
decode_from_router = msgspec.msgpack.Decoder(list[RouterMessage]).decode
