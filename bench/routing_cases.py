"""What the routing benches measure: processes that print figures of the router, and arms through which a trace goes."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from bench.compare import FRONTEND_CORE
from bench.trace import Cut
from bench.trace_fleet import MODES, SYSTEMS, Arm, Mockers

FLEETS = tuple((workers, tokens) for workers in (10, 100, 1_000) for tokens in (1_000, 8_000, 60_000))
CUT = Cut(num_requests=2_000, max_input_tokens=16_384, max_output_tokens=32)
QUICK_CUT = Cut(num_requests=200, max_input_tokens=16_384, max_output_tokens=32)
MOCKERS = Mockers(num_workers=8, num_blocks=81_920, speedup=10.0)
TRACE_SPEEDUP = 24.0
NUM_REPLICAS = (1, 3)


class RouterCase(Struct, frozen=True):
    """`module` with `flags` prints figures; it keeps to `core`, unless that is None and it sees to that itself."""

    name: str
    module: str
    flags: tuple[str, ...]
    core: int | None = FRONTEND_CORE


class TraceCase(Struct, frozen=True):
    round: int
    arm: Arm

    @property
    def name(self) -> str:
        return f"trace, round {self.round}, {self.arm.name}"


def router_cases(*, is_quick: bool) -> Iterator[RouterCase]:
    num_blocks, num_placements, seconds = (100_000, 300, 1) if is_quick else (1_000_000, 3_000, 5)
    blocks = ("--blocks", str(num_blocks))
    yield RouterCase("index, speed", "bench.router_index", blocks)
    for holders in (1, 4):
        yield RouterCase(
            f"index, memory, holders {holders}", "bench.router_index", (*blocks, "--memory-of-holders", str(holders))
        )
    for workers, tokens in FLEETS:
        flags = ("--workers", str(workers), "--tokens", str(tokens), "--placements", str(num_placements))
        yield RouterCase(f"core, {workers:,} workers, {tokens:,} tokens", "bench.router_core", flags)
    yield RouterCase(
        "through ZeroMQ, 100 workers, 200 tokens", "bench.router_socket", ("--seconds", str(seconds)), core=None
    )


def trace_cases(num_rounds: int, *, with_anchor: bool) -> Iterator[TraceCase]:
    """Mode kv in every round, the others in the first; who comes first alternates."""
    systems = SYSTEMS if with_anchor else SYSTEMS[:1]
    for number in range(1, num_rounds + 1):
        for replicas in NUM_REPLICAS:
            for mode in MODES if number == 1 else ("kv",):
                for system in systems if number % 2 else reversed(systems):
                    yield TraceCase(number, Arm(system, mode, replicas))
