"""What the router counts, written where the acceptors' `/metrics` collects it."""

from __future__ import annotations

from dynamo.router.core import Router
from dynamo.shared.metrics import Registry


class RouterMetrics:
    """The core counts in plain integers; `observe` brings them here once in a while."""

    def __init__(self, registry: Registry) -> None:
        counter, gauge = registry.counter, registry.gauge
        self._registry = registry
        self._placements = counter("dynamo_router_placements", "Placement requests by outcome.", ("outcome",))
        self._active = gauge("dynamo_router_active_requests", "Requests placed and not over.", ("worker",))
        self._workers = gauge("dynamo_router_workers", "Workers that requests can be placed on.")
        self._inhibited = gauge("dynamo_router_inhibited_workers", "Workers not asked for now, for they failed.")
        self._rejected = gauge("dynamo_router_rejected_workers", "Workers kept out, for their card differs.", ("set",))
        self._acceptors = gauge("dynamo_router_acceptors", "Acceptors connected.")
        self._version = gauge("dynamo_router_table_version", "Version of the model table.")
        self._malformed = gauge("dynamo_router_malformed_entries", "Discovery entries that cannot be read.")
        self._left_out = gauge("dynamo_router_left_out_entries", "Discovery entries refused by the full table.")
        registry.take_over()

    def save(self, router: Router) -> None:
        for outcome, count in router.take_outcomes().items():
            self._placements.labels(outcome).inc(count)
        self._active.clear()
        for instance_id, count in router.acceptors.num_active.items():
            self._active.labels(f"{instance_id:x}").set(count)
        self._rejected.clear()
        for live in router.table.sets.values():
            if live.num_rejected:
                self._rejected.labels(live.key).set(live.num_rejected)
        self._workers.labels().set(len(router.table.workers))
        self._inhibited.labels().set(len(router.table.inhibited_until))
        self._acceptors.labels().set(len(router.acceptors))
        self._version.labels().set(router.table.version)
        self._malformed.labels().set(len(router.malformed))
        self._left_out.labels().set(router.num_left_out)
        self._registry.save()
