"""Options of KV-aware routing, with the names and defaults of Dynamo 1.6.1.

They are read, checked and kept, so that its commands run unchanged. The placement modes of this version do not look at
them; `given` names those that the user set, so that start-up can say so.
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
        env=("DYN_ROUTER_PREFILL_LOAD_SCALE", "DYN_KV_OVERLAP_SCORE_WEIGHT"),
        flags=("--router-prefill-load-scale", "--kv-overlap-score-weight", "--router-kv-overlap-score-weight"),
        minimum=0,
        help="Weight of the prompt's cost against the decode cost; 0 by the older flag names also drops the credit.",
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
    router_event_threads: int = option(
        4,
        env="DYN_ROUTER_EVENT_THREADS",
        minimum=1,
        help="Accepted for compatibility: the index is one flat structure.",
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

    @classmethod
    def given(cls, provenance: Mapping[str, str]) -> list[str]:
        """Names of the options of this class that the user set, by flag or variable."""
        return [name for name in KvRouterOptions.options() if provenance[name] != "default"]
