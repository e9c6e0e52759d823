"""Routers as they are without their sockets: all hear the same discovery, the same workers, and each other."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from numpy.typing import ArrayLike

from dynamo.router.config import RouterConfig
from dynamo.router.core import Router
from dynamo.router.cost import Candidates
from dynamo.router.event_sources import EventSources
from dynamo.router.policies import PolicyRequest, PolicyRunner, load_policy
from dynamo.router.recovery_desk import Query
from dynamo.router.rules import Rules
from dynamo.shared.discovery import CARDS, INSTANCES, Change, Put
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.kv_events import LoadReport, RouterEvent
from dynamo.shared.replica_events import ACTIVE_SEQUENCES_TOPIC, AFFINITY_TOPIC, REPLICA_TOPIC
from tests.router.kv_rank import KvRank

FIRST = "r1"
TOPICS = (ACTIVE_SEQUENCES_TOPIC, AFFINITY_TOPIC, REPLICA_TOPIC)
ROLES = ("aggregated", "prefill", "decode")


class World:
    """Time stands still until `wait_until`. `policy_takes_s` is how long a call of the operator's own policy lasts."""

    def __init__(self, directory: Path) -> None:
        self.now = 0.0
        self.policy_takes_s = 0.0
        self.ranks: dict[tuple[int, int], KvRank] = {}
        self._directory = directory
        self.start([])

    def start(self, flags: Sequence[str], policy_file: str = "") -> None:
        """One router with these flags; nothing is known of whatever was before."""
        argv = list(flags)
        if policy_file:
            path = self._directory / "policies.yaml"
            path.write_text(policy_file)
            argv.append(f"--router-policy-config={path}")
        self._config = RouterConfig.load(argv, {}, prog="router")[0].settled()
        self._discovered: dict[str, dict[str, bytes]] = {INSTANCES: {}, CARDS: {}}
        self._scopes: dict[str, dict[EndpointScope, dict[str, int]]] = {}  # published so far, by topic
        self._policy_clock = 0.0
        self.ranks.clear()
        self.routers = {FIRST: self._new_router(1)}

    @property
    def first(self) -> Router:
        return self.routers[FIRST]

    def join(self, name: str) -> None:
        """Another router with the same flags."""
        self.routers[name] = self._new_router(len(self.routers) + 1)
        self._introduce(name)

    def kill(self, name: str) -> None:
        del self.routers[name]

    def restart(self, *, is_warm: bool) -> None:
        """The first router comes back, perhaps with the snapshot of its index that it took just before."""
        workers = self.first.workers
        found = [state for rank in self.ranks.values() if (state := workers.state_of(*_key(rank))) is not None]
        self.routers[FIRST] = self._new_router(1)
        self._scopes.pop(FIRST, None)
        if is_warm:
            self.first.workers.restore(dict(found), self.now)
        self._introduce(FIRST)

    # ---- what all routers hear

    def discover(self, bucket: str, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change, Put):
                self._discovered[bucket][change.key] = change.value
            else:
                self._discovered[bucket].pop(change.key, None)
            for router in self.routers.values():
                router.discover(bucket, [change], self.now)

    def rank(self, worker_id: int, dp_rank: int) -> KvRank:
        key = worker_id, dp_rank
        return self.ranks.setdefault(key, KvRank(*key))

    def announce(self, rank: KvRank) -> None:
        rank.is_announced = True
        for sources in self._followers():
            sources.source_up(rank.key, rank.source, self.now)

    def publish(self, rank: KvRank, event: RouterEvent) -> None:
        for sources in self._followers():
            sources.events(rank.publisher_id, [event], self.now)

    def report(self, report: LoadReport) -> None:
        for router in self.routers.values():
            router.report_load(report)

    def wait_until(self, now: float) -> None:
        self.now = now
        for router in self.routers.values():
            router.tick(now)
            if router.sources is not None:
                router.sources.tick(now)
            if router.replicas is not None:
                router.replicas.tick(now)

    def settle(self) -> list[str]:
        """Questions are answered and replicas hear each other; which worker was asked for what."""
        self._exchange()
        return [line for name, router in self.routers.items() for line in self._answer_all(name, router)]

    # ---- inside

    def _new_router(self, number: int) -> Router:
        return Router(_rules(self._config, number), random.Random(0), policies=self._policies())

    def _policies(self) -> dict[str, PolicyRunner]:
        config = self._config
        if config.router_policy is None:
            return {}
        ask = load_policy(config.router_policy)

        def score(request: PolicyRequest, candidates: Candidates) -> ArrayLike:
            self._policy_clock += self.policy_takes_s
            return ask(request, candidates)

        def clock() -> float:
            return self.now + self._policy_clock

        budget_ms, is_shadow = config.router_policy_budget_ms, config.router_policy_shadow
        return {role: PolicyRunner(score, budget_ms, is_shadow, clock=clock) for role in ROLES}

    def _introduce(self, name: str) -> None:
        """Tell a router what the others know of discovery."""
        router = self.routers[name]
        for bucket, entries in self._discovered.items():
            router.discover(bucket, [Put(key, value) for key, value in entries.items()], self.now)
        for rank in self.ranks.values():
            if rank.is_announced and router.sources is not None:
                router.sources.source_up(rank.key, rank.source, self.now)

    def _followers(self) -> Iterator[EventSources]:
        return (router.sources for router in self.routers.values() if router.sources is not None)

    def _answer_all(self, name: str, router: Router) -> Iterator[str]:
        if router.sources is None:
            return
        while queries := router.sources.take_queries():
            for query in queries:
                router.sources.answer(query, self.rank(*_key(query)).answer(query), self.now)
                yield f"{name} asks w{query.rank.worker_id} rank {query.rank.dp_rank} for {_wish(query)}"
            while router.sources.work(1000, self.now):
                pass

    def _exchange(self) -> None:
        while said := [each for name in self.routers for each in self._take_said(name)]:
            for speaker, scope, envelope in said:
                for name, router in self.routers.items():
                    if name != speaker and router.replicas is not None:
                        router.replicas.receive(scope, envelope, self.now)
            for router in self.routers.values():
                router.heard_replicas(self.now)

    def _take_said(self, name: str) -> Iterator[tuple[str, EndpointScope, Envelope]]:
        router = self.routers[name]
        if router.replicas is None:
            return
        published = self._scopes.setdefault(name, {})
        for scope in {live.scope for live in router.table.sets.values()}:
            if scope not in published:
                published[scope] = dict.fromkeys(TOPICS, 0)
                router.replicas.open(scope, _publisher_id(router, ACTIVE_SEQUENCES_TOPIC))
            for topic, payload in router.replicas.take_outgoing(scope):
                yield name, scope, Envelope(_publisher_id(router, topic), published[scope][topic], 0, topic, payload)
                published[scope][topic] += 1


def _rules(config: RouterConfig, number: int) -> Rules:
    """Without what differs from one run to the next. No worker has the id of a router."""
    router_id = 900 + number if config.router_replica_sync else None
    return msgspec.structs.replace(config.rules, router_id=router_id, first_sequence=number)


def _publisher_id(router: Router, topic: str) -> int:
    assert router.rules.router_id is not None
    return 10_000 + 10 * router.rules.router_id + TOPICS.index(topic)


def _key(rank_of: KvRank | Query) -> tuple[int, int]:
    return rank_of.rank.worker_id, rank_of.rank.dp_rank


def _wish(query: Query) -> str:
    return "everything" if query.start_event_id is None else f"events from {query.start_event_id}"
