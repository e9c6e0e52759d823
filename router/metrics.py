"""What the router counts, written where the acceptors' `/metrics` collects it."""

from __future__ import annotations

from dynamo.router.dynamo_families import DynamoFamilies
from dynamo.router.metric_families import COUNTERS, GAUGES, INCREMENTS, TALLIES
from dynamo.router.metric_parts import Metric, Parts, TallyMetric, Totals
from dynamo.router.tally import WAITS_S, Tally
from dynamo.shared.metrics import Registry


class RouterMetrics:
    """The parts count in plain numbers; `save` brings them here once in a while. `prefix` is that of a frontend's
    metrics, `replica` tells ours from others'."""

    def __init__(self, registry: Registry, prefix: str, replica: str) -> None:
        self._registry = registry
        self._gauges = [(registry.gauge(*_described(name, each)), each.rows) for name, each in GAUGES.items()]
        self._counters = [
            (Totals(registry.counter(*_described(name, each))), each.rows) for name, each in COUNTERS.items()
        ]
        self._increments = [(registry.counter(*_described(name, each)), each.rows) for name, each in INCREMENTS.items()]
        self._tallies = [(registry.counter(*_described(name, each)), each.rows) for name, each in TALLIES.items()]
        self._waits = registry.histogram(
            "dynamo_router_queue_wait_seconds",
            "How long placements waited for a worker with room, of those that had to.",
            WAITS_S,
            ("policy_class",),
        )
        self._dynamo = DynamoFamilies(registry, prefix, replica)
        self.note_batch = self._dynamo.note_batch
        registry.take_over()

    def save(self, parts: Parts) -> None:
        core = parts.core
        for gauge, rows in self._gauges:
            gauge.clear()
            for labels, number in rows(parts):
                gauge.labels(*labels).inc(number)
        for totals, rows in self._counters:
            totals.follow(rows(parts))
        for counter, rows in self._increments:
            for labels, number in rows(parts):
                counter.labels(*labels).inc(number)
        for policy_class, waits in core.tallies.take_waits().items():
            self._waits.labels(policy_class).absorb(waits)
        tallies = core.tallies.take()
        self._count(tallies)
        self._dynamo.observe(core, tallies, core.acceptors.take_ended())
        self._registry.save()

    def _count(self, tallies: list[Tally]) -> None:
        for counter, rows in self._tallies:
            for tally in tallies:
                for labels, number in rows(tally):
                    counter.labels(*labels).inc(number)


def _described(name: str, metric: Metric | TallyMetric) -> tuple[str, str, tuple[str, ...]]:
    return f"dynamo_router_{name}", metric.help, metric.labels
