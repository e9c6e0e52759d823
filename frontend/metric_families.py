"""The families that acceptors fill: name, help, labels, buckets. Names and labels of Dynamo 1.6.1 keep its meaning.

A name that begins with `dynamo_` is whole; to all others the prefix of --metrics-prefix is added. Counters get their
`_total` when they are rendered.
"""

from __future__ import annotations

from typing import NamedTuple

from dynamo.shared.metrics import OVERHEAD_MS, Distribution, Family, Labels, Merge, Registry, Value

Bounds = tuple[float, ...]


class Counter(NamedTuple):
    help: str
    labels: Labels = ()


class Gauge(NamedTuple):
    help: str
    labels: Labels = ()
    merge: Merge = "sum"


class Histogram(NamedTuple):
    help: str
    bounds: Bounds
    labels: Labels = ()


_MODEL = ("model",)
_REQUEST = ("model", "endpoint", "request_type")
_MIGRATION = ("model", "migration_type")
_ROUTER = ("router_id",)
_RANK = ("worker_id", "dp_rank", "worker_type")

_TOKENS = (50.0, 100.0, 210.0, 430.0, 870.0, 1800.0, 3600.0, 7400.0, 15000.0, 31000.0, 63000.0, 130000.0)
_OUTPUT_TOKENS = (1.0, 10.0, 50.0, 100.0, 210.0, 430.0, 860.0, 1800.0, 3700.0, 7600.0, 16000.0, 32000.0)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 130.0, 260.0, 510.0)
_TTFT = (
    0.001,
    0.0022,
    0.0047,
    0.01,
    0.022,
    0.047,
    0.1,
    0.22,
    0.47,
    1.0,
    2.2,
    4.7,
    10.0,
    22.0,
    48.0,
    100.0,
    220.0,
    480.0,
)
_ITL = (0.0005, 0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.048, 0.092, 0.18, 0.34, 0.65, 1.2, 2.4, 4.5, 8.7, 17.0, 80.0)
_EMBEDDING = (0.002, 0.0041, 0.0084, 0.017, 0.035, 0.07, 0.14, 0.29, 0.59, 1.2, 2.4, 4.9, 10.0)
_STAGES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LOOP_DELAY = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_ROUND_TRIP = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_HASHING_MS = tuple(0.001 * 2**i for i in range(15))

COUNTERS = {
    "requests": Counter("Requests that ended.", (*_REQUEST, "status", "error_type")),
    "request": Counter("Requests that ended, all together."),
    "requests_started": Counter("Requests that began.", _REQUEST),
    "failures": Counter("Requests that failed, by kind of error and its code.", ("class", "reason")),
    "output_tokens": Counter("Tokens generated.", _MODEL),
    "tokens": Counter("Tokens by direction.", ("model", "direction")),
    "model_cancellation": Counter("Requests cancelled by their client.", _REQUEST),
    "model_rejection": Counter("Requests refused for overload.", ("model", "endpoint")),
    "model_migration": Counter("Requests that moved to another worker.", _MIGRATION),
    "model_migration_reasons": Counter("Why they moved, by the worker's error.", ("model", "reason")),
    "model_migration_exhausted": Counter(
        "Requests that failed as often as they may move, or had nowhere to go.", _MODEL
    ),
    "model_migration_max_seq_len_exceeded": Counter("Requests that grew too long to move.", _MODEL),
    "parser_failures": Counter("Answers passed on as they came once their parser had failed.", _MODEL),
    "dispatch_retries": Counter("Requests placed again before a worker began them."),
    "local_placements": Counter("Placements without the router, while it was away."),
    "router_timeouts": Counter("Placements the router did not answer in time."),
    "tokenizer_cache_hits": Counter("Prompt segments whose tokens were remembered."),
    "tokenizer_cache_misses": Counter("Prompt segments that had to be tokenized."),
    "event_loop_stall": Counter("Times the event loop was more than 5 ms late."),
}

