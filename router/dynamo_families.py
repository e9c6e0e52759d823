"""What Dynamo 1.6.1 exports too, under its names and labels: `<prefix>_worker_*`, `<prefix>_router_queue_*`,
`dynamo_component_*` and `dynamo_router_overhead_*`.

In `dynamo_component_*`, `worker_id` and `router_id` are the router's own id, once in hex and once in decimal. Ids of
workers are in decimal everywhere, and a worker that does both prefill and decode is a decode worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dynamo.router.class_queue import PolicyClass
from dynamo.router.core import Router
from dynamo.router.event_counts import Applied
from dynamo.router.metric_parts import Row, Totals
from dynamo.router.table import LiveSet
from dynamo.router.tally import HIT_RATES, Tally
from dynamo.shared.metrics import OVERHEAD_MS, Registry, router_id_of

QUEUE_LIMITS = {
    "requests": "request_limit",
    "raw_isl_tokens": "raw_isl_token_limit",
    "cached_tokens": "cached_token_limit",
}

_COMPONENT = ("dynamo_component", "dynamo_namespace")
_ROUTER = ("router_id", "worker_id")
_RANK = ("worker_id", "dp_rank", "worker_type")
_QUEUE = ("model", "policy_class", "worker_type")
_PLACED = (*_COMPONENT, "model", "phase", *_ROUTER)


class _Home(NamedTuple):
    """Of a worker, as labels."""

    component: tuple[str, str]
    worker_type: str


class DynamoFamilies:
    """`replica` tells this router from others, and stays the same when its process is replaced."""

    def __init__(self, registry: Registry, prefix: str, replica: str) -> None:
        own_id = router_id_of(replica)
        self._own_id = f"{own_id:x}"
        self._router = (str(own_id), self._own_id)
        self._homes: dict[int, _Home] = {}
        self._register_load(registry, prefix)
        self._register_placements(registry)
        self._register_overhead(registry)

    def _register_load(self, registry: Registry, prefix: str) -> None:
        self._prefill_tokens = registry.gauge(
            f"{prefix}_worker_active_prefill_tokens", "Prompt tokens that a rank has yet to compute.", _RANK
        )
        self._decode_blocks = registry.gauge(
            f"{prefix}_worker_active_decode_blocks", "KV blocks that the running requests of a rank use.", _RANK
        )
        queue = f"{prefix}_router_queue"
        self._pending = (
            registry.gauge(f"{queue}_pending_requests", "Requests that wait for a worker with room.", _QUEUE),
            registry.gauge(f"{queue}_pending_isl_tokens", "Prompt tokens of requests that wait for a worker.", _QUEUE),
            registry.gauge(
                f"{queue}_pending_cached_tokens", "Of waiting requests, prompt tokens that are cached.", _QUEUE
            ),
        )
        self._backpressure = registry.counter(
            f"{queue}_backpressure",
            "Requests refused by a full queue, by the limit that it had reached.",
            ("model", "policy_class", "reason", "worker_type"),
        )
        self._registered = registry.gauge(
            "dynamo_component_router_worker_registered",
            "1 for each rank that requests can be placed on.",
            ("dp_rank", *_COMPONENT, "router_worker_id", "worker_id", "worker_type"),
        )

    def _register_placements(self, registry: Registry) -> None:
        component = "dynamo_component_router"
        self._started = registry.counter(
            f"{component}_requests_started", "Requests that were placed.", (*_COMPONENT, *_ROUTER)
        )
        self._ended = registry.counter(
            f"{component}_requests", "Requests that were placed and are over.", (*_COMPONENT, *_ROUTER)
        )
        self._hit_rate = registry.histogram(
            f"{component}_kv_hit_rate",
            "Share of a prompt's blocks that the chosen rank was expected to have on its device.",
            HIT_RATES,
            (*_COMPONENT, *_ROUTER),
        )
        self._selected_tokens = registry.counter(
            f"{component}_kv_selected_cached_prefix_tokens",
            "Prompt tokens that the chosen rank was expected to have on its device.",
            _PLACED,
        )
        self._best_tokens = registry.counter(
            f"{component}_kv_best_eligible_cached_prefix_tokens",
            "Prompt tokens that the best rank was expected to have on its device, of those that could be chosen.",
            _PLACED,
        )
        self._events_applied = Totals(
            registry.untyped(
                "dynamo_component_kv_cache_events_applied",
                "KV events given to the index.",
                (*_COMPONENT, "event_type", "status", "worker_id"),
            )
        )

    def _register_overhead(self, registry: Registry) -> None:
        overhead, labels = "dynamo_router_overhead", ("router_id",)
        router_id = self._router[0]
        self._match_ms = registry.histogram(
            f"{overhead}_indexer_find_matches_ms", "Looking a prompt up in the index, in ms.", OVERHEAD_MS, labels
        ).labels(router_id)
        self._scheduling_ms = registry.histogram(
            f"{overhead}_scheduling_ms",
            "The router's work on a placement, in ms: its share of the messages that came together.",
            OVERHEAD_MS,
            labels,
        ).labels(router_id)

    # ---- once per batch of messages

    def note_batch(self, took_s: float, num_placed: int) -> None:
        if num_placed:
            self._scheduling_ms.observe(took_s * 1000 / num_placed, num_placed)

    # ---- once in a while

    def observe(self, core: Router, tallies: Iterable[Tally], ended: Mapping[int, int]) -> None:
        """Set gauges anew; count placements and what is `ended`, by instance, since the last call."""
        self._learn_homes(core, ended)
        self._observe_ranks(core)
        self._observe_queue(core)
        for tally in tallies:
            self._count_placements(tally)
        if core.rules.is_kv:
            self._match_ms.absorb(core.fleet.take_match_ms())
        if core.sources is not None:
            self._events_applied.follow(self._applied_rows(core.sources.applied))

    def _learn_homes(self, core: Router, ended: Mapping[int, int]) -> None:
        """Workers that are no longer in the table finish what they run."""
        present = {i: _home_of(live) for live in core.table.sets.values() for i in live.members}
        known = self._homes | present
        for home in set(present.values()):
            for family in (self._started, self._ended):
                family.labels(*home.component, *self._router)
        for instance_id, number in ended.items():
            if instance_id in known:
                self._ended.labels(*known[instance_id].component, *self._router).inc(number)
        running = core.acceptors.num_active
        self._homes = {i: home for i, home in known.items() if i in present or i in running}

    def _observe_ranks(self, core: Router) -> None:
        gauges = (self._registered, self._prefill_tokens, self._decode_blocks)
        for gauge in gauges:
            gauge.clear()
        sequences = core.fleet.sequences
        for slot, (instance_id, dp_rank) in core.fleet.ranks:
            worker_id, rank, home = str(instance_id), str(dp_rank), self._homes.get(instance_id)
            if home is None:
                continue
            self._registered.labels(rank, *home.component, worker_id, self._own_id, home.worker_type).inc()
            self._prefill_tokens.labels(worker_id, rank, home.worker_type).inc(sequences.prefill_tokens[slot])
            self._decode_blocks.labels(worker_id, rank, home.worker_type).inc(sequences.blocks[slot])

    def _observe_queue(self, core: Router) -> None:
        for gauge in self._pending:
            gauge.clear()
        for live in core.table.sets.values():
            self._show_queues(live, core.admission.classes_of(live.model))
        for (policy_class, set_key), depth in core.queue.depths_of_sets().items():
            if (live_set := core.table.sets.get(set_key)) is not None:
                labels = (live_set.model, policy_class, _type_of(live_set.worker_type))
                for gauge, number in zip(self._pending, depth, strict=True):
                    gauge.labels(*labels).inc(number)

    def _show_queues(self, live: LiveSet, classes: Iterable[PolicyClass]) -> None:
        """Also those in which nobody waits."""
        worker_type = _type_of(live.worker_type)
        for policy_class in classes:
            for gauge in self._pending:
                gauge.labels(live.model, policy_class.name, worker_type)
            for reason in QUEUE_LIMITS.values():
                self._backpressure.labels(live.model, policy_class.name, reason, worker_type)

    def _count_placements(self, tally: Tally) -> None:
        component = (tally.scope.component, tally.scope.namespace)
        self._started.labels(*component, *self._router).inc(tally.num_placed)
        for (policy_class, limit), number in tally.queue_limits.items():
            reason, worker_type = QUEUE_LIMITS[limit], _type_of(tally.worker_type)
            self._backpressure.labels(tally.model, policy_class, reason, worker_type).inc(number)
        if tally.num_prompt_blocks:
            self._hit_rate.labels(*component, *self._router).absorb(tally.hit_rates)
            placed = (*component, tally.model, tally.worker_type, *self._router)
            self._selected_tokens.labels(*placed).inc(tally.num_overlap_blocks * tally.block_size)
            self._best_tokens.labels(*placed).inc(tally.num_best_overlap_blocks * tally.block_size)

    def _applied_rows(self, applied: Mapping[tuple[str, str], Applied]) -> Iterator[Row]:
        for (namespace, component), counts in applied.items():
            for event_type, status, number in (
                ("stored", "ok", counts.stored - counts.refused),
                ("stored", "parent_block_not_found", counts.refused),
                ("removed", "ok", counts.removed),
                ("cleared", "ok", counts.cleared),
            ):
                yield (component, namespace, event_type, status, self._own_id), number


def _home_of(live: LiveSet) -> _Home:
    return _Home((live.scope.component, live.scope.namespace), _type_of(live.worker_type))


def _type_of(role: str) -> str:
    return "decode" if role == "aggregated" else role
