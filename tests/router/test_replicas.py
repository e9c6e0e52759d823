"""What routers know of each other's load, one thing at a time."""

from __future__ import annotations

import msgspec
import pytest

from dynamo.router.replica_host import RemoteKey, ReplicaLimits
from dynamo.router.replicas import ReplicaSync
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds
from dynamo.shared.replica_events import (
    ACTIVE_SEQUENCES_TOPIC,
    AFFINITY_TOPIC,
    FREE,
    PREFILL_COMPLETED,
    REPLICA_TOPIC,
    ActiveSequenceEvent,
    Addition,
    AddRequest,
    AffinityBinding,
    AskSnapshot,
    PrefillLoad,
    RunningRequest,
    SnapshotSlice,
    decode_active_sequences,
    decode_binding,
    decode_update,
    encode,
    join_events,
    join_update,
    pack_hashes,
)
from tests.router.replica_network import SCOPE, Network, Replica

DYNAMO = 7777  # router id of a frontend that is not ours
WORKER = WorkerRank(1)
HASHES = bytes(range(16))


class DynamoRouter:
    """Says what 1.6.1's router says, and nothing else."""

    def __init__(self, network: Network, router_id: int = DYNAMO, publisher_id: int = 5) -> None:
        self._network = network
        self._router_id = router_id
        self._publisher_id = publisher_id
        self.sequence = 0

    def add(self, request_id: str, num_prefill_tokens: int = 40, worker: WorkerRank = WORKER) -> None:
        self.say(request_id, _addition(num_prefill_tokens), worker)

    def complete_prefill(self, request_id: str, worker: WorkerRank = WORKER) -> None:
        self.say(request_id, PREFILL_COMPLETED, worker)

    def free(self, request_id: str) -> None:
        self.say(request_id, FREE)

    def say(self, request_id: str, data: Addition | str, worker: WorkerRank = WORKER) -> None:
        event = encode(ActiveSequenceEvent(request_id, worker, data, self._router_id))
        payload = join_events([event])
        for replica in self._network.replicas.values():
            envelope = Envelope(self._publisher_id, self.sequence, 0, ACTIVE_SEQUENCES_TOPIC, payload)
            replica.sync.receive(SCOPE, envelope, self._network.now)
        self.sequence += 1

    def vanish(self) -> None:
        for replica in self._network.replicas.values():
            replica.sync.publisher_left(SCOPE, self._publisher_id)


def _addition(num_prefill_tokens: int) -> Addition:
    return Addition(AddRequest(pack_hashes(HASHES), True, 100, PrefillLoad(num_prefill_tokens)))


@pytest.fixture
def network() -> Network:
    return Network(1)


@pytest.fixture
def ours(network: Network) -> Replica:
    [replica] = network.replicas.values()
    return replica


@pytest.fixture
def dynamo(network: Network) -> DynamoRouter:
    return DynamoRouter(network)


# ---- routers of Dynamo


def test_a_request_of_dynamos_router_is_load_until_it_is_freed(ours: Replica, dynamo: DynamoRouter) -> None:
    dynamo.add("r")
    key = RemoteKey(DYNAMO, "r")
    assert ours.host.remote[key] == RunningRequest("r", WORKER, HASHES, 40, 100)
    dynamo.complete_prefill("r")
    assert ours.host.remote[key].num_prefill_tokens == 0
    dynamo.free("r")
    assert not ours.host.remote
    assert ours.sync.num_peers == 1


def test_a_request_that_is_added_again_has_moved(ours: Replica, dynamo: DynamoRouter) -> None:
    dynamo.add("r")
    dynamo.add("r", worker=WorkerRank(2))
    assert [request.worker for request in ours.host.remote.values()] == [WorkerRank(2)]


def test_what_we_say_ourselves_is_not_counted_again(network: Network, ours: Replica) -> None:
    ours.add("r")
    for envelope in ours.take():  # over NATS one hears oneself
        ours.sync.receive(SCOPE, envelope, network.now)
    assert not ours.host.remote
    assert not ours.sync.num_peers


