"""Named numbers, some with a bar, on their way from a measuring process to the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import msgspec
from msgspec import Struct


class Figure(Struct, frozen=True, omit_defaults=True):
    """`at_least` or `at_most` is what it has to meet, if anything."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bar(self) -> str:
        if self.at_least is not None:
            return f"≥ {shown(self.at_least)}"
        return "" if self.at_most is None else f"≤ {shown(self.at_most)}"

    @property
    def meets_bar(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


LOOP = "CPU s of a loop of ten million additions"


def loop() -> Figure:
    """How fast the machine is just now: cores of shared hosts are not always the same."""
    started = time.process_time()
    sum(range(10_000_000))
    return Figure(LOOP, time.process_time() - started)


decode_figures = msgspec.json.Decoder(list[Figure]).decode


def print_figures(figures: Iterable[Figure]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(list(figures)) + b"\n")


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
