"""Thresholds that were set at any replica hold at all of them."""

from __future__ import annotations

from collections.abc import Iterator

from dynamo.router.replica_host import ReplicaHost
from dynamo.shared.messages import Thresholds
from dynamo.shared.replica_events import VersionedThresholds


class ThresholdBook:
    """The last that was set for each model; of two at the same time, all replicas keep the same one."""

    def __init__(self, router_id: int, host: ReplicaHost, max_models: int) -> None:
        self._router_id = router_id
        self._host = host
        self._max_models = max_models
        self._by_model: dict[str, VersionedThresholds] = {}

    def __iter__(self) -> Iterator[VersionedThresholds]:
        return iter(self._by_model.values())

    def set(self, thresholds: Thresholds) -> VersionedThresholds:
        """Ours: newer than all that was heard before."""
        known = self._by_model.get(thresholds.model)
        versioned = VersionedThresholds(thresholds, 1 if known is None else known.version + 1, self._router_id)
        self._keep(versioned)
        return versioned

    def learn(self, versioned: VersionedThresholds) -> None:
        """Another replica's. Raises ValueError for those that cannot be meant."""
        known = self._by_model.get(versioned.thresholds.model)
        if known is None or (known.version, known.router_id) < (versioned.version, versioned.router_id):
            self._host.apply_thresholds(versioned.thresholds)
            self._keep(versioned)

    def _keep(self, versioned: VersionedThresholds) -> None:
        """The model set longest ago goes when there are too many: it is not told to replicas that join."""
        self._by_model.pop(versioned.thresholds.model, None)
        if len(self._by_model) >= self._max_models:
            del self._by_model[next(iter(self._by_model))]
        self._by_model[versioned.thresholds.model] = versioned
