"""Counters, gauges and histograms that cost a plain addition, and one scrape over all processes of a replica.

Each process keeps its numbers in Python objects and writes them to its own file of the run directory now and then
(`Registry.save`). Whoever is scraped reads all files and merges: counters and histograms add up, gauges as they say.
A process that replaces a dead one takes over its counters, so that they never fall. Prometheus' text is made by
`prometheus_client`.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, repeat
from operator import mul
from pathlib import Path
from typing import Generic, Literal, TypeVar

import msgspec
import xxhash
from msgspec import Struct
from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABEL_SETS = 1000  # per family; further ones are counted under "other"
SUFFIX = ".metrics"
OVERHEAD_MS = tuple(accumulate(repeat(3.0, 16), mul, initial=0.01))  # the buckets of `dynamo_router_overhead_*_ms`

Kind = Literal["counter", "untyped", "gauge", "histogram"]
Merge = Literal["sum", "max"]
Labels = tuple[str, ...]


class Value:
    """A counter's or gauge's number for one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value

    def numbers(self) -> list[float]:
        return [self.value]

    def restore(self, numbers: Sequence[float]) -> None:
        self.value = numbers[0]


class Distribution:
    """A histogram's buckets for one set of labels; the last one is everything above the highest bound."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def absorb(self, other: Distribution) -> None:
        """Add what another one with the same bounds has observed."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def numbers(self) -> list[float]:
        return [*self.counts, self.sum]

    def restore(self, numbers: Sequence[float]) -> None:
        if len(numbers) == len(self.counts) + 1:
            self.counts, self.sum = [int(n) for n in numbers[:-1]], numbers[-1]


M = TypeVar("M", Value, Distribution)


class Family(Generic[M]):
    """All label sets of one metric. `labels(...)` once, keep the child, add to it."""

    def __init__(
        self,
        kind: Kind,
        name: str,
        help: str,
        label_names: Labels,
        make: Callable[[], M],
        bounds: tuple[float, ...] = (),
        merge: Merge = "sum",
    ) -> None:
        self.kind = kind
        self.name = name
        self.help = help
        self.label_names = label_names
        self.bounds = bounds
        self.merge = merge
        self._make: Callable[[], M] = make
        self.children: dict[Labels, M] = {}

    def labels(self, *values: str) -> M:
        child = self.children.get(values)
        if child is None:
            if len(self.children) >= MAX_LABEL_SETS:
                values = ("other",) * len(self.label_names)
            child = self.children.setdefault(values, self._make())
        return child

    def clear(self) -> None:
        """Forget all label sets: for gauges that are set anew as a whole."""
        self.children = {}


class Snapshot(Struct, array_like=True):
    """One family as a process last saved it."""

    kind: Kind
    name: str
    help: str
    label_names: list[str]
    bounds: list[float]
    merge: Merge
    samples: list[tuple[list[str], list[float]]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Snapshot]).decode


class Registry:
    """The metrics of one process, saved to `<directory>/<process>.metrics`."""

    def __init__(self, directory: Path, process: str) -> None:
        self._path = directory / f"{process}{SUFFIX}"
        self._families: dict[str, Family[Value] | Family[Distribution]] = {}

    def counter(self, name: str, help: str, labels: Labels = ()) -> Family[Value]:
        """`name` without the `_total` that Prometheus' text adds."""
        family = Family("counter", name, help, labels, Value)
        self._families[name] = family
        return family

    def untyped(self, name: str, help: str, labels: Labels = ()) -> Family[Value]:
        """A counter whose name has no `_total`, against the rules of Prometheus' text for one that says so."""
        family = Family("untyped", name, help, labels, Value)
        self._families[name] = family
        return family

    def gauge(self, name: str, help: str, labels: Labels = (), merge: Merge = "sum") -> Family[Value]:
        family = Family("gauge", name, help, labels, Value, merge=merge)
        self._families[name] = family
        return family

    def histogram(self, name: str, help: str, bounds: tuple[float, ...], labels: Labels = ()) -> Family[Distribution]:
        family = Family("histogram", name, help, labels, lambda: Distribution(bounds), bounds)
        self._families[name] = family
        return family

    def __iter__(self) -> Iterator[Family[Value] | Family[Distribution]]:
        return iter(self._families.values())

    def take_over(self) -> None:
        """Continue the counters and histograms of this process' predecessor, if there was one."""
        for snapshot in _load(self._path):
            family = self._families.get(snapshot.name)
            if family is not None and family.kind == snapshot.kind != "gauge":
                for labels, numbers in snapshot.samples:
                    family.labels(*labels).restore(numbers)

    def save(self) -> None:
        """Atomically, so that a scrape sees all of a moment or nothing of it."""
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(_encode(self._snapshots()))
        os.replace(temporary, self._path)

    def _snapshots(self) -> list[Snapshot]:
        return [
            Snapshot(
                family.kind,
                family.name,
                family.help,
                list(family.label_names),
                list(family.bounds),
                family.merge,
                [(list(labels), child.numbers()) for labels, child in family.children.items()],
            )
            for family in self._families.values()
        ]


def router_id_of(replica: str) -> int:
    """What Dynamo's metrics call a router by: here the same for all processes of a replica and those after them."""
    return xxhash.xxh3_64_intdigest(replica.encode())


def render(directory: Path) -> bytes:
    """Prometheus' text over all processes that saved to this directory."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(directory))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Snapshot] = {}
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            for snapshot in _load(path):
                _merge_into(merged, snapshot)
        for snapshot in merged.values():
            yield _metric(snapshot)


def _load(path: Path) -> list[Snapshot]:
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        return _decode(path.read_bytes())
    return []


def _merge_into(merged: dict[str, Snapshot], snapshot: Snapshot) -> None:
    known = merged.get(snapshot.name)
    if known is None:
        merged[snapshot.name] = snapshot
        return
    samples = {tuple(labels): numbers for labels, numbers in known.samples}
    add = max if snapshot.merge == "max" else sum
    for labels, numbers in snapshot.samples:
        mine = samples.get(tuple(labels))
        samples[tuple(labels)] = numbers if mine is None else [add(pair) for pair in zip(mine, numbers, strict=True)]
    known.samples = [(list(labels), numbers) for labels, numbers in samples.items()]


_SIMPLE: dict[str, type[CounterMetricFamily | GaugeMetricFamily | UntypedMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "untyped": UntypedMetricFamily,
}


def _metric(snapshot: Snapshot) -> Metric:
    names = snapshot.label_names
    if snapshot.kind == "histogram":
        histogram = HistogramMetricFamily(snapshot.name, snapshot.help, labels=names)
        for labels, numbers in snapshot.samples:
            histogram.add_metric(labels, _cumulative(snapshot.bounds, numbers[:-1]), numbers[-1])
        return histogram
    family = _SIMPLE[snapshot.kind](snapshot.name, snapshot.help, labels=names)
    for labels, numbers in snapshot.samples:
        family.add_metric(labels, numbers[0])
    return family


def _cumulative(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    total, buckets = 0.0, []
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound).removesuffix(".0"), total))
    return buckets
