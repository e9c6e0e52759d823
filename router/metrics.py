"""What the router counts, written where the acceptors' `/metrics` collects it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from dynamo.router.core import Router
from dynamo.shared.metrics import Registry

Row = tuple[tuple[str, ...], float]  # label values, number


def _of_index(name: str) -> Callable[[Router], float]:
    return lambda router: 0 if router.fleet.index is None else getattr(router.fleet.index, name)


def _of_predicted(name: str) -> Callable[[Router], float]:
    return lambda router: 0 if router.fleet.predicted is None else getattr(router.fleet.predicted, name)


GAUGES: tuple[tuple[str, str, Callable[[Router], float]], ...] = (
    ("workers", "Workers that requests can be placed on.", lambda router: len(router.table.workers)),
    (
        "inhibited_workers",
        "Workers not asked for now, for they failed.",
        lambda router: len(router.table.inhibited_until),
    ),
    ("acceptors", "Acceptors connected.", lambda router: len(router.acceptors)),
    ("table_version", "Version of the model table.", lambda router: router.table.version),
    ("malformed_entries", "Discovery entries that cannot be read.", lambda router: len(router.registrar.malformed)),
    ("left_out_entries", "Discovery entries refused by the full table.", lambda router: router.registrar.num_left_out),
    ("sessions", "Sessions bound to a worker.", lambda router: len(router.affinity or ())),
    ("tracked_requests", "Running requests that count as load.", lambda router: len(router.fleet.sequences)),
    ("index_blocks", "Blocks in the prefix index.", _of_index("num_blocks")),
    ("index_holdings", "Blocks in the prefix index, times the ranks that hold them.", _of_index("num_holdings")),
    ("predicted_blocks", "Blocks in the index of predictions.", _of_predicted("num_blocks")),
)
COUNTERS: tuple[tuple[str, str, Callable[[Router], float]], ...] = (
    ("index_evicted_blocks", "Blocks that the full prefix index forgot.", _of_index("num_evicted")),
    ("index_unknown_parents", "Stored events without a known parent.", _of_index("num_unknown_parents")),
    ("index_unknown_removals", "Removed blocks that were not in the index.", _of_index("num_unknown_removals")),
    ("turned_away_acceptors", "Acceptors refused, for there were too many.", lambda router: router.num_turned_away),
)
LABELLED_GAUGES: tuple[tuple[str, str, tuple[str, ...], Callable[[Router], Iterable[Row]]], ...] = (
    (
        "active_requests",
        "Requests placed and not over.",
        ("worker",),
        lambda router: [((f"{i:x}",), n) for i, n in router.acceptors.num_active.items()],
    ),
    (
        "rejected_workers",
        "Workers kept out, for their card differs.",
        ("set",),
        lambda router: [((s.key,), s.num_rejected) for s in router.table.sets.values() if s.num_rejected],
    ),
    (
        "queued_requests",
        "Requests that wait for a worker with room.",
        ("policy_class",),
        lambda router: [((name,), depth.requests) for name, depth in router.queue.depths().items()],
    ),
    (
        "queued_tokens",
        "Prompt tokens of requests that wait for a worker with room.",
        ("policy_class",),
        lambda router: [((name,), depth.raw_isl_tokens) for name, depth in router.queue.depths().items()],
    ),
    (
        "active_prefill_tokens",
        "Prompt tokens that running requests have yet to compute.",
        ("worker", "dp_rank"),
        lambda router: _per_rank(router, lambda slot: router.fleet.sequences.prefill_tokens[slot]),
    ),
    (
        "active_blocks",
        "KV blocks that running requests are taken to use.",
        ("worker", "dp_rank"),
        lambda router: _per_rank(router, lambda slot: router.fleet.sequences.blocks[slot]),
    ),
)
EVENTS: tuple[tuple[str, str, tuple[str, ...], Callable[[Router], Iterable[Row]]], ...] = (
    (
        "placements",
        "Placement requests by outcome.",
        ("outcome",),
        lambda router: [((outcome,), n) for outcome, n in router.take_outcomes().items()],
    ),
    (
        "queue_rejections",
        "Requests refused by a full queue or after too long a wait.",
        ("policy_class", "reason"),
        lambda router: list(router.queue.take_rejections().items()),
    ),
    (
        "session_events",
        "Sessions bound, moved, expired and evicted.",
        ("event",),
        lambda router: [((e,), n) for e, n in (router.affinity.take_counts() if router.affinity else {}).items()],
    ),
)


def _per_rank(router: Router, value: Callable[[int], float]) -> list[Row]:
    return [((f"{rank.instance_id:x}", str(rank.dp_rank)), value(slot)) for slot, rank in router.fleet.ranks]


class RouterMetrics:
    """The core counts in plain numbers; `save` brings them here once in a while."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._gauges = [(registry.gauge(f"dynamo_router_{name}", help), read) for name, help, read in GAUGES]
        self._counters = [(registry.counter(f"dynamo_router_{name}", help), read) for name, help, read in COUNTERS]
        self._labelled = [
            (registry.gauge(f"dynamo_router_{name}", help, labels), read)
            for name, help, labels, read in LABELLED_GAUGES
        ]
        self._events = [
            (registry.counter(f"dynamo_router_{name}", help, labels), read) for name, help, labels, read in EVENTS
        ]
        self._decisions = registry.counter("dynamo_router_decisions", "Decisions for the log.", ("outcome",))
        self._counted = [0.0] * len(COUNTERS)  # of this process; the registry goes on where a predecessor ended
        registry.take_over()

    def save(self, router: Router, decisions: Mapping[str, int]) -> None:
        """`decisions` that the decision log has written or dropped since the last call."""
        for gauge, read in self._gauges:
            gauge.labels().set(read(router))
        for at, (counter, read) in enumerate(self._counters):
            value = read(router)
            counter.labels().inc(value - self._counted[at])
            self._counted[at] = value
        for gauge, rows in self._labelled:
            gauge.clear()
            for labels, value in rows(router):
                gauge.labels(*labels).set(value)
        for counter, rows in self._events:
            for labels, value in rows(router):
                counter.labels(*labels).inc(value)
        for outcome, count in decisions.items():
            self._decisions.labels(outcome).inc(count)
        self._registry.save()
