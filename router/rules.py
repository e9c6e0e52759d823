"""What a router does: the options of its process in the terms of its core, and the parts that follow from them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from dynamo.router.affinity import SessionAffinity
from dynamo.router.class_queue import PolicyClass
from dynamo.router.index import PrefixIndex
from dynamo.router.policy_config import PolicyFile
from dynamo.router.predicted import PredictedIndex
from dynamo.router.replica_host import ReplicaHost, ReplicaLimits
from dynamo.router.replicas import ReplicaSync
from dynamo.router.weights import Weights
from dynamo.shared.messages import Thresholds


class Rules(Struct, frozen=True, kw_only=True):
    """What a router does. Namespaces: the prefix wins over the exact name; neither means all.

    `kv_cache_block_size` is what cards must say, if anything is said. Without `uses_kv_events` the prefix index is
    predicted from placements, each believed for `predicted_ttl_s`; with them that is added if it is set. `policy_class`
    is the queue of all whom the policy file gives no other. `session_ttl_s` None ignores sessions.
    """

    router_mode: str = "round-robin"
    namespace: str | None = None
    namespace_prefix: str | None = None
    min_initial_workers: int = 0
    inhibited_duration_s: float = 5.0
    acceptor_expiry_s: float = 10.0
    max_acceptors: int = 1024
    max_active_per_acceptor: int = 65_536
    max_table_entries: int = 65_536
    kv_cache_block_size: int | None = None
    weights: Weights = Weights()
    role_weights: Mapping[str, Weights] = {}  # of worker types for which the policy file has others
    tracks_output_blocks: bool = False
    uses_kv_events: bool = True
    has_durable_events: bool = False
    max_index_blocks: int = 8_000_000
    predicted_ttl_s: float | None = None
    predicted_policy: str = "ttl"
    thresholds: Thresholds = Thresholds("")
    policy_class: PolicyClass = PolicyClass()
    policy_file: PolicyFile | None = None
    overlap_refresh_after_s: float = 1.0
    session_ttl_s: float | None = None
    is_affinity_hard: bool = True
    max_sessions: int = 65_536
    router_id: int | None = None  # among replicas; None has none
    has_batches: bool = True  # whether replicas take several events in one message
    remote_request_expiry_s: float = 300.0
    first_sequence: int = 1  # of this router's session bindings

    def serves_namespace(self, namespace: str) -> bool:
        if self.namespace_prefix:
            return namespace.startswith(self.namespace_prefix)
        return not self.namespace or namespace == self.namespace

    @property
    def is_kv(self) -> bool:
        return self.router_mode == "kv"


def make_index(rules: Rules) -> PrefixIndex | None:
    return PrefixIndex(rules.max_index_blocks) if rules.is_kv and rules.uses_kv_events else None


def make_predicted(rules: Rules) -> PredictedIndex | None:
    if not rules.is_kv or rules.predicted_ttl_s is None:
        return None
    return PredictedIndex(rules.predicted_ttl_s, policy=rules.predicted_policy)


def make_affinity(rules: Rules) -> SessionAffinity | None:
    if rules.session_ttl_s is None:
        return None
    return SessionAffinity(
        rules.session_ttl_s, rules.is_affinity_hard, rules.max_sessions, rules.router_id, rules.first_sequence
    )


def make_replicas(rules: Rules, host: ReplicaHost) -> ReplicaSync | None:
    if rules.router_id is None:
        return None
    limits = ReplicaLimits(request_expiry_s=rules.remote_request_expiry_s)
    return ReplicaSync(rules.router_id, host, limits, has_batches=rules.has_batches)
