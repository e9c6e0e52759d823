"""Options of KV-aware routing, with the names and defaults of Dynamo 1.6.1. A frontend takes them for its router, a
router that runs alone for itself.

`INERT` are read and checked so that Dynamo's commands run unchanged, and have no effect here; `inert_ones` names those
that the user set, so that start-up can say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynamo.shared.config import Config, option


@dataclass(frozen=True, kw_only=True)
class KvRouterOptions(Config):
    kv_cache_block_size: int | None = option(
        None, env="DYN_KV_CACHE_BLOCK_SIZE", minimum=1, help="Tokens per KV block, instead of what the model card says."
    )
    router_kv_overlap_score_credit: float = option(
        1.0,
        env="DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT",
        minimum=0,
        help="Credit for each prompt block that a worker already holds on its device; above 1 it is favoured further.",
    )
    router_kv_overlap_score_credit_decay: float = option(
        0.0,
        env="DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY",
        minimum=0,
        help="How fast that credit shrinks while the worker has more prefill load than the least loaded one.",
    )
    router_prefill_load_scale: float = option(
        1.0,
        env="DYN_ROUTER_PREFILL_LOAD_SCALE",
        minimum=0,
        help="Weight of the prompt's cost against the decode cost.",
    )
    kv_overlap_score_weight: float | None = option(
        None,
        env="DYN_KV_OVERLAP_SCORE_WEIGHT",
        flags=("--kv-overlap-score-weight", "--router-kv-overlap-score-weight"),
        minimum=0,
        help="Older name of --router-prefill-load-scale, and goes before it; 0 also drops the overlap credit.",
    )
    router_decode_active_request_weight: float = option(
        0.0,
        env="DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT",
        minimum=0,
        help="Blocks that each running request counts for, besides those it holds.",
    )
    router_host_cache_hit_weight: float = option(
        0.75,
        env="DYN_ROUTER_HOST_CACHE_HIT_WEIGHT",
        minimum=0,
        maximum=1,
        help="Credit for a block held in the host memory of a worker.",
    )
    router_disk_cache_hit_weight: float = option(
        0.25,
        env="DYN_ROUTER_DISK_CACHE_HIT_WEIGHT",
        minimum=0,
        maximum=1,
        help="Credit for a block held on the disk of a worker or below.",
    )
    load_aware: bool = option(
        False,
        env="DYN_ROUTER_LOAD_AWARE",
        help="Preset: --router-mode kv by load alone, without overlap credit, KV events and assumed reuse.",
    )
    router_temperature: float = option(
        0.0,
        env="DYN_ROUTER_TEMPERATURE",
        minimum=0,
        help="Softmax temperature of the choice; 0 takes the cheapest worker.",
    )
    router_kv_events: bool = option(
        True,
        env="DYN_ROUTER_USE_KV_EVENTS",
        flags=("--router-kv-events", "--kv-events"),
        help="Learn what workers hold from their KV events; off: predict it from past placements.",
    )
    router_ttl_s: float = option(
        120.0,
        env="DYN_ROUTER_TTL_SECS",
        flags=("--router-ttl-secs",),
        minimum=0,
        help="Seconds for which a predicted block is believed to be held, without KV events.",
    )
    router_approximate_cache_policy: str = option(
        "ttl",
        env="DYN_ROUTER_APPROXIMATE_CACHE_POLICY",
        choices=("ttl", "lru"),
        help="How predicted blocks leave again: by age, or by the capacity that the worker advertises.",
    )
    router_durable_kv_events: bool = option(
        False,
        env="DYN_ROUTER_DURABLE_KV_EVENTS",
        flags=("--router-durable-kv-events", "--durable-kv-events"),
        help="Let NATS JetStream keep the KV events of workers on the nats event plane, and go on where this router "
        "stopped.",
    )
    router_replica_name: str | None = option(
        None,
        env=("DYN_ROUTER_REPLICA_NAME", "DYN_STABLE_ROUTING_ID"),
        help="Name under which a broker keeps this router's place in the events; unset: the host's name.",
    )
    router_max_index_blocks: int = option(
        8_000_000,
        env="DYN_ROUTER_MAX_INDEX_BLOCKS",
        minimum=1,
        help="Blocks that the prefix index may hold, about 250 bytes each; the oldest leave when it is full.",
    )
    router_snapshot: str | None = option(
        None,
        env="DYN_ROUTER_SNAPSHOT",
        help="Where to keep a snapshot of the prefix index for a warm restart: a file, or nats://BUCKET/NAME for "
        "an object in NATS.",
    )
    router_snapshot_interval_s: float = option(
        60.0,
        env="DYN_ROUTER_SNAPSHOT_INTERVAL_SECS",
        flags=("--router-snapshot-interval-secs",),
        minimum=1,
        help="Seconds between two snapshots.",
    )
    router_predicted_ttl_s: float | None = option(
        None,
        env="DYN_ROUTER_PREDICTED_TTL_SECS",
        flags=("--router-predicted-ttl-secs",),
        minimum=0,
        help="Seconds for which a placement counts as cached until its KV events arrive; unset: not at all.",
    )
    router_replica_sync: bool = option(
        False, env="DYN_ROUTER_REPLICA_SYNC", help="Tell the routers of other replicas about running requests."
    )
    router_active_request_expiry_s: float = option(
        300.0,
        env="DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS",
        flags=("--router-active-request-expiry-secs",),
        minimum=1,
        help="Seconds after which a request of another replica is forgotten if its end was never told.",
    )
    router_track_active_blocks: bool = option(
        True,
        env="DYN_ROUTER_TRACK_ACTIVE_BLOCKS",
        flags=("--router-track-active-blocks", "--track-active-blocks"),
        help="Count the blocks of running requests as load.",
    )
    router_track_output_blocks: bool = option(
        False,
        env="DYN_ROUTER_TRACK_OUTPUT_BLOCKS",
        flags=("--router-track-output-blocks", "--track-output-blocks"),
        help="Count the blocks that output fills as it grows.",
    )
    router_assume_kv_reuse: bool = option(
        True,
        env="DYN_ROUTER_ASSUME_KV_REUSE",
        flags=("--router-assume-kv-reuse", "--assume-kv-reuse"),
        help="Running requests with the same prefix share its blocks when load is counted.",
    )
    router_track_prefill_tokens: bool = option(
        True,
        env="DYN_ROUTER_TRACK_PREFILL_TOKENS",
        help="Count prompt tokens as load until the first token comes back.",
    )
    router_queue_threshold: float | None = option(
        None,
        env="DYN_ROUTER_QUEUE_THRESHOLD",
        minimum=0,
        help="Queue requests while every worker's prefill load is above this part of its batch; unset: never.",
    )
    router_queue_policy: str = option(
        "fcfs",
        env="DYN_ROUTER_QUEUE_POLICY",
        choices=("fcfs", "wspt"),
        help="Order of that queue: first come first served, or the least work per priority first.",
    )
    router_overlap_refresh_after_s: float = option(
        1.0,
        env="DYN_ROUTER_OVERLAP_REFRESH_AFTER_SECS",
        flags=("--router-overlap-refresh-after-secs",),
        minimum=0,
        help="Seconds in the queue after which the order looks anew at what workers have cached of a prompt.",
    )
    router_max_queue_wait_s: float = option(
        600.0,
        env="DYN_ROUTER_MAX_QUEUE_WAIT_SECS",
        flags=("--router-max-queue-wait-secs",),
        minimum=0.001,
        help="Seconds that a request may wait in the queue before it is refused as overload.",
    )
    router_max_queued: int = option(
        65_536, env="DYN_ROUTER_MAX_QUEUED", minimum=1, help="Requests in the queue; further ones are refused."
    )
    router_policy_config: str | None = option(
        None,
        env="DYN_ROUTER_POLICY_CONFIG",
        help="YAML file with policy classes and their queues, and weights of the selection.",
    )
    router_prefill_policy: str | None = option(
        None, env="DYN_ROUTER_PREFILL_POLICY", help="Instance of the policy file that chooses prefill workers."
    )
    router_decode_policy: str | None = option(
        None, env="DYN_ROUTER_DECODE_POLICY", help="Instance of the policy file that chooses decode workers."
    )
    router_policy: str | None = option(
        None,
        env="DYN_ROUTER_POLICY",
        help="Choose workers by your own Python function: module:function, or the name of an entry point of "
        "dynamo.routing_policies.",
    )
    router_policy_budget_ms: float = option(
        2.0, env="DYN_ROUTER_POLICY_BUDGET_MS", minimum=0.001, help="Milliseconds that one call of it may take."
    )
    router_policy_shadow: bool = option(
        False, env="DYN_ROUTER_POLICY_SHADOW", help="Compute and log what it would choose, but do not act on it."
    )
    router_decision_log: str | None = option(
        None,
        env="DYN_ROUTER_DECISION_LOG",
        help="Append every placement with what it was decided on to this file (JSONL), for dynamo-router replay.",
    )
    router_decision_log_max_mb: float = option(
        1024.0, env="DYN_ROUTER_DECISION_LOG_MAX_MB", minimum=1, help="Size in MiB at which that file is closed."
    )
    router_session_affinity_ttl_s: float | None = option(
        None,
        env="DYN_ROUTER_SESSION_AFFINITY_TTL_SECS",
        flags=("--router-session-affinity-ttl-secs",),
        minimum=0.001,
        help="Keep the requests of a session (x-dynamo-session-id) on one worker until idle for so many seconds; "
        "unset: sessions are ignored.",
    )
    router_session_affinity_mode: str = option(
        "hard",
        env="DYN_ROUTER_SESSION_AFFINITY_MODE",
        choices=("hard", "soft"),
        help="hard: the session's worker as long as it can be asked; soft: it is only favoured.",
    )
    router_max_sessions: int = option(
        65_536, env="DYN_ROUTER_MAX_SESSIONS", minimum=1, help="Sessions remembered; the longest idle one leaves first."
    )
    active_decode_blocks_threshold: float | None = option(
        None,
        env="DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD",
        minimum=0,
        maximum=1,
        help="A worker is busy above this part of its KV blocks in use; None switches the test off.",
    )
    active_prefill_tokens_threshold: int | None = option(
        None,
        env="DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD",
        minimum=0,
        help="A worker is busy above this many prompt tokens in prefill; None switches the test off.",
    )
    active_prefill_tokens_threshold_frac: float | None = option(
        None,
        env="DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC",
        minimum=0,
        help="The same as a part of the worker's largest batch; None switches the test off.",
    )

    # ---- accepted, without effect
    router_event_threads: int = option(
        4, env="DYN_ROUTER_EVENT_THREADS", minimum=1, help="Without effect: the index is one flat structure."
    )
    router_tracking_hash: str = option(
        "public-xxh3-v1",
        env="DYN_ROUTER_TRACKING_HASH",
        choices=("public-xxh3-v1", "keyed-xxh3-v1"),
        help="Without effect: prompts are known by their public hashes.",
    )
    router_tracking_key_file: str | None = option(
        None, env="DYN_ROUTER_TRACKING_KEY_FILE", help="Without effect, as --router-tracking-hash."
    )
    router_tracking_key_id: str | None = option(
        None, env="DYN_ROUTER_TRACKING_KEY_ID", help="Without effect, as --router-tracking-hash."
    )
    router_prefill_load_model: str = option(
        "none",
        env="DYN_ROUTER_PREFILL_LOAD_MODEL",
        choices=("none", "ais"),
        help="Without effect: prompt load is counted until the first token.",
    )
    serve_indexer: bool = option(False, env="DYN_SERVE_INDEXER", help="Without effect: every router has its index.")
    use_remote_indexer: bool = option(
        False, env="DYN_USE_REMOTE_INDEXER", help="Without effect: every router has its index."
    )
    enable_session_prefix_index: bool = option(
        False, env="DYN_ENABLE_SESSION_PREFIX_INDEX", help="Without effect, as in Dynamo."
    )
    shared_cache_type: str = option(
        "none",
        env="DYN_SHARED_CACHE_TYPE",
        choices=("none", "hicache"),
        help="Without effect: no shared cache is asked.",
    )
    shared_cache_multiplier: float | None = option(
        None, env="DYN_SHARED_CACHE_MULTIPLIER", minimum=0, help="Without effect: no shared cache is asked."
    )
    router_conditional_disagg: bool = option(
        False, env="DYN_ROUTER_CONDITIONAL_DISAGG", help="Without effect in this version."
    )
    router_conditional_disagg_config: str | None = option(
        None, env="DYN_ROUTER_CONDITIONAL_DISAGG_CONFIG", help="Without effect in this version."
    )
    enforce_disagg: bool = option(
        False, env="DYN_ENFORCE_DISAGG", help="Without effect, as in Dynamo: cards say what workers need."
    )
    router_snapshot_threshold: int | None = option(
        None, env="DYN_ROUTER_SNAPSHOT_THRESHOLD", help="Without effect; of older releases, see --router-snapshot."
    )
    router_reset_states: bool = option(False, env="DYN_ROUTER_RESET_STATES", help="Without effect; of older releases.")
    router_max_tree_size: int | None = option(
        None, env="DYN_ROUTER_MAX_TREE_SIZE", help="Without effect; of older releases, see --router-max-index-blocks."
    )
    router_prune_target_ratio: float | None = option(
        None, env="DYN_ROUTER_PRUNE_TARGET_RATIO", help="Without effect; of older releases."
    )

    @property
    def weight_scale(self) -> float:
        """Of the prompt's cost: the older option goes before the newer."""
        return self.router_prefill_load_scale if self.kv_overlap_score_weight is None else self.kv_overlap_score_weight

    @property
    def weight_credit(self) -> float:
        return 0.0 if self.load_aware or self.kv_overlap_score_weight == 0 else self.router_kv_overlap_score_credit

    @classmethod
    def inert_ones(cls, provenance: Mapping[str, str]) -> list[str]:
        """Names of the options without effect that the user set, by flag or variable."""
        return [name for name in INERT if provenance[name] != "default"]

    @classmethod
    def kv_only_ones(cls, provenance: Mapping[str, str]) -> list[str]:
        """Names of the options that the user set and that only mode kv looks at."""
        return [name for name in KV_ONLY if provenance[name] != "default"]


INERT = tuple(
    name for name, (_field, opt, _kind) in KvRouterOptions.options().items() if opt.help.startswith("Without")
)

KV_ONLY = (
    "router_kv_overlap_score_credit",
    "router_kv_overlap_score_credit_decay",
    "router_prefill_load_scale",
    "kv_overlap_score_weight",
    "router_decode_active_request_weight",
    "router_host_cache_hit_weight",
    "router_disk_cache_hit_weight",
    "router_temperature",
    "router_kv_events",
    "router_ttl_s",
    "router_approximate_cache_policy",
    "router_predicted_ttl_s",
    "router_durable_kv_events",
    "router_snapshot",
    "router_snapshot_interval_s",
    "router_track_active_blocks",
    "router_track_output_blocks",
    "router_assume_kv_reuse",
)
