"""The router without IO and without a clock: discovery changes and messages in, placements and table changes out.

Its owner says what time it is, delivers what `receive` returns to the peer that sent, and the deltas to all peers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from dynamo.router.acceptors import Acceptor, Acceptors
from dynamo.router.selectors import SELECTORS, Choice
from dynamo.router.table import LiveSet, ModelTable
from dynamo.shared.card import CardError, Registered, read_instance, read_registration
from dynamo.shared.discovery import INSTANCES, Change, Put, key_of
from dynamo.shared.messages import (
    AcceptorMessage,
    Free,
    Goodbye,
    Heartbeat,
    Hello,
    Place,
    Placed,
    Refused,
    RouterMessage,
    TableDelta,
    Welcome,
    Worker,
    WorkerFailed,
)
from dynamo.shared.protocol import Instance

log = logging.getLogger("dynamo.router")

SAY_HELLO = TableDelta(0)  # no table has the version before 0, so whoever gets this asks for the whole table


class Rules(Struct, frozen=True, kw_only=True):
    """What a router does. Namespaces: the prefix wins over the exact name; neither means all."""

    router_mode: str = "round-robin"
    namespace: str | None = None
    namespace_prefix: str | None = None
    min_initial_workers: int = 0
    inhibited_duration_s: float = 5.0
    acceptor_expiry_s: float = 10.0
    max_acceptors: int = 1024
    max_active_per_acceptor: int = 65_536
    max_table_entries: int = 65_536

    def serves_namespace(self, namespace: str) -> bool:
        if self.namespace_prefix:
            return namespace.startswith(self.namespace_prefix)
        return not self.namespace or namespace == self.namespace


class Router:
    def __init__(self, rules: Rules, rng: random.Random) -> None:
        self.rules = rules
        self.table = ModelTable(lambda: SELECTORS[rules.router_mode](rng))
        self.acceptors = Acceptors(rules.max_acceptors, rules.max_active_per_acceptor)
        self.malformed: dict[str, str] = {}  # discovery key -> what is wrong with its value
        self.num_left_out = 0  # discovery entries that the table had no room for
        self.num_turned_away = 0
        self._outcomes: dict[str, int] = {}
        self._rng = rng
        self._has_enough_workers = rules.min_initial_workers <= 0

    # ---- discovery

    def discover(self, bucket: str, changes: Iterable[Change]) -> None:
        """Apply a batch of `v1/instances` or `v1/mdc`; `take_delta` then says what it meant."""
        for change in changes:
            if not self.rules.serves_namespace(change.key.partition("/")[0]):
                continue
            try:
                self._apply(bucket, change)
            except CardError as error:
                self._note_malformed(bucket, change.key, str(error))
        self.table.settle()
        self._has_enough_workers |= len(self.table.workers) >= self.rules.min_initial_workers

    def take_delta(self) -> TableDelta | None:
        return self.table.take_delta()

    def _apply(self, bucket: str, change: Change) -> None:
        key = change.key
        if not isinstance(change, Put):
            self._drop(bucket, key)
            return
        is_known = self.table.has_instance(key) if bucket == INSTANCES else self.table.has_card(key)
        if not is_known and len(self.table) >= self.rules.max_table_entries:
            self._leave_out(key)
            return
        if bucket == INSTANCES:
            self.table.put_instance(key, _read_worker(key, change.value))
        else:
            self.table.put_card(key, _read_registered(key, change.value))
        self.malformed.pop(f"{bucket}/{key}", None)

    def _drop(self, bucket: str, key: str) -> None:
        self.malformed.pop(f"{bucket}/{key}", None)
        if bucket == INSTANCES:
            self.table.drop_instance(key)
        else:
            self.table.drop_card(key)

    def _note_malformed(self, bucket: str, key: str, reason: str) -> None:
        """A value that cannot be read counts as none, so what the key meant before is gone too."""
        entry = f"{bucket}/{key}"
        is_news = self.malformed.get(entry) != reason
        self._drop(bucket, key)
        if len(self.malformed) < self.rules.max_table_entries:
            self.malformed[entry] = reason
        if is_news:
            log.warning("ignoring %s: %s", entry, reason)

    def _leave_out(self, key: str) -> None:
        self.num_left_out += 1
        if self.num_left_out == 1:
            log.error(
                "the table is full (%d entries), leaving out %s and whatever comes after it; "
                "raise --max-table-entries or scope the router with --namespace",
                self.rules.max_table_entries,
                key,
            )

    # ---- acceptors

    def receive(self, peer: bytes, messages: Sequence[AcceptorMessage], now: float) -> list[RouterMessage]:
        """Answers to what one peer said, in order."""
        acceptor = self.acceptors.by_peer.get(peer)
        answers: list[RouterMessage] = []
        is_stranger = acceptor is None
        if acceptor is not None:
            acceptor.last_seen = now
        for message in messages:
            match message:
                case Place():
                    answers.append(self._place(acceptor, message, now))
                case Free():
                    if acceptor is not None:
                        self.acceptors.free(acceptor, message.request_id)
                case Hello():
                    is_stranger = False  # even when turned away: it must not be asked to knock again at once
                    acceptor = self.acceptors.greet(peer, message, now)
                    answers.extend(self._welcome(acceptor, message))
                case WorkerFailed():
                    self._inhibit(message, now)
                case Heartbeat():
                    pass
                case Goodbye():
                    self.forget(peer)
                    return answers
        if is_stranger:  # after the answers, so that the hello it provokes tells of them
            answers.append(SAY_HELLO)
        return answers

    def forget(self, peer: bytes) -> None:
        """The peer is gone: free what it held."""
        if (acceptor := self.acceptors.by_peer.get(peer)) is not None:
            self.acceptors.leave(acceptor)

    def tick(self, now: float) -> None:
        self.acceptors.expire(now - self.rules.acceptor_expiry_s)
        self.table.end_inhibitions(now)

    def take_outcomes(self) -> dict[str, int]:
        """How often a placement request ended as "placed" or with which refusal, since the last call."""
        outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def _welcome(self, acceptor: Acceptor | None, hello: Hello) -> list[RouterMessage]:
        if acceptor is None:
            self.num_turned_away += 1
            if self.num_turned_away == 1:
                log.error("turned acceptor %s away: there are %d already", hello.acceptor, len(self.acceptors))
            return []
        workers, sets = self.table.published()
        return [Welcome(self.rules.router_mode, self.table.version, workers, sets)]

    def _inhibit(self, failure: WorkerFailed, now: float) -> None:
        duration_s = self.rules.inhibited_duration_s
        if duration_s > 0 and self.table.inhibit(failure.instance_id, now + duration_s):
            log.warning("not asking worker %x for %g s: %s", failure.instance_id, duration_s, failure.reason)

    # ---- placement

    def _place(self, acceptor: Acceptor | None, place: Place, now: float) -> Placed | Refused:
        answer = self._decide(place, now)
        if isinstance(answer, Placed) and acceptor is not None:
            if self.acceptors.has_room(acceptor):
                self.acceptors.charge(acceptor, place.request_id, answer.instance_id)
            else:
                answer = _refused(place, "overloaded", "The gateway has too many requests in flight.")
        outcome = "placed" if isinstance(answer, Placed) else answer.code
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        return answer

    def _decide(self, place: Place, now: float) -> Placed | Refused:
        sets = self.table.serving(place.model)
        if sets is None:
            return _refused(place, "model_not_found", f"The model {place.model!r} is not registered with this gateway.")
        if not self._has_enough_workers:
            return _refused(place, "model_not_ready", "The gateway is waiting for its first workers.")
        if place.mdcsum:
            sets = [live for live in sets if live.leader.mdcsum == place.mdcsum]
        if not sets:
            return _refused(
                place, "model_not_ready", f"The model {place.model!r} is not ready: workers it needs are missing."
            )
        if place.instance_id is not None:
            return _pinned(place, sets, place.instance_id)
        self.table.end_inhibitions(now)
        live, candidates = self._pool(sets, place.excluded)
        choice = live.selector.select(place, candidates, self.acceptors.num_active)
        if choice is None:
            return _refused(
                place, "invalid_value", f"In router mode {self.rules.router_mode} a request must name its worker."
            )
        return _placed(place, live, choice)

    def _pool(self, sets: list[LiveSet], excluded: Sequence[int]) -> tuple[LiveSet, list[int]]:
        """One set, drawn in proportion to its size, and whom to choose from. A worker that failed a moment ago is asked
        before nobody is, and before one that has failed this very request."""
        preferences: tuple[Callable[[LiveSet], list[int]], ...] = (
            lambda live: _without(excluded, live.available),
            lambda live: _without(excluded, live.members),
            lambda live: live.members,
        )
        for candidates_of in preferences:
            pools = [(live, candidates) for live in sets if (candidates := candidates_of(live))]
            if pools:
                break
        if len(pools) == 1:
            return pools[0]
        return self._rng.choices(pools, [len(candidates) for _live, candidates in pools])[0]


def _without(excluded: Sequence[int], candidates: list[int]) -> list[int]:
    return [i for i in candidates if i not in excluded] if excluded else candidates


def _refused(place: Place, code: str, message: str, retry_after_s: int = 1) -> Refused:
    return Refused(place.request_id, code, message, retry_after_s)


def _pinned(place: Place, sets: list[LiveSet], instance_id: int) -> Placed | Refused:
    """A pin is an order: an inhibited worker is asked as well."""
    for live in sets:
        if instance_id in live.members:
            return _placed(place, live, Choice(instance_id))
    return _refused(
        place, "invalid_value", f"The model {place.model!r} has no worker with the instance id {instance_id}."
    )


def _placed(place: Place, live: LiveSet, choice: Choice) -> Placed:
    dp_rank = place.dp_rank if choice.dp_rank is None else choice.dp_rank
    return Placed(place.request_id, choice.instance_id, live.key, dp_rank, choice.overlap_blocks)


def _read_worker(key: str, value: bytes) -> Worker:
    instance = read_instance(value)
    _check_key(key, key_of(instance.namespace, instance.component, instance.endpoint, instance.instance_id))
    return _worker_of(instance)


def _worker_of(instance: Instance) -> Worker:
    ((plane, address),) = instance.transport.items()
    common = {"codec": instance.request_plane_codec or "json", "device_type": instance.device_type or ""}
    match plane:
        case "tcp":
            host_port, _slash, path = address.partition("/")
            return Worker(instance.instance_id, address=host_port, path=path, **common)
        case "nats_tcp":
            return Worker(instance.instance_id, nats_subject=address, **common)
        case _:
            raise CardError(f"request plane {plane!r} is unknown; expected tcp or nats_tcp")


def _read_registered(key: str, value: bytes) -> Registered:
    registered = read_registration(value)
    said = registered.registration
    _check_key(key, key_of(said.namespace, said.component, said.endpoint, said.instance_id, said.model_suffix))
    return registered


def _check_key(key: str, expected: str) -> None:
    if key != expected:
        raise CardError(f"the value describes {expected}")
