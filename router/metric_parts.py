"""Where the router's numbers lie: its parts, and how a metric's labels and values are read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dynamo.router.event_traffic import Traffic
from dynamo.router.tally import Tally
from dynamo.shared.metrics import Family, Labels, Value

if TYPE_CHECKING:
    from dynamo.router.core import Router
    from dynamo.router.decisions import DecisionLog
    from dynamo.router.endpoint_service import EndpointService
    from dynamo.router.event_counts import EventCounts
    from dynamo.router.event_sources import EventSources
    from dynamo.router.index import PrefixIndex
    from dynamo.router.intake import Intake
    from dynamo.router.jetstream_feed import DurableSubscriber
    from dynamo.router.predicted import PredictedIndex
    from dynamo.router.replica_link import ReplicaLink
    from dynamo.router.replicas import ReplicaSync
    from dynamo.router.warm_start import WarmStart
    from dynamo.shared.channel import RouterChannel
    from dynamo.shared.nats import NatsConnection


class Parts(NamedTuple):
    """All that counts. None where a router has no such part, or not yet."""

    core: Router
    intake: Intake
    nats: NatsConnection
    link: ReplicaLink | None = None
    channel: RouterChannel | None = None
    endpoints: EndpointService | None = None
    decisions: DecisionLog | None = None


P = TypeVar("P")
Row = tuple[Labels, float]
Read = Callable[[Parts], Iterable[Row]]


class Totals:
    """Counters that follow numbers counted elsewhere since the start of this process."""

    def __init__(self, family: Family[Value]) -> None:
        self._family = family
        self._seen: dict[Labels, float] = {}

    def follow(self, rows: Iterable[Row]) -> None:
        for labels, number in rows:
            self._family.labels(*labels).inc(number - self._seen.get(labels, 0.0))
            self._seen[labels] = number


class Metric(NamedTuple):
    """`rows` are labels and numbers; without labels there is one row, or none where nothing is there to be counted."""

    help: str
    rows: Read
    labels: Labels = ()


class TallyMetric(NamedTuple):
    help: str
    rows: Callable[[Tally], Iterable[Row]]
    labels: Labels


def number_of(part: Callable[[Parts], P | None], number: Callable[[P], float | None]) -> Read:
    """One number of a part that may not be there."""

    def rows(parts: Parts) -> Iterator[Row]:
        found = part(parts)
        value = None if found is None else number(found)
        if value is not None:
            yield (), value

    return rows


def core(parts: Parts) -> Router:
    return parts.core


def index(parts: Parts) -> PrefixIndex | None:
    return parts.core.fleet.index


def predicted(parts: Parts) -> PredictedIndex | None:
    return parts.core.fleet.predicted


def sources(parts: Parts) -> EventSources | None:
    return parts.core.sources


def stream(parts: Parts) -> DurableSubscriber | None:
    return None if parts.intake.feed is None else parts.intake.feed.durable


def nats(parts: Parts) -> NatsConnection | None:
    return parts.nats if parts.nats.is_needed else None


def replicas(parts: Parts) -> ReplicaSync | None:
    return parts.core.replicas


def warm_start(parts: Parts) -> WarmStart | None:
    return parts.intake.warm_start


def feeds(parts: Parts) -> Iterator[tuple[str, Traffic]]:
    for name, feed in (("kv_events", parts.intake.feed), ("load", parts.intake.load), ("replicas", parts.link)):
        if feed is not None:
            yield name, feed.traffic


def restored(number: Callable[[WarmStart], float]) -> Read:
    def rows(parts: Parts) -> Iterator[Row]:
        warm_start = parts.intake.warm_start
        if warm_start is not None and warm_start.source:
            yield (warm_start.source,), number(warm_start)

    return rows


def per_rank(number: Callable[[Router, int], float]) -> Read:
    def rows(parts: Parts) -> Iterator[Row]:
        for slot, (instance_id, dp_rank) in parts.core.fleet.ranks:
            yield (f"{instance_id:x}", str(dp_rank)), number(parts.core, slot)

    return rows


def counts_of(part: Callable[[Parts], P | None], counts: Callable[[P], Mapping[str, float]]) -> Read:
    """Numbers of a part that may not be there; their names are the only label."""

    def rows(parts: Parts) -> Iterator[Row]:
        if (found := part(parts)) is not None:
            for name, number in counts(found).items():
                yield (name,), number

    return rows


def picked(counts: EventCounts, *names: str) -> dict[str, float]:
    return {name: getattr(counts, name) for name in names}
