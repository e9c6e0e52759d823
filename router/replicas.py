"""Replica sync: routers tell each other what they have placed, so that each knows the load of all.

Without IO and without a clock: `ReplicaLink` moves what this takes and gives, and says what time it is. A *scope* is a
worker endpoint; what happens in scopes that are not open is told to nobody.
"""

from __future__ import annotations

from dynamo.router.replica_announcer import Announcer
from dynamo.router.replica_group import ReplicaGroup
from dynamo.router.replica_host import ReplicaCounts, ReplicaHost, ReplicaLimits
from dynamo.router.replica_thresholds import ThresholdBook
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds
from dynamo.shared.replica_events import (
    AffinityBinding,
    RunningRequest,
    ThresholdsSet,
)


class ReplicaSync:
    """`has_batches`: events may share a payload, as over ZeroMQ; over NATS Dynamo's routers expect single ones."""

    def __init__(
        self, router_id: int, host: ReplicaHost, limits: ReplicaLimits | None = None, *, has_batches: bool = True
    ) -> None:
        self.router_id = router_id
        self.counts = ReplicaCounts()
        self._host = host
        self._limits = limits or ReplicaLimits()
        self._has_batches = has_batches
        self._book = ThresholdBook(router_id, host, self._limits.max_models)
        self._groups: dict[EndpointScope, ReplicaGroup] = {}

    def open(self, scope: EndpointScope, publisher_id: int) -> None:
        """From now on the scope's active sequences are published under this id, its first envelope having number 0."""
        announcer = Announcer(self.router_id, publisher_id, self._limits, self.counts, has_batches=self._has_batches)
        self._groups[scope] = ReplicaGroup(
            self.router_id, scope, announcer, self._host, self._book, self._limits, self.counts
        )

    def close(self, scope: EndpointScope) -> None:
        """Forget what the others run there."""
        self._groups.pop(scope).close()

    @property
    def num_peers(self) -> int:
        """Other routers that are heard, our own replicas and Dynamo's."""
        return len({router_id for group in self._groups.values() for router_id in group.peers})

    @property
    def num_remote_requests(self) -> int:
        return sum(len(peer) for group in self._groups.values() for peer in group.peers.values())

    # ---- what this router does

    def added(self, scope: EndpointScope, request: RunningRequest, *, tracks_prefill: bool = True) -> None:
        """A request was placed. Its id should be the one that the worker is given: workers report prefills by it."""
        if (group := self._groups.get(scope)) is not None:
            group.announcer.added(request, tracks_prefill=tracks_prefill)

    def prefill_completed(self, scope: EndpointScope, request_id: str) -> None:
        if (group := self._groups.get(scope)) is not None:
            group.announcer.prefill_completed(request_id)

    def freed(self, scope: EndpointScope, request_id: str) -> None:
        if (group := self._groups.get(scope)) is not None:
            group.announcer.freed(request_id)

    def bound(self, scope: EndpointScope, binding: AffinityBinding) -> None:
        if (group := self._groups.get(scope)) is not None:
            group.announcer.bound(binding)

    def predicted(self, scope: EndpointScope, worker: WorkerRank, block_hashes: bytes) -> None:
        """In approximate mode: these blocks are expected in the cache of a rank."""
        if (group := self._groups.get(scope)) is not None:
            group.announcer.predicted(worker, block_hashes)

    def thresholds_set(self, thresholds: Thresholds) -> None:
        """By an operator, at this replica; all values of the model as they are now."""
        versioned = self._book.set(thresholds)
        for group in self._groups.values():
            group.announcer.say(ThresholdsSet(versioned))

    def leaving(self) -> None:
        """This router ends: the others need not wait to see that."""
        for group in self._groups.values():
            group.announcer.leave()

    def has_outgoing(self, scope: EndpointScope) -> bool:
        return self._groups[scope].announcer.has_outgoing

    def take_outgoing(self, scope: EndpointScope) -> list[tuple[str, bytes]]:
        """(topic, payload) to publish, in that order. More may be left: large snapshots come in several turns."""
        return self._groups[scope].announcer.take()

    # ---- what the others do

    def receive(self, scope: EndpointScope, envelope: Envelope, now: float) -> None:
        if (group := self._groups.get(scope)) is not None:
            group.receive(envelope, now)

    def publisher_left(self, scope: EndpointScope, publisher_id: int) -> None:
        """Its channel is no longer in discovery."""
        if (group := self._groups.get(scope)) is not None:
            group.publisher_left(publisher_id)

    def tick(self, now: float) -> None:
        for group in self._groups.values():
            group.tick(now)