def test_workers_report_the_prefill_of_whoevers_request(network: Network, ours: Replica, dynamo: DynamoRouter) -> None:
    dynamo.add("r")
    worker = DynamoRouter(network, router_id=WORKER.worker_id, publisher_id=6)
    worker.complete_prefill("another")
    worker.complete_prefill("r", WorkerRank(1, dp_rank=1))  # of another rank
    assert ours.host.remote[RemoteKey(DYNAMO, "r")].num_prefill_tokens == 40
    worker.complete_prefill("r")
    assert ours.host.remote[RemoteKey(DYNAMO, "r")].num_prefill_tokens == 0
    assert ours.sync.num_peers == 1  # it is no router


def test_the_end_of_a_request_that_overtakes_its_beginning(ours: Replica, dynamo: DynamoRouter) -> None:
    dynamo.sequence = 1
    dynamo.free("r")
    dynamo.sequence = 0
    dynamo.add("r")
    assert not ours.host.remote
    assert ours.sync.counts.late == 1


def test_the_late_end_of_a_request_counts(ours: Replica, dynamo: DynamoRouter) -> None:
    dynamo.add("r")
    dynamo.sequence = 2
    dynamo.add("s")
    dynamo.sequence = 1
    dynamo.free("r")
    assert [key.request_id for key in ours.host.remote] == ["s"]


def test_requests_of_a_router_without_a_heartbeat_expire(network: Network, ours: Replica, dynamo: DynamoRouter) -> None:
    dynamo.add("old")
    network.tick(200)
    dynamo.add("young")
    network.tick(101)
    assert [key.request_id for key in ours.host.remote] == ["young"]
    assert ours.sync.counts.expired == 1
    dynamo.free("young")
    network.tick(301)
    assert not ours.sync.num_peers


def test_a_router_that_leaves_discovery_takes_its_load_along(
    network: Network, ours: Replica, dynamo: DynamoRouter
) -> None:
    dynamo.add("r")
    DynamoRouter(network, publisher_id=8).add("s")  # the same router, for another model of the endpoint
    dynamo.vanish()
    assert [key.request_id for key in ours.host.remote] == ["s"]


def test_a_rank_that_becomes_known_later(network: Network, ours: Replica, dynamo: DynamoRouter) -> None:
    ours.host.ranks.clear()
    dynamo.add("r")
    dynamo.add("gone")
    dynamo.complete_prefill("r")
    dynamo.free("gone")
    network.tick()
    assert not ours.host.remote
    ours.host.ranks.add(WORKER)
    network.tick()
    assert ours.host.remote == {RemoteKey(DYNAMO, "r"): RunningRequest("r", WORKER, HASHES, 0, 100)}


def test_payloads_that_cannot_be_read_are_counted(network: Network, ours: Replica) -> None:
    for topic in (ACTIVE_SEQUENCES_TOPIC, AFFINITY_TOPIC, REPLICA_TOPIC):
        for payload in (b"", b"\xc1", msgspec.msgpack.encode({"events": [1]}), msgspec.msgpack.encode([1, [[99]]])):
            ours.sync.receive(SCOPE, Envelope(5, 0, 0, topic, payload), network.now)
    assert ours.sync.counts.malformed == 12
    assert not ours.host.remote


def test_what_was_said_in_other_scopes(network: Network, ours: Replica) -> None:
    elsewhere = EndpointScope("demo", "other", "generate")
    ours.sync.added(elsewhere, RunningRequest("r", WORKER, b"", 1))
    ours.sync.freed(elsewhere, "r")
    ours.sync.receive(elsewhere, Envelope(5, 0, 0, ACTIVE_SEQUENCES_TOPIC, b""), network.now)
    assert not ours.sync.has_outgoing(SCOPE)


# ---- what we say to Dynamo's


