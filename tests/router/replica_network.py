"""Routers that talk to each other over lines that a test holds in its hands: nothing arrives until it says so.

Like ZeroMQ and NATS, a line keeps the order of what one publisher says to one subscriber; lines are independent.
"""

from __future__ import annotations

from collections import deque

from dynamo.router.active import ActiveSequences
from dynamo.router.overload import OverloadMonitor
from dynamo.router.replica_host import RemoteKey, ReplicaLimits
from dynamo.router.replicas import ReplicaSync
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds
from dynamo.shared.replica_events import (
    ACTIVE_SEQUENCES_TOPIC,
    AFFINITY_TOPIC,
    REPLICA_TOPIC,
    AffinityBinding,
    RunningRequest,
)

SCOPE = EndpointScope("demo", "backend", "generate")
TOPICS = (ACTIVE_SEQUENCES_TOPIC, AFFINITY_TOPIC, REPLICA_TOPIC)
LIMITS = ReplicaLimits()


class Host:
    """A router's state as far as replica sync touches it."""

    def __init__(self) -> None:
        self.ranks = {WorkerRank(1), WorkerRank(2)}
        self.remote: dict[RemoteKey, RunningRequest] = {}
        self.thresholds: dict[str, Thresholds] = {}
        self.predicted: list[tuple[WorkerRank, bytes]] = []
        self.bound: dict[str, AffinityBinding] = {}

    def add_remote(self, key: RemoteKey, request: RunningRequest, _now: float) -> bool:
        if request.worker not in self.ranks:
            return False
        assert key not in self.remote
        self.remote[key] = request
        return True

    def complete_remote_prefill(self, key: RemoteKey) -> None:
        request = self.remote[key]
        self.remote[key] = RunningRequest(request.request_id, request.worker, request.block_hashes, 0)

    def free_remote(self, key: RemoteKey) -> None:
        del self.remote[key]

    def apply_predicted(self, worker: WorkerRank, block_hashes: bytes, _now: float) -> None:
        self.predicted.append((worker, block_hashes))

    def apply_thresholds(self, thresholds: Thresholds) -> None:
        OverloadMonitor(ActiveSequences(), thresholds)  # raises ValueError, as that of a router does
        self.thresholds[thresholds.model] = thresholds

    def apply_binding(self, _scope: EndpointScope, binding: AffinityBinding, _now: float) -> None:
        self.bound[binding.session_id] = binding

    def bindings(self, _scope: EndpointScope) -> list[AffinityBinding]:
        return list(self.bound.values())


class Replica:
    def __init__(self, router_id: int, limits: ReplicaLimits = LIMITS) -> None:
        self.router_id = router_id
        self.host = Host()
        self.sync = ReplicaSync(router_id, self.host, limits)
        self.sync.open(SCOPE, self.publisher_of(ACTIVE_SEQUENCES_TOPIC))
        self.running: dict[str, RunningRequest] = {}
        self._num_published: dict[str, int] = {}

    def add(self, request_id: str, num_prefill_tokens: int = 64, worker: int = 1, block_hashes: bytes = b"") -> None:
        self.running[request_id] = RunningRequest(request_id, WorkerRank(worker), block_hashes, num_prefill_tokens)
        self.sync.added(SCOPE, self.running[request_id])

    def complete_prefill(self, request_id: str) -> None:
        request = self.running[request_id]
        self.running[request_id] = RunningRequest(request_id, request.worker, request.block_hashes, 0)
        self.sync.prefill_completed(SCOPE, request_id)

    def free(self, request_id: str) -> None:
        del self.running[request_id]
        self.sync.freed(SCOPE, request_id)

    def take(self) -> list[Envelope]:
        return [self.envelope(topic, payload) for topic, payload in self.sync.take_outgoing(SCOPE)]

    def envelope(self, topic: str, payload: bytes) -> Envelope:
        sequence = self._num_published.get(topic, 0)
        self._num_published[topic] = sequence + 1
        return Envelope(self.publisher_of(topic), sequence, 0, topic, payload)

    def publisher_of(self, topic: str) -> int:
        return 10 * self.router_id + TOPICS.index(topic)

    def sees(self, other: Replica) -> list[RunningRequest]:
        return [request for key, request in self.host.remote.items() if key.router_id == other.router_id]


class Network:
    def __init__(self, num_replicas: int, limits: ReplicaLimits = LIMITS) -> None:
        self.now = 0.0
        self.replicas: dict[int, Replica] = {}
        self.dead: list[Replica] = []
        self.lines: dict[tuple[int, int, str], deque[Envelope]] = {}  # from, to, topic
        self._limits = limits
        self._num_ids = 100  # no worker has the id of a router
        for _ in range(num_replicas):
            self.join()

    def join(self) -> Replica:
        self._num_ids += 1
        router_id = self._num_ids
        replica = self.replicas[router_id] = Replica(router_id, self._limits)
        return replica

    def kill(self, replica: Replica) -> None:
        """What it has said is still on its way; the lines to it are cut."""
        del self.replicas[replica.router_id]
        self.dead.append(replica)
        for key in [key for key in self.lines if key[1] == replica.router_id]:
            del self.lines[key]

    def tell_deaths(self) -> None:
        """Discovery does so, some time later."""
        for dead in self.dead:
            for key in [key for key in self.lines if key[0] == dead.router_id]:
                del self.lines[key]
            for replica in self.replicas.values():
                for topic in TOPICS:
                    replica.sync.publisher_left(SCOPE, dead.publisher_of(topic))
        self.dead.clear()

    def flush(self, replica: Replica) -> None:
        for envelope in replica.take():
            for other in self.replicas:
                if other != replica.router_id:
                    line = self.lines.setdefault((replica.router_id, other, envelope.topic), deque())
                    line.append(envelope)

    def deliver(self, line: tuple[int, int, str]) -> None:
        self.replicas[line[1]].sync.receive(SCOPE, self.lines[line].popleft(), self.now)

    def lose(self, line: tuple[int, int, str]) -> None:
        self.lines[line].popleft()

    @property
    def busy_lines(self) -> list[tuple[int, int, str]]:
        return [key for key, line in self.lines.items() if line]

    def exchange(self) -> None:
        """Until nobody has anything to say."""
        while True:
            for replica in self.replicas.values():
                self.flush(replica)
            if not self.busy_lines:
                return
            for line in self.busy_lines:
                while self.lines[line]:
                    self.deliver(line)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        for replica in self.replicas.values():
            replica.sync.tick(self.now)

    def settle(self, num_seconds: int = 8) -> None:
        """Time passes, and nothing is lost."""
        for _ in range(num_seconds):
            self.tick()
            self.exchange()

    def assert_all_see_all(self) -> None:
        for replica in self.replicas.values():
            expected = {
                RemoteKey(other.router_id, request_id): (request.worker, request.num_prefill_tokens)
                for other in self.replicas.values()
                if other is not replica
                for request_id, request in other.running.items()
            }
            seen = {key: (each.worker, each.num_prefill_tokens) for key, each in replica.host.remote.items()}
            assert seen == expected
