"""What other routers have placed and agreed on, as this router takes it in: the receiving side of replica sync."""

from __future__ import annotations

from msgspec.structs import replace

from dynamo.router.affinity import SessionAffinity
from dynamo.router.fleet import Fleet
from dynamo.router.overload import OverloadMonitor
from dynamo.router.placing import SEPARATOR, session_key
from dynamo.router.replica_host import RemoteKey
from dynamo.router.table import ModelTable
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds
from dynamo.shared.replica_events import AffinityBinding, RunningRequest

HASH_SIZE = 8


class RemoteLoad:
    def __init__(
        self, table: ModelTable, fleet: Fleet, overload: OverloadMonitor, affinity: SessionAffinity | None
    ) -> None:
        self._table = table
        self._fleet = fleet
        self._overload = overload
        self._affinity = affinity
        self.has_new_thresholds = False

    # ---- requests

    def add_remote(self, key: RemoteKey, request: RunningRequest, _now: float) -> bool:
        worker_id, dp_rank = request.worker.worker_id, request.worker.dp_rank
        slot, live = self._fleet.ranks.slot_of(worker_id, dp_rank), self._table.home_of(worker_id)
        if slot is None or live is None:
            return False
        weights = self._fleet.weights
        num_blocks = len(request.block_hashes) // HASH_SIZE
        self._fleet.sequences.add(
            key,
            slot,
            request.block_hashes if weights.track_active_blocks else b"",
            num_blocks * live.block_size if weights.track_active_blocks else 0,
            request.num_prefill_tokens if weights.track_prefill_tokens else 0,
            live.block_size,
            request.expected_output_tokens,
            shares_blocks=weights.assume_kv_reuse,
        )
        return True

    def complete_remote_prefill(self, key: RemoteKey) -> None:
        self._fleet.sequences.complete_prefill(key)

    def free_remote(self, key: RemoteKey) -> None:
        self._fleet.sequences.free(key)

    # ---- what routers agree on

    def apply_predicted(self, worker: WorkerRank, block_hashes: bytes, now: float) -> None:
        slot = self._fleet.ranks.slot_of(worker.worker_id, worker.dp_rank)
        if slot is not None and self._fleet.predicted is not None:
            self._fleet.predicted.insert(slot, block_hashes, now)

    def apply_thresholds(self, thresholds: Thresholds) -> None:
        self._overload.set_thresholds(thresholds, replaces=True)
        self.has_new_thresholds = True

    def apply_binding(self, scope: EndpointScope, binding: AffinityBinding, now: float) -> None:
        """Of workers that we know only: another would be moved away from at once. The others know sessions by their own
        ids, we know a binding per model."""
        live = self._table.home_of(binding.worker_id)
        if self._affinity is not None and live is not None:
            self._affinity.apply_remote(replace(binding, session_id=session_key(live.model, binding.session_id)), now)

    def bindings(self, scope: EndpointScope) -> list[AffinityBinding]:
        """All of a scope, as the others know them."""
        found = [] if self._affinity is None else self._affinity.snapshot()
        return [as_told(binding) for binding in found if self.scope_of(binding.worker_id) == scope]

    def scope_of(self, instance_id: int) -> EndpointScope | None:
        live = self._table.home_of(instance_id)
        return None if live is None else live.scope


def as_told(binding: AffinityBinding) -> AffinityBinding:
    """By the session's own id."""
    return replace(binding, session_id=binding.session_id.partition(SEPARATOR)[2])