def test_we_say_what_dynamos_routers_expect() -> None:
    ours = Replica(3)
    ours.add("r", 40, block_hashes=HASHES)
    ours.complete_prefill("r")
    ours.complete_prefill("r")
    ours.free("r")
    ours.sync.freed(SCOPE, "r")
    ours.sync.bound(SCOPE, AffinityBinding("s", 1, 0, 9, 3))
    (topic, payload), (affinity_topic, binding) = ours.sync.take_outgoing(SCOPE)
    assert (topic, affinity_topic) == (ACTIVE_SEQUENCES_TOPIC, AFFINITY_TOPIC)
    added, completed, freed = decode_active_sequences(payload)
    assert added.router_id == 3
    assert added.data == Addition(AddRequest(pack_hashes(HASHES), True, None, PrefillLoad(40)))
    assert (completed.data, freed.data) == (PREFILL_COMPLETED, FREE)
    assert decode_binding(binding) == AffinityBinding("s", 1, 0, 9, 3)
    assert not ours.sync.has_outgoing(SCOPE)


def test_nothing_left_to_prefill_is_no_hint_and_no_report() -> None:
    ours = Replica(3)
    ours.add("r", 0)
    ours.complete_prefill("r")
    [(_topic, payload)] = ours.sync.take_outgoing(SCOPE)
    [added] = decode_active_sequences(payload)
    assert added.data == Addition(AddRequest(pack_hashes(b""), True, None, None))


def test_payloads_are_bounded() -> None:
    ours = Replica(3, ReplicaLimits(max_events_per_payload=4, max_payload_bytes=1000))
    for number in range(10):
        ours.add(f"r{number}")
    sizes = [len(decode_active_sequences(payload)) for _topic, payload in ours.sync.take_outgoing(SCOPE)]
    assert sum(sizes) == 10
    assert max(sizes) == 4
    ours.add("long", block_hashes=bytes(8) * 500)
    [(_topic, payload)] = ours.sync.take_outgoing(SCOPE)
    assert len(payload) < 1300
    assert ours.sync.counts.truncated == 1


def test_over_nats_each_event_is_a_payload() -> None:
    network = Network(1)
    ours = ReplicaSync(3, network.replicas[101].host, has_batches=False)
    ours.open(SCOPE, 30)
    for number in range(3):
        ours.added(SCOPE, RunningRequest(f"r{number}", WORKER, HASHES, 1))
    outgoing = ours.take_outgoing(SCOPE)
    assert [msgspec.msgpack.decode(payload)["request_id"] for _topic, payload in outgoing] == ["r0", "r1", "r2"]


# ---- our own replicas


def test_three_replicas_agree() -> None:
    network = Network(3)
    for number, replica in enumerate(network.replicas.values()):
        replica.add(f"r{number}", worker=1 + number % 2)
        replica.add(f"s{number}")
        replica.complete_prefill(f"s{number}")
    network.settle(2)
    network.assert_all_see_all()
    assert {replica.sync.num_peers for replica in network.replicas.values()} == {2}
    assert {replica.sync.num_remote_requests for replica in network.replicas.values()} == {4}


def test_one_that_joins_gets_everything_in_slices() -> None:
    network = Network(1, ReplicaLimits(max_payload_bytes=1000, slices_per_turn=2))
    [first] = network.replicas.values()
    for number in range(100):
        first.add(f"r{number}", block_hashes=HASHES)
    first.sync.thresholds_set(Thresholds("m", active_decode_blocks_threshold=0.5))
    first.host.bound = {f"s{i}": AffinityBinding(f"s{i}", 1, 0, i, first.router_id) for i in range(3000)}
    network.exchange()
    second = network.join()
    network.settle(2)
    network.assert_all_see_all()
    assert second.host.thresholds == {"m": Thresholds("m", active_decode_blocks_threshold=0.5)}
    assert second.host.bound == first.host.bound
    assert second.sync.counts.snapshots_received == 1
    assert first.sync.counts.snapshots_sent == 1


def test_all_who_join_at_once_share_a_snapshot() -> None:
    network = Network(1)
    [first] = network.replicas.values()
    first.add("r")
    for _ in range(5):
        network.join()
    network.settle(3)
    network.assert_all_see_all()
    assert first.sync.counts.snapshots_sent <= 2


def test_a_replica_that_falls_silent_is_forgotten() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    other.add("r")
    network.settle(2)
    network.kill(other)
    network.settle(5)
    assert one.sees(other)
    network.settle(1)
    assert not one.host.remote
    assert one.sync.counts.silent == 1
    assert not one.sync.num_peers


