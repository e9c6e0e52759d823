"""Who asks for placements, and what each of them holds."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dynamo.shared.messages import Hello

log = logging.getLogger("dynamo.router")


class Acceptor:
    """One life of one acceptor process. `active` maps its request ids to instances."""

    __slots__ = ("active", "incarnation", "last_seen", "name", "peer")

    def __init__(self, name: str, incarnation: int, peer: bytes, now: float) -> None:
        self.name = name
        self.incarnation = incarnation
        self.peer = peer
        self.last_seen = now
        self.active: dict[int, int] = {}


class Acceptors:
    """The acceptors that said hello and were not lost since. `num_active` sums up what they hold, per instance;
    `on_freed` is told of each request (peer, request id) that is over, however it ended, and `on_left` of each peer
    that is nobody's any more."""

    def __init__(
        self,
        max_acceptors: int,
        max_active: int,
        on_freed: Callable[[bytes, int], None],
        on_left: Callable[[bytes], None],
    ) -> None:
        self.by_peer: dict[bytes, Acceptor] = {}
        self.num_active: dict[int, int] = {}
        self._num_ended: dict[int, int] = {}
        self._by_name: dict[str, Acceptor] = {}
        self._max_acceptors = max_acceptors
        self._max_active = max_active  # per acceptor
        self._on_freed = on_freed
        self._on_left = on_left

    def __len__(self) -> int:
        return len(self.by_peer)

    def greet(self, peer: bytes, hello: Hello, now: float) -> Acceptor | None:
        """Take an acceptor in; None when there are too many."""
        acceptor = self._by_name.get(hello.acceptor)
        if acceptor is None or acceptor.incarnation != hello.incarnation or acceptor.peer != peer:
            self._leave_place(peer, hello)
            if len(self.by_peer) >= self._max_acceptors:
                return None
            acceptor = Acceptor(hello.acceptor, hello.incarnation, peer, now)
            self.by_peer[peer] = self._by_name[hello.acceptor] = acceptor
        return acceptor

    def resume(self, acceptor: Acceptor, request_id: int, instance_id: int) -> bool:
        """Take in a request that runs already; whether that is news, and there is room for it. What is held beyond
        those announced is an answer still on its way: it stays."""
        if acceptor.active.get(request_id) == instance_id or not self.has_room(acceptor):
            return False
        self.charge(acceptor, request_id, instance_id)
        return True

    def _leave_place(self, peer: bytes, hello: Hello) -> None:
        for predecessor in (self._by_name.get(hello.acceptor), self.by_peer.get(peer)):
            if predecessor is not None and predecessor.peer in self.by_peer:
                self.leave(predecessor)

    def has_room(self, acceptor: Acceptor) -> bool:
        return len(acceptor.active) < self._max_active

    def charge(self, acceptor: Acceptor, request_id: int, instance_id: int) -> None:
        """A request id that is still held moves to this instance."""
        if request_id in acceptor.active:
            self.free(acceptor, request_id)
        acceptor.active[request_id] = instance_id
        self.num_active[instance_id] = self.num_active.get(instance_id, 0) + 1

    def free(self, acceptor: Acceptor, request_id: int) -> None:
        """Unknown ids are ignored: a refused request is freed too."""
        instance_id = acceptor.active.pop(request_id, None)
        if instance_id is None:
            return
        left = self.num_active[instance_id] - 1
        if left:
            self.num_active[instance_id] = left
        else:
            del self.num_active[instance_id]
        self._num_ended[instance_id] = self._num_ended.get(instance_id, 0) + 1
        self._on_freed(acceptor.peer, request_id)

    def take_ended(self) -> dict[int, int]:
        """How many requests were over since the last call, per instance."""
        ended, self._num_ended = self._num_ended, {}
        return ended

    def leave(self, acceptor: Acceptor) -> None:
        for request_id in list(acceptor.active):
            self.free(acceptor, request_id)
        del self.by_peer[acceptor.peer]
        del self._by_name[acceptor.name]
        self._on_left(acceptor.peer)

    def expire(self, silent_since: float) -> None:
        """Free what acceptors hold that were not heard since then."""
        silent = [a for a in self.by_peer.values() if a.last_seen < silent_since]
        for acceptor in silent:
            log.warning("acceptor %s is silent; freeing its %d requests", acceptor.name, len(acceptor.active))
            self.leave(acceptor)
