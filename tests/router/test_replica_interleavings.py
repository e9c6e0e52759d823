"""Whatever is lost, overtaken or restarted: some heartbeats later every replica knows exactly what the others run."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from dynamo.router.replica_host import ReplicaLimits
from tests.router.replica_network import Network, Replica

MAX_REPLICAS = 4
SMALL_SLICES = ReplicaLimits(max_payload_bytes=400, slices_per_turn=1, max_events_per_payload=2)
indices = st.integers(0, 1_000_000)


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.network = Network(2, SMALL_SLICES)
        self.num_requests = 0

    @rule(at=indices, worker=st.sampled_from([1, 2]))
    def place(self, at: int, worker: int) -> None:
        self.num_requests += 1
        self._replica(at).add(f"r{self.num_requests}", 64, worker, bytes(8 * (self.num_requests % 20)))

    @rule(at=indices, which=indices)
    def complete_prefill(self, at: int, which: int) -> None:
        replica = self._replica(at)
        if replica.running:
            replica.complete_prefill(self._pick(replica, which))

    @rule(at=indices, which=indices)
    def free(self, at: int, which: int) -> None:
        replica = self._replica(at)
        if replica.running:
            replica.free(self._pick(replica, which))

    @rule(at=indices, which=indices, worker=st.sampled_from([1, 2]))
    def migrate(self, at: int, which: int, worker: int) -> None:
        replica = self._replica(at)
        if replica.running:
            request_id = self._pick(replica, which)
            replica.free(request_id)
            replica.add(request_id, 32, worker)

    @rule(at=indices)
    def flush(self, at: int) -> None:
        self.network.flush(self._replica(at))

    @precondition(lambda self: self.network.busy_lines)
    @rule(which=indices, num=st.integers(1, 5))
    def deliver(self, which: int, num: int) -> None:
        line = self._line(which)
        for _ in range(min(num, len(self.network.lines[line]))):
            self.network.deliver(line)

    @precondition(lambda self: self.network.busy_lines)
    @rule(which=indices)
    def lose(self, which: int) -> None:
        self.network.lose(self._line(which))

    @rule(at=indices, seconds=st.sampled_from([0.5, 1.0, 2.0, 6.0]))
    def tick_one(self, at: int, seconds: float) -> None:
        self.network.now += seconds
        self._replica(at).sync.tick(self.network.now)

    @precondition(lambda self: len(self.network.replicas) < MAX_REPLICAS)
    @rule()
    def join(self) -> None:
        self.network.join()

    @precondition(lambda self: len(self.network.replicas) > 2)
    @rule(at=indices)
    def kill(self, at: int) -> None:
        self.network.kill(self._replica(at))

    @rule()
    def tell_deaths(self) -> None:
        self.network.tell_deaths()

    @rule()
    def settle(self) -> None:
        self.network.tell_deaths()
        self.network.settle(10)
        self.network.assert_all_see_all()

    def teardown(self) -> None:
        for replica in self.network.replicas.values():
            for request_id in list(replica.running):
                replica.free(request_id)
        self.network.tell_deaths()
        self.network.settle(10)
        for replica in self.network.replicas.values():
            assert not replica.host.remote
            assert not replica.sync.num_remote_requests

    def _replica(self, at: int) -> Replica:
        replicas = list(self.network.replicas.values())
        return replicas[at % len(replicas)]

    def _line(self, which: int) -> tuple[int, int, str]:
        lines = self.network.busy_lines
        return lines[which % len(lines)]

    def _pick(self, replica: Replica, which: int) -> str:
        return list(replica.running)[which % len(replica.running)]


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
