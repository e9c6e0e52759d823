"""The model table: which workers there are, which sets they form, and which of them may be asked right now.

An instance is routable when discovery has both its endpoint and a card for it. Instances whose cards agree (same
mdcsum) form a worker set; a card that differs is kept out until the set has drained, then the first that waits decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from dynamo.router.selectors import Selector
from dynamo.shared.card import Registered
from dynamo.shared.discovery import key_of
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.messages import TableDelta, Worker, WorkerSet

log = logging.getLogger("dynamo.router")

ENTRY_WORKER_TYPES = ("aggregated", "decode")  # a request is placed on these; the others are asked on its way

K = TypeVar("K", int, str)
V = TypeVar("V", Worker, WorkerSet)


class LiveSet:
    """One worker set. `members` are routable, `available` those of them that are not inhibited, in order of arrival."""

    def __init__(self, key: str, first: Registered, selector: Selector) -> None:
        self.key = key
        self.model = first.card.display_name
        self.namespace = first.registration.namespace
        self.worker_type = first.card.role
        self.selector = selector
        self.registered: dict[int, Registered] = {}
        self.leader = first  # the first of those whose card the set goes by
        self.members: list[int] = []
        self.available: list[int] = []
        self.num_rejected = 0

    def elect(self, is_served: Callable[[Registered], bool]) -> None:
        """Decide anew whose card counts and who belongs to the set. Needs at least one registration."""
        agreeing = [r for r in self.registered.values() if r.mdcsum == self.leader.mdcsum]
        if not agreeing:
            waiting = next(iter(self.registered.values()))
            log.info("worker set %s has drained; it goes by the card with checksum %s now", self.key, waiting.mdcsum)
            agreeing = [r for r in self.registered.values() if r.mdcsum == waiting.mdcsum]
        self.leader = agreeing[0]
        self.members = [r.registration.instance_id for r in agreeing if is_served(r)]
        self.num_rejected = len(self.registered) - len(agreeing)

    @property
    def block_size(self) -> int:
        """Tokens in one block of the KV cache of these workers."""
        return self.leader.card.kv_cache_block_size

    @property
    def names(self) -> list[str]:
        return [self.model, *self.leader.card.aliases]

    @property
    def scope(self) -> EndpointScope:
        registration = self.leader.registration
        return EndpointScope(registration.namespace, registration.component, registration.endpoint)

    def has_needs_met(self, worker_types: set[str]) -> bool:
        """`needs` is a list of alternatives, each a list of worker types that must all be there."""
        needs = self.leader.card.needs
        return not needs or any(worker_types.issuperset(alternative) for alternative in needs)

    def as_message(self) -> WorkerSet:
        registration = self.leader.registration
        return WorkerSet(
            key=self.key,
            model=self.model,
            namespace=self.namespace,
            component=registration.component,
            endpoint=registration.endpoint,
            worker_type=self.worker_type,
            mdcsum=self.leader.mdcsum,
            card=self.leader.raw_card,
            members=self.members,
            rejected=self.num_rejected,
        )


class ModelTable:
    """Fed with discovery's keys and decoded values, the newest value of a key counting; `settle` after each batch."""

    def __init__(self, make_selector: Callable[[], Selector]) -> None:
        self.version = 0
        self.workers: dict[int, Worker] = {}
        self.sets: dict[str, LiveSet] = {}
        self.inhibited_until: dict[int, float] = {}
        self._make_selector = make_selector
        self._instances: dict[str, Worker] = {}
        self._cards: dict[str, tuple[str, Registered]] = {}  # key -> (set key, ...)
        self._endpoints: dict[int, list[str]] = {}  # instance id -> keys of what it serves
        self._num_cards: dict[str, int] = {}  # key of an endpoint -> how many cards name it
        self._homes: dict[int, str] = {}  # instance id -> key of the endpoint it is routed to
        self._by_name: dict[str, list[LiveSet]] = {}
        self._unsettled_ids: set[int] = set()
        self._unsettled_sets: set[str] = set()
        self._unpublished_ids: set[int] = set()
        self._unpublished_sets: set[str] = set()
        self._published_workers: dict[int, Worker] = {}
        self._published_sets: dict[str, WorkerSet] = {}

    def __len__(self) -> int:
        return len(self._instances) + len(self._cards)

    def has_instance(self, key: str) -> bool:
        return key in self._instances

    def has_card(self, key: str) -> bool:
        return key in self._cards

    # ---- what discovery says

    def put_instance(self, key: str, worker: Worker) -> None:
        """An instance that registers again is trusted again."""
        if key not in self._instances:
            self._endpoints.setdefault(worker.instance_id, []).append(key)
        self._instances[key] = worker
        self.inhibited_until.pop(worker.instance_id, None)
        self._unsettled_ids.add(worker.instance_id)

    def drop_instance(self, key: str) -> None:
        worker = self._instances.pop(key, None)
        if worker is None:
            return
        endpoints = self._endpoints[worker.instance_id]
        endpoints.remove(key)
        if not endpoints:
            del self._endpoints[worker.instance_id]
        self._unsettled_ids.add(worker.instance_id)

    def put_card(self, key: str, registered: Registered) -> None:
        set_key = _set_key(registered)
        known = self._cards.get(key)
        if known is not None and known[0] != set_key:
            self.drop_card(key)
            known = None
        if known is None:
            endpoint = _endpoint_key(registered)
            self._num_cards[endpoint] = self._num_cards.get(endpoint, 0) + 1
        self._cards[key] = (set_key, registered)
        live = self.sets.get(set_key)
        if live is None:
            live = self.sets[set_key] = LiveSet(set_key, registered, self._make_selector())
        elif registered.mdcsum != live.leader.mdcsum and (known is None or known[1].mdcsum != registered.mdcsum):
            _warn_of_conflict(live, registered)
        live.registered[registered.registration.instance_id] = registered
        self._unsettled_ids.add(registered.registration.instance_id)

    def drop_card(self, key: str) -> None:
        if key not in self._cards:
            return
        set_key, registered = self._cards.pop(key)
        endpoint = _endpoint_key(registered)
        self._num_cards[endpoint] -= 1
        if not self._num_cards[endpoint]:
            del self._num_cards[endpoint]
        registrations = self.sets[set_key].registered
        registrations.pop(registered.registration.instance_id, None)
        if not registrations:
            del self.sets[set_key]
        self._unsettled_sets.add(set_key)
        self._unsettled_ids.add(registered.registration.instance_id)

    def settle(self) -> set[int]:
        """Work out workers, sets and names after a batch of changes. Returns the instances it may have touched."""
        for instance_id in self._unsettled_ids:
            self._settle_worker(instance_id)
            self._unsettled_sets.update(key for key, live in self.sets.items() if instance_id in live.registered)
        for key in self._unsettled_sets & self.sets.keys():
            self.sets[key].elect(self._is_served)
        settled = self._unsettled_ids
        self._unpublished_ids |= settled
        self._unpublished_sets |= self._unsettled_sets
        self._unsettled_ids, self._unsettled_sets = set(), set()
        self._by_name = self._index_names()
        self._refresh_availability()
        return settled

    # ---- who may be asked

    def serving(self, name: str) -> list[LiveSet] | None:
        """Sets that a request for this model name or alias may be placed on; None when no card has that name."""
        return self._by_name.get(name)

    def at_endpoint(self, endpoint: str) -> list[LiveSet]:
        """Sets that workers of this endpoint (namespace/component/name) form, whatever their type."""
        return [live for key, live in self.sets.items() if key.startswith(f"{endpoint}/") and live.members]

    def home_of(self, instance_id: int) -> LiveSet | None:
        """A set that this worker is a member of."""
        return next((live for live in self.sets.values() if instance_id in live.registered), None)

    def inhibit(self, instance_id: int, until: float) -> bool:
        """Do not offer an instance that failed. Whether that changes anything: no for one not in the table."""
        if instance_id not in self.workers:
            return False
        is_news = instance_id not in self.inhibited_until
        self.inhibited_until[instance_id] = until
        if is_news:
            self._refresh_availability()
        return is_news

    def end_inhibitions(self, now: float) -> None:
        ended = [instance_id for instance_id, until in self.inhibited_until.items() if until <= now]
        for instance_id in ended:
            del self.inhibited_until[instance_id]
        if ended:
            self._refresh_availability()

    # ---- what acceptors are told

    def take_delta(self) -> TableDelta | None:
        """What changed since the last call, as the next version; None when nothing did."""
        workers = _changed(self._unpublished_ids, self.workers, self._published_workers)
        messages = {key: self.sets[key].as_message() for key in self._unpublished_sets & self.sets.keys()}
        sets = _changed(self._unpublished_sets, messages, self._published_sets)
        self._unpublished_ids, self._unpublished_sets = set(), set()
        if not any((*workers, *sets)):
            return None
        self.version += 1
        return TableDelta(self.version, *workers, *sets)

    def published(self) -> tuple[list[Worker], list[WorkerSet]]:
        """The table as of `version`."""
        return list(self._published_workers.values()), list(self._published_sets.values())

    # ---- keeping it consistent

    def _settle_worker(self, instance_id: int) -> None:
        home = self._find_home(instance_id)
        if home is None:
            self._homes.pop(instance_id, None)
            self.workers.pop(instance_id, None)
            self.inhibited_until.pop(instance_id, None)
        else:
            self._homes[instance_id] = home
            self.workers[instance_id] = self._instances[home]

    def _find_home(self, instance_id: int) -> str | None:
        """The endpoint this instance is routed to. Workers are known by instance id alone, so one that serves models at
        several endpoints is reached at the first, as long as that lasts."""
        routable = [key for key in self._endpoints.get(instance_id, ()) if key in self._num_cards]
        if not routable:
            return None
        home = self._homes.get(instance_id)
        if home not in routable:
            home = routable[0]
        for other in routable:
            if other != home:
                log.warning("not routing to %s: its instance serves models at %s already", other, home)
        return home

    def _is_served(self, registered: Registered) -> bool:
        return self._homes.get(registered.registration.instance_id) == _endpoint_key(registered)

    def _index_names(self) -> dict[str, list[LiveSet]]:
        """Per served name the sets that may be asked, perhaps none; a model's own name wins over another's alias."""
        worker_types: dict[tuple[str, str], set[str]] = {}
        for live in self.sets.values():
            if live.members:
                worker_types.setdefault((live.namespace, live.model), set()).add(live.worker_type)
        by_model: dict[str, list[LiveSet]] = {live.model: [] for live in self.sets.values()}
        by_alias: dict[str, list[LiveSet]] = {}
        for live in self.sets.values():
            found = [live] if _may_be_asked(live, worker_types) else []
            by_model[live.model] += found
            for alias in live.leader.card.aliases:
                by_alias.setdefault(alias, []).extend(found)
        return by_alias | by_model

    def _refresh_availability(self) -> None:
        for live in self.sets.values():
            live.available = [i for i in live.members if i not in self.inhibited_until]


