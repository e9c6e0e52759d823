"""What a router tells the others in the scope of one worker endpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from dynamo.router.replica_host import ReplicaCounts, ReplicaLimits
from dynamo.shared.kv_events import WorkerRank
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
    Alive,
    Leaving,
    Position,
    Predicted,
    PrefillLoad,
    ReplicaMessage,
    RunningRequest,
    SnapshotSlice,
    VersionedThresholds,
    encode,
    join_events,
    join_update,
    pack_hashes,
)

HASH_SIZE = 8
REQUEST_BYTES = 128  # of a request in a snapshot besides its hashes, generously
BINDINGS_PER_SLICE = 1024


class Outbox:
    """Encoded messages that wait to be published. When there is no room the oldest are dropped."""

    def __init__(self, limits: ReplicaLimits) -> None:
        self._limits = limits
        self._items: deque[bytes] = deque()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: bytes) -> int:
        """How many were dropped."""
        self._items.append(item)
        self._num_bytes += len(item)
        num_dropped = 0
        while len(self._items) > self._limits.max_outgoing or self._num_bytes > self._limits.max_outgoing_bytes:
            self._num_bytes -= len(self._items.popleft())
            num_dropped += 1
        return num_dropped

    def take(self) -> list[bytes]:
        items = list(self._items)
        self._items.clear()
        self._num_bytes = 0
        return items


class Announcer:
    """`publisher_id` is that of our events; without `has_batches` each of them is a payload of its own.

    Knows our running requests, so that it can tell them again. What `take` returns is to be published in that order.
    """

    def __init__(
        self, router_id: int, publisher_id: int, limits: ReplicaLimits, counts: ReplicaCounts, *, has_batches: bool
    ) -> None:
        self._router_id = router_id
        self._publisher_id = publisher_id
        self._limits = limits
        self._counts = counts
        self._max_events = limits.max_events_per_payload if has_batches else 1
        self._wrap_events = join_events if has_batches else b"".join
        self._max_hash_bytes = limits.max_payload_bytes // 9 * HASH_SIZE  # a hash takes nine bytes in an event
        self._running: dict[str, RunningRequest] = {}
        self._events = Outbox(limits)
        self._bindings = Outbox(limits)
        self._messages = Outbox(limits)
        self._num_published = 0  # envelopes with events
        self._epoch = 0
        self._is_alive_due = False
        self._has_left = False
        self._num_snapshots = 0
        self._slices: deque[SnapshotSlice] = deque()

    def __len__(self) -> int:
        return len(self._running)

    # ---- what happens

    def added(self, request: RunningRequest, *, tracks_prefill: bool = True) -> None:
        """A request of ours was placed. Beyond the limit requests are not told at all."""
        if len(self._running) >= self._limits.max_requests_per_router and request.request_id not in self._running:
            self._counts.untold += 1
            return
        request = self._shortened(request)
        self._running[request.request_id] = request
        self._tell(request, Addition(_addition(request, tracks_prefill)))

    def prefill_completed(self, request_id: str) -> None:
        request = self._running.get(request_id)
        if request is not None and request.num_prefill_tokens:
            self._running[request_id] = replace(request, num_prefill_tokens=0)
            self._tell(request, PREFILL_COMPLETED)

    def freed(self, request_id: str) -> None:
        if (request := self._running.pop(request_id, None)) is not None:
            self._tell(request, FREE)

    def bound(self, binding: AffinityBinding) -> None:
        self._push(self._bindings, encode(binding))

    def predicted(self, worker: WorkerRank, block_hashes: bytes) -> None:
        self.say(Predicted(worker, block_hashes[: self._max_hash_bytes]))

    def say(self, message: ReplicaMessage) -> None:
        if not self._has_left:
            self._push(self._messages, encode(message))

    def say_alive(self) -> None:
        """With what is published next."""
        self._is_alive_due = not self._has_left

    def leave(self) -> None:
        """Said last: whoever heard of us again would take us back in."""
        self.say(Leaving())
        self._has_left = True
        self._is_alive_due = False
        self._slices.clear()

    # ---- everything again

    @property
    def is_in_snapshot(self) -> bool:
        return bool(self._slices)

    def start_snapshot(self, thresholds: list[VersionedThresholds], bindings: list[AffinityBinding]) -> None:
        """Tell everything there is now, some slices per turn."""
        if self._has_left:
            return
        self._num_snapshots += 1
        self._counts.snapshots_sent += 1
        parts = [SnapshotSlice(self._num_snapshots, 0, False, self._position(), thresholds=thresholds)]
        parts += [replace(parts[0], thresholds=[], requests=some) for some in self._portions(self._running.values())]
        parts += [replace(parts[0], thresholds=[], bindings=some) for some in _in_pieces(bindings, BINDINGS_PER_SLICE)]
        self._slices.extend(replace(part, index=i, is_last=i + 1 == len(parts)) for i, part in enumerate(parts))

    # ---- payloads

    @property
    def has_outgoing(self) -> bool:
        return bool(self._events or self._bindings or self._messages or self._slices or self._is_alive_due)

    def take(self) -> list[tuple[str, bytes]]:
        """Topics and payloads, events first: what follows tells how many there were."""
        outgoing = [(ACTIVE_SEQUENCES_TOPIC, self._wrap_events(batch)) for batch in self._batches(self._events)]
        self._num_published += len(outgoing)
        outgoing += [(AFFINITY_TOPIC, binding) for binding in self._bindings.take()]
        outgoing += [(REPLICA_TOPIC, join_update(self._router_id, batch)) for batch in self._batches(self._messages)]
        outgoing += [(REPLICA_TOPIC, join_update(self._router_id, [encode(each)])) for each in self._take_state()]
        return outgoing

    # ---- inside

    def _tell(self, request: RunningRequest, data: Addition | str) -> None:
        event = ActiveSequenceEvent(request.request_id, request.worker, data, self._router_id, request.lora_name)
        self._push(self._events, encode(event))

    def _push(self, outbox: Outbox, item: bytes) -> None:
        if num_dropped := outbox.push(item):
            self._counts.dropped_outgoing += num_dropped
            self._epoch += 1

    def _shortened(self, request: RunningRequest) -> RunningRequest:
        """The beginning of a prompt is better than nothing of it."""
        if len(request.block_hashes) <= self._max_hash_bytes:
            return request
        self._counts.truncated += 1
        return replace(request, block_hashes=request.block_hashes[: self._max_hash_bytes])

    def _batches(self, outbox: Outbox) -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        size = 0
        for item in outbox.take():
            if batch and (len(batch) == self._max_events or size + len(item) > self._limits.max_payload_bytes):
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += len(item)
        if batch:
            yield batch

    def _portions(self, requests: Iterable[RunningRequest]) -> Iterator[list[RunningRequest]]:
        portion: list[RunningRequest] = []
        size = 0
        for request in requests:
            size += REQUEST_BYTES + len(request.block_hashes)
            if portion and size > self._limits.max_payload_bytes:
                yield portion
                portion, size = [], REQUEST_BYTES + len(request.block_hashes)
            portion.append(request)
        if portion:
            yield portion

    def _take_state(self) -> Iterator[ReplicaMessage]:
        if self._is_alive_due:
            self._is_alive_due = False
            yield Alive(self._position(), len(self._running))
        for _ in range(min(len(self._slices), self._limits.slices_per_turn)):
            yield self._slices.popleft()

    def _position(self) -> Position:
        return Position(self._publisher_id, self._num_published, self._epoch)


def _addition(request: RunningRequest, tracks_prefill: bool) -> AddRequest:
    num_tokens = request.num_prefill_tokens
    return AddRequest(
        pack_hashes(request.block_hashes),
        tracks_prefill,
        request.expected_output_tokens,
        PrefillLoad(num_tokens) if num_tokens else None,
    )


def _in_pieces(bindings: list[AffinityBinding], size: int) -> Iterator[list[AffinityBinding]]:
    return (bindings[i : i + size] for i in range(0, len(bindings), size))