GAUGES = {
    "active_requests": Gauge("Requests being served.", _MODEL),
    "inflight_requests": Gauge("Requests being served.", _MODEL),
    "queued_requests": Gauge("Requests that wait for their first token.", _MODEL),
    "disconnected_clients": Gauge("Clients gone before their answer."),
    "model_ready": Gauge("1 while the model can be asked, 0 while it is registered and cannot.", _MODEL, "max"),
    "model_context_length": Gauge("Tokens of prompt and answer together.", _MODEL, "max"),
    "model_kv_cache_block_size": Gauge("Tokens in a block of the workers' KV cache.", _MODEL, "max"),
    "model_total_kv_blocks": Gauge("Blocks in the KV cache of one worker.", _MODEL, "max"),
    "model_max_num_seqs": Gauge("Requests one worker runs at a time.", _MODEL, "max"),
    "model_max_num_batched_tokens": Gauge("Tokens one worker computes in a step.", _MODEL, "max"),
    "model_migration_limit": Gauge("How often a request may move to another worker, says the card.", _MODEL, "max"),
    "worker_last_time_to_first_token_seconds": Gauge(
        "Of the worker's last request; of several acceptors the highest.", _RANK, "max"
    ),
    "worker_last_input_sequence_tokens": Gauge(
        "Of the worker's last request; of several acceptors the highest.", _RANK, "max"
    ),
    "worker_last_inter_token_latency_seconds": Gauge(
        "Of the worker's last request; of several acceptors the highest.", _RANK, "max"
    ),
    "dynamo_request_plane_inflight_requests": Gauge("Requests that workers are at."),
}

HISTOGRAMS = {
    "request_duration_seconds": Histogram("From the request's headers to its last byte.", _SECONDS, _MODEL),
    "time_to_first_token_seconds": Histogram("From the request's headers to the first token.", _TTFT, _MODEL),
    "inter_token_latency_seconds": Histogram("Time between tokens: a request's mean, once per gap.", _ITL, _MODEL),
    "input_sequence_tokens": Histogram("Prompt tokens.", _TOKENS, _MODEL),
    "output_sequence_tokens": Histogram("Generated tokens.", _OUTPUT_TOKENS, _MODEL),
    "embedding_latency_seconds": Histogram("From an embedding request's headers to its answer.", _EMBEDDING, _MODEL),
    "cached_tokens": Histogram("Prompt tokens the worker found in its cache.", _TOKENS, _MODEL),
    "stage_duration_seconds": Histogram("Time in a stage of the pipeline.", _STAGES, ("stage",)),
    "event_loop_delay_seconds": Histogram("How late the event loop runs what is due.", _LOOP_DELAY),
    "dynamo_request_plane_roundtrip_ttft_seconds": Histogram("From placement to the first token.", _ROUND_TRIP),
    "dynamo_router_overhead_block_hashing_ms": Histogram("Hashing a prompt's blocks, in ms.", _HASHING_MS, _ROUTER),
    "dynamo_router_overhead_total_ms": Histogram("Hashing and placement of a request, in ms.", OVERHEAD_MS, _ROUTER),
}


class Families:
    """All of them, registered; by the names above."""

    def __init__(self, registry: Registry, prefix: str) -> None:
        self.counters: dict[str, Family[Value]] = {
            name: registry.counter(_full(prefix, name), *spec) for name, spec in COUNTERS.items()
        }
        self.gauges: dict[str, Family[Value]] = {
            name: registry.gauge(_full(prefix, name), *spec) for name, spec in GAUGES.items()
        }
        self.histograms: dict[str, Family[Distribution]] = {
            name: registry.histogram(_full(prefix, name), *spec) for name, spec in HISTOGRAMS.items()
        }


def _full(prefix: str, name: str) -> str:
    return name if name.startswith("dynamo_") else f"{prefix}_{name}"
