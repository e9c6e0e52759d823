"""One other router, as far as it has told what it runs: its requests, and how complete our picture of them is.

A transport keeps the order of what one publisher says, and may lose some of it. A lost event of Dynamo's router makes
itself felt until the request's expiry. Our own replicas number what they say and tell how far they are, so that a gap
is seen at the next heartbeat, and a snapshot closes it.

A snapshot may overtake events that were published before it, and be overtaken by later ones: everything that is known
of a request has a stamp, and what is older gives way.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from dynamo.router.replica_host import RemoteKey, ReplicaCounts, ReplicaHost, ReplicaLimits
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.replica_events import Alive, Position, RunningRequest, SnapshotSlice

MAX_NEWS = 16_384


class Stamp(NamedTuple):
    """Where something was said. Those of different publishers do not compare: neither is older."""

    publisher_id: int
    sequence: int

    def is_before(self, other: Stamp) -> bool:
        return self.publisher_id == other.publisher_id and self.sequence < other.sequence


class Stream(Struct):
    """What one publisher has said. From `complete_from` on, everything has come."""

    next_sequence: int = 0
    complete_from: int = 0

    def take(self, sequence: int) -> bool:
        """False: it was said before something that we have already."""
        if sequence < self.next_sequence:
            return False
        if sequence > self.next_sequence:
            self.complete_from = sequence
        self.next_sequence = sequence + 1
        return True


class _Known(Struct):
    worker: WorkerRank
    stamp: Stamp
    added_at: float
    waiting: RunningRequest | None  # for its rank to become known; None: it is counted


class _News(Struct):
    """What has happened to a request that a snapshot on its way may tell otherwise."""

    stamp: Stamp
    is_over: bool


class _Collection(Struct):
    """A snapshot that has come in part."""

    number: int
    position: Position
    next_index: int
    request_ids: set[str]


class Peer:
    """The state of one router in one scope."""

    def __init__(self, router_id: int, host: ReplicaHost, limits: ReplicaLimits, counts: ReplicaCounts) -> None:
        self.router_id = router_id
        self.is_replica = False  # one of ours
        self.heard_at = 0.0
        self._host = host
        self._limits = limits
        self._counts = counts
        self._requests: dict[str, _Known] = {}  # the one added longest ago comes first
        self._num_waiting = 0
        self._streams: dict[int, Stream] = {}
        # Of a replica:
        self._alive: Alive | None = None  # what it said last
        self._is_checked = True  # whether that was compared with what we have
        self._snapshot_at: Position | None = None  # what our picture is based on
        self._asked_at: float | None = None
        self._collection: _Collection | None = None
        self._news: dict[str, _News] = {}

    def __len__(self) -> int:
        return len(self._requests)

    # ---- requests

    def follow(self, publisher_id: int, sequence: int) -> bool:
        """An envelope has come. False: it is late, and its additions may be of requests that are over."""
        stream = self._stream(publisher_id)
        self._counts.gaps += 0 < stream.next_sequence < sequence
        return stream.take(sequence)

    def add(self, request: RunningRequest, stamp: Stamp, now: float) -> None:
        known = self._requests.get(request.request_id)
        if known is not None:
            if stamp.is_before(known.stamp):
                return
            self._drop(request.request_id)
        elif len(self._requests) >= self._limits.max_requests_per_router:
            self._counts.ignored += 1
            return
        is_counted = self._host.add_remote(self._key(request.request_id), request, now)
        self._num_waiting += not is_counted
        self._requests[request.request_id] = _Known(request.worker, stamp, now, None if is_counted else request)

    def complete_prefill(self, request_id: str, stamp: Stamp) -> None:
        self._note(request_id, stamp, is_over=False)
        known = self._requests.get(request_id)
        if known is not None and not stamp.is_before(known.stamp):
            known.stamp = stamp
            self._complete_prefill(request_id, known)

    def complete_prefill_at(self, worker: WorkerRank, request_id: str) -> None:
        """The worker itself says so."""
        known = self._requests.get(request_id)
        if known is not None and known.worker == worker:
            self._complete_prefill(request_id, known)

    def free(self, request_id: str, stamp: Stamp) -> None:
        self._note(request_id, stamp, is_over=True)
        known = self._requests.get(request_id)
        if known is not None and not stamp.is_before(known.stamp):
            self._drop(request_id)

    def forget(self) -> None:
        """Nothing of it runs any more."""
        for request_id in list(self._requests):
            self._drop(request_id)
        self._lose_track()

    def forget_publisher(self, publisher_id: int) -> bool:
        """What that publisher has said holds no longer. Whether it was the router's last."""
        if self._streams.pop(publisher_id, None) is None:
            return False
        for request_id in [key for key, known in self._requests.items() if known.stamp.publisher_id == publisher_id]:
            self._drop(request_id)
        self._lose_track()
        return not self._streams

    def expire(self, added_before: float) -> None:
        while self._requests:
            request_id, known = next(iter(self._requests.items()))
            if known.added_at >= added_before:
                break
            self._counts.expired += 1
            self._drop(request_id)

    def retry(self, now: float) -> None:
        """Count what was waiting for a rank that is known by now."""
        if not self._num_waiting:
            return
        for request_id, known in self._requests.items():
            if known.waiting is not None and self._host.add_remote(self._key(request_id), known.waiting, now):
                known.waiting = None
                self._num_waiting -= 1

    # ---- how complete the picture is

    @property
    def wants_snapshot(self) -> bool:
        """It has said something that we do not know."""
        if self._alive is None:
            return False
        base = self._snapshot_at
        return base is None or base.num_published < self._complete_from(base.publisher_id)

    def must_ask(self, now: float) -> bool:
        """Whether to ask for a snapshot now; the caller does."""
        if not self.wants_snapshot:
            return False
        if self._asked_at is not None and now - self._asked_at < self._limits.ask_again_s:
            return False
        self._asked_at = now
        self._collection = None
        self._counts.snapshots_asked += 1
        return True

    def follow_messages(self, publisher_id: int, sequence: int) -> bool:
        """A message other than an event has come. False: it is late."""
        stream = self._stream(publisher_id)
        if 0 < stream.next_sequence < sequence:
            self._counts.gaps += 1
            self._lose_track()
        return stream.take(sequence)

    def hear(self, alive: Alive) -> None:
        before, self._alive = self._alive, alive
        self.is_replica = True
        self._is_checked = False
        position = alive.position
        if before is None or not _is_same_run(before.position, position):
            self._lose_track()
        else:
            # A heartbeat may overtake events, but not by as much as the time between two.
            stream, missing = self._stream(position.publisher_id), before.position.num_published
            if stream.next_sequence < missing:
                self._counts.gaps += 1
                stream.next_sequence = stream.complete_from = missing
        self.check()

    def check(self) -> None:
        """Compare what it says of itself with what we have of it, if both are of the same moment."""
        if self._is_checked or self._alive is None:
            return
        position = self._alive.position
        stream = self._stream(position.publisher_id)
        if stream.next_sequence < position.num_published:
            return
        self._is_checked = True
        if stream.next_sequence == position.num_published and self._differs(self._alive.num_active):
            stream.complete_from = position.num_published

    def collect(self, part: SnapshotSlice, now: float) -> bool:
        """Take in a slice of a snapshot; False when it is of none that is wanted."""
        collection = self._collection_for(part)
        if collection is None:
            return False
        self._asked_at = now  # it is being answered
        collection.next_index += 1
        stamp = Stamp(part.position.publisher_id, part.position.num_published - 1)
        for request in part.requests:
            collection.request_ids.add(request.request_id)
            self._add_from_snapshot(request, stamp, now)
        if part.is_last:
            self._conclude(collection, stamp)
        return True

    # ---- inside

    def _key(self, request_id: str) -> RemoteKey:
        return RemoteKey(self.router_id, request_id)

    def _stream(self, publisher_id: int) -> Stream:
        stream = self._streams.get(publisher_id)
        if stream is None:
            if len(self._streams) >= self._limits.max_streams_per_peer:
                del self._streams[next(iter(self._streams))]
            stream = self._streams[publisher_id] = Stream()
        return stream

    def _complete_from(self, publisher_id: int) -> int:
        stream = self._streams.get(publisher_id)
        return 0 if stream is None else stream.complete_from

    def _complete_prefill(self, request_id: str, known: _Known) -> None:
        if known.waiting is None:
            self._host.complete_remote_prefill(self._key(request_id))
        else:
            known.waiting = replace(known.waiting, num_prefill_tokens=0)

    def _drop(self, request_id: str) -> None:
        known = self._requests.pop(request_id)
        if known.waiting is None:
            self._host.free_remote(self._key(request_id))
        else:
            self._num_waiting -= 1

    def _lose_track(self) -> None:
        self._snapshot_at = None
        self._collection = None

    def _differs(self, num_active: int) -> bool:
        return num_active != len(self._requests) < self._limits.max_requests_per_router

    def _note(self, request_id: str, stamp: Stamp, is_over: bool) -> None:
        if not self.wants_snapshot:
            return
        if len(self._news) >= MAX_NEWS:  # `check` finds out what comes of it
            self._news.clear()
        self._news[request_id] = _News(stamp, is_over)

    def _collection_for(self, part: SnapshotSlice) -> _Collection | None:
        """What the slice belongs to; None if nothing. A snapshot that was taken before a gap would not close it."""
        if part.index == 0:
            self._collection = None
            complete_from = self._complete_from(part.position.publisher_id)
            if self.wants_snapshot and part.position.num_published >= complete_from:
                self._collection = _Collection(part.number, part.position, 0, set())
        collection = self._collection
        if collection is None or (collection.number, collection.next_index) != (part.number, part.index):
            return None
        return collection

    def _add_from_snapshot(self, request: RunningRequest, stamp: Stamp, now: float) -> None:
        news = self._news.get(request.request_id)
        if news is not None and stamp.is_before(news.stamp):
            if news.is_over:
                return
            request = replace(request, num_prefill_tokens=0)
        self.add(request, stamp, now)

    def _conclude(self, collection: _Collection, stamp: Stamp) -> None:
        for request_id, known in list(self._requests.items()):
            if request_id not in collection.request_ids and not stamp.is_before(known.stamp):
                self._drop(request_id)
        stream = self._stream(stamp.publisher_id)
        stream.next_sequence = max(stream.next_sequence, collection.position.num_published)
        self._snapshot_at = collection.position
        self._collection = None
        self._asked_at = None
        self._news.clear()
        self._counts.snapshots_received += 1


def _is_same_run(one: Position, other: Position) -> bool:
    return (one.publisher_id, one.epoch) == (other.publisher_id, other.epoch)