def test_a_replica_that_was_only_slow_is_taken_back() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    other.add("r")
    network.settle(2)
    network.now += 100
    one.sync.tick(network.now)
    assert not one.host.remote
    network.settle(2)
    network.assert_all_see_all()


def test_one_that_leaves_is_forgotten_at_once() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    other.add("r")
    network.settle(2)
    other.sync.leaving()
    network.exchange()
    assert not one.host.remote
    assert not one.sync.num_peers


def test_leaving_is_the_last_word_however_often_it_is_said() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    other.add("r")
    network.settle(2)
    other.sync.tick(network.now + 1)  # a heartbeat is due
    newcomer = network.join()
    newcomer.sync.tick(network.now)
    other.sync.leaving()
    other.sync.leaving()
    network.exchange()
    other.sync.receive(SCOPE, _asks_for_everything(newcomer, other), network.now)
    other.sync.tick(network.now + 2)
    assert not other.sync.has_outgoing(SCOPE)
    assert not one.host.remote
    assert one.sync.num_peers == 1
    assert newcomer.sync.num_peers == 1


def _asks_for_everything(asker: Replica, asked: Replica) -> Envelope:
    return asker.envelope(REPLICA_TOPIC, join_update(asker.router_id, [encode(AskSnapshot(asked.router_id))]))


def test_a_scope_that_is_closed_takes_the_load_of_the_others_along() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    other.add("r")
    network.settle(2)
    one.sync.close(SCOPE)
    assert not one.host.remote


@pytest.mark.parametrize("num_later", [0, 1])
def test_lost_events_are_made_up_for(num_later: int) -> None:
    """Whether something came after them or not."""
    network = Network(2)
    one, other = network.replicas.values()
    other.add("over")
    network.settle(2)
    other.free("over")
    other.add("lost")
    network.flush(other)
    network.lose((other.router_id, one.router_id, ACTIVE_SEQUENCES_TOPIC))
    for number in range(num_later):
        other.add(f"later{number}")
    network.settle(3)
    network.assert_all_see_all()
    assert one.sync.counts.gaps == 1
    assert one.sync.counts.snapshots_received == 2


def test_lost_slices_are_asked_for_again() -> None:
    network = Network(2, ReplicaLimits(max_payload_bytes=200, slices_per_turn=1))
    one, other = network.replicas.values()
    for number in range(10):
        other.add(f"r{number}")
    line = (other.router_id, one.router_id, REPLICA_TOPIC)
    network.tick()
    for replica in (one, other, one, other):
        network.flush(replica)
        if network.lines.get(line) and any(_is_slice(envelope) for envelope in network.lines[line]):
            network.lose(line)
        for busy in network.busy_lines:
            while network.lines[busy]:
                network.deliver(busy)
    network.settle(5)
    network.assert_all_see_all()


def _is_slice(envelope: Envelope) -> bool:
    return any(isinstance(message, SnapshotSlice) for message in decode_update(envelope.payload).messages)


def test_events_that_were_dropped_before_they_left_are_made_up_for() -> None:
    network = Network(2, ReplicaLimits(max_outgoing=10))
    one, other = network.replicas.values()
    network.settle(2)
    for number in range(30):
        other.add(f"r{number}")
    assert other.sync.counts.dropped_outgoing == 20
    network.exchange()
    assert len(one.host.remote) == 10
    network.settle(3)
    network.assert_all_see_all()


def test_the_way_out_is_bounded_in_bytes() -> None:
    ours = Replica(3, ReplicaLimits(max_outgoing_bytes=10_000))
    for number in range(100):
        ours.add(f"r{number}", block_hashes=bytes(800))
    assert sum(len(payload) for _topic, payload in ours.sync.take_outgoing(SCOPE)) <= 10_100
    assert ours.sync.counts.dropped_outgoing


# ---- thresholds, bindings, predictions


