"""What replica sync needs of the router around it, what bounds it, and what it counts."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from msgspec import Struct

from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds
from dynamo.shared.replica_events import AffinityBinding, RunningRequest


class RemoteKey(NamedTuple):
    """Names a request that another router has placed."""

    router_id: int
    request_id: str


class ReplicaHost(Protocol):
    """The router, to whom replica sync says what the others did."""

    def add_remote(self, key: RemoteKey, request: RunningRequest, now: float) -> bool:
        """Count the request as load; one of the same key ends. False: the rank is not known (yet)."""

    def complete_remote_prefill(self, key: RemoteKey) -> None: ...

    def free_remote(self, key: RemoteKey) -> None:
        """It is over. A rank that went away has taken its requests along: those are not known."""

    def apply_predicted(self, worker: WorkerRank, block_hashes: bytes, now: float) -> None: ...

    def apply_thresholds(self, thresholds: Thresholds) -> None: ...

    def apply_binding(self, scope: EndpointScope, binding: AffinityBinding, now: float) -> None: ...

    def bindings(self, scope: EndpointScope) -> list[AffinityBinding]:
        """All that a replica should know that has just joined."""


class ReplicaLimits(Struct, frozen=True, kw_only=True):
    heartbeat_s: float = 1.0
    silence_s: float = 5.0  # after which a replica counts as dead; Dynamo's routers send no heartbeat
    request_expiry_s: float = 300.0  # of requests of routers without a heartbeat
    ask_again_s: float = 2.0
    max_peers: int = 64  # per scope
    max_streams_per_peer: int = 64
    max_requests_per_router: int = 65_536
    max_outgoing: int = 65_536  # events, and as many messages and bindings
    max_outgoing_bytes: int = 64 << 20
    max_models: int = 1024
    max_events_per_payload: int = 256
    max_payload_bytes: int = 512 << 10  # NATS takes a MiB
    slices_per_turn: int = 4


class ReplicaCounts(Struct):
    """Since the start."""

    dropped_outgoing: int = 0
    truncated: int = 0  # prompts that were too long to tell all their block hashes
    untold: int = 0  # requests of ours beyond max_requests_per_router
    ignored: int = 0  # requests of others beyond it
    peers_turned_away: int = 0
    malformed: int = 0
    late: int = 0  # additions that came after what was published later
    gaps: int = 0
    expired: int = 0
    silent: int = 0  # peers taken for dead
    snapshots_asked: int = 0
    snapshots_sent: int = 0
    snapshots_received: int = 0