def _may_be_asked(live: LiveSet, worker_types: dict[tuple[str, str], set[str]]) -> bool:
    peers = worker_types.get((live.namespace, live.model), set())
    return bool(live.members) and live.worker_type in ENTRY_WORKER_TYPES and live.has_needs_met(peers)


def _set_key(registered: Registered) -> str:
    registration, card = registered.registration, registered.card
    return "/".join(
        (registration.namespace, registration.component, registration.endpoint, card.display_name, card.role)
    )


def _endpoint_key(registered: Registered) -> str:
    registration = registered.registration
    return key_of(registration.namespace, registration.component, registration.endpoint, registration.instance_id)


def _changed(keys: Iterable[K], current: dict[K, V], published: dict[K, V]) -> tuple[list[V], list[K]]:
    """What is new or different, and what is gone; `published` is brought up to date."""
    up, down = [], []
    for key in keys:
        value = current.get(key)
        if value is None:
            if published.pop(key, None) is not None:
                down.append(key)
        elif value != published.get(key):
            published[key] = value
            up.append(value)
    return up, down


def _warn_of_conflict(live: LiveSet, registered: Registered) -> None:
    log.warning(
        "instance %x is kept out of worker set %s: its card (checksum %s) differs from that of its members (%s). "
        "Give all workers of a set the same model files and options, or wait until the others are gone",
        registered.registration.instance_id,
        live.key,
        registered.mdcsum,
        live.leader.mdcsum,
    )