def test_thresholds_set_anywhere_hold_everywhere() -> None:
    network = Network(3)
    first, second, third = network.replicas.values()
    network.settle(2)
    first.sync.thresholds_set(Thresholds("m", active_prefill_tokens_threshold=1))
    network.exchange()
    assert second.host.thresholds == third.host.thresholds == {"m": Thresholds("m", active_prefill_tokens_threshold=1)}
    second.sync.thresholds_set(Thresholds("m"))  # switched off
    network.exchange()
    assert first.host.thresholds == third.host.thresholds == {"m": Thresholds("m")}


def test_thresholds_out_of_range_are_counted_and_not_passed_on() -> None:
    network = Network(2)
    first, second = network.replicas.values()
    network.settle(2)
    first.sync.thresholds_set(Thresholds("m", active_decode_blocks_threshold=50))
    first.sync.thresholds_set(Thresholds("n", active_decode_blocks_threshold=0.5))
    network.exchange()
    assert second.host.thresholds == {"n": Thresholds("n", active_decode_blocks_threshold=0.5)}
    assert second.sync.counts.malformed == 1


def test_thresholds_set_at_two_at_once_end_alike() -> None:
    network = Network(3)
    first, second, third = network.replicas.values()
    network.settle(2)
    first.sync.thresholds_set(Thresholds("m", active_prefill_tokens_threshold=1))
    second.sync.thresholds_set(Thresholds("m", active_prefill_tokens_threshold=2))
    network.exchange()
    winner = {"m": Thresholds("m", active_prefill_tokens_threshold=2)}
    assert first.host.thresholds == third.host.thresholds == winner
    assert second.host.thresholds == {}  # it holds there since it was set


def test_lost_thresholds_are_made_up_for() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    network.settle(2)
    other.sync.thresholds_set(Thresholds("m"))
    network.flush(other)
    network.lose((other.router_id, one.router_id, REPLICA_TOPIC))
    network.settle(3)
    assert one.host.thresholds == {"m": Thresholds("m")}


def test_thresholds_are_kept_for_a_bounded_number_of_models() -> None:
    network = Network(1, ReplicaLimits(max_models=2))
    [first] = network.replicas.values()
    for model in "abc":
        first.sync.thresholds_set(Thresholds(model))
    late = network.join()
    network.exchange()
    late.host.thresholds.clear()
    late = network.join()
    network.settle(2)
    assert set(late.host.thresholds) == {"b", "c"}


def test_bindings_reach_the_others() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    binding = AffinityBinding("s", 1, 0, 9, other.router_id)
    other.sync.bound(SCOPE, binding)
    network.exchange()
    assert one.host.bound == {"s": binding}
    one.sync.bound(SCOPE, binding)  # used again there
    network.exchange()
    assert other.host.bound == {}


def test_predictions_reach_our_replicas() -> None:
    network = Network(2)
    one, other = network.replicas.values()
    other.sync.predicted(SCOPE, WORKER, HASHES)
    network.exchange()
    assert one.host.predicted == [(WORKER, HASHES)]


# ---- bounds


def test_requests_of_one_router_are_bounded() -> None:
    limits = ReplicaLimits(max_requests_per_router=3)
    network = Network(1, limits)
    [ours] = network.replicas.values()
    dynamo = DynamoRouter(network)
    for number in range(5):
        dynamo.add(f"r{number}")
        ours.add(f"r{number}")
    assert len(ours.host.remote) == 3
    assert ours.sync.counts.ignored == 2
    assert ours.sync.counts.untold == 2
    dynamo.free("r0")
    dynamo.add("r5")
    assert len(ours.host.remote) == 3


def test_peers_are_bounded() -> None:
    network = Network(1, ReplicaLimits(max_peers=2))
    [ours] = network.replicas.values()
    for number in range(3):
        DynamoRouter(network, DYNAMO + number, 5 + number).add("r")
    assert ours.sync.num_peers == 2
    assert ours.sync.counts.peers_turned_away == 1


def test_publishers_of_a_router_are_bounded() -> None:
    limits = ReplicaLimits(max_streams_per_peer=2)
    network = Network(1, limits)
    [ours] = network.replicas.values()
    for number in range(5):
        DynamoRouter(network, publisher_id=5 + number).add(f"r{number}")
    assert len(ours.host.remote) == 5
