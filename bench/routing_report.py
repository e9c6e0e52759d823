"""What the routing benches found, as Markdown: the circumstances, the router's figures, the trace's arms."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.figures import LOOP, Figure, shown
from bench.trace_fleet import MODES, Arm
from bench.trace_replay import Replay

CACHED_BAR = 0.99  # of the anchor's cached share, in mode kv
ROUTER_COLUMNS = (("case", "---"), ("figure", "---"), ("value", "--:"), ("bar", "--:"))
TRACE_COLUMNS = (
    ("replicas", "--:"),
    ("mode", "---"),
    ("figure", "---"),
    ("ours", "--:"),
    ("anchor", "--:"),
    ("ours/anchor", "--:"),
)

Replays = Mapping[Arm, Sequence[Replay]]
"""One per round."""


@dataclass(frozen=True)
class TraceFigure:
    """Read from each round and averaged over them."""

    label: str
    read: Callable[[Replay], float]
    show: Callable[[float], str] = shown

    def mean(self, replays: Sequence[Replay]) -> float | None:
        return statistics.mean(map(self.read, replays)) if replays else None


def markdown(about: Mapping[str, str], figures: Mapping[str, Sequence[Figure]], replays: Replays, workers: int) -> str:
    described = {**about, "speed": _speed(figures)} if figures else about
    parts = ["\n".join(f"- {name}: {value}" for name, value in described.items())]
    if figures:
        parts.append(_table(ROUTER_COLUMNS, _router_rows(figures)))
    if replays:
        parts += [_table(TRACE_COLUMNS, _trace_rows(replays, workers)), "\n".join(verdicts(replays))]
    return "\n\n".join(parts) + "\n"


def trace_figures(num_workers: int) -> list[TraceFigure]:
    return [
        TraceFigure("prompt tokens from cache", lambda replay: replay.cached_share, "{:.2%}".format),
        TraceFigure("TTFT p50 ms", lambda replay: replay.ttft_ms(0.5)),
        TraceFigure("TTFT p99 ms", lambda replay: replay.ttft_ms(0.99)),
        TraceFigure(
            "busiest/average worker, requests", lambda replay: replay.request_spread(num_workers), "{:.2f}".format
        ),
        TraceFigure("busiest/average worker, tokens", lambda replay: replay.token_spread(num_workers), "{:.2f}".format),
        TraceFigure(
            "frontends' CPU ms per request", lambda replay: 1000 * replay.cpu_s["frontends"] / replay.num_asked
        ),
        TraceFigure("errors", lambda replay: len(replay.errors), "{:g}".format),
    ]


def verdicts(replays: Replays) -> Iterator[str]:
    """Whether the cached share of our mode kv is not below the anchor's by more than a hundredth."""
    for num_replicas in sorted({arm.num_replicas for arm in replays}):
        ours, anchor = (
            [each.cached_share for each in replays.get(Arm(system, "kv", num_replicas), ())]
            for system in ("ours", "anchor")
        )
        if ours and anchor:
            ratio = statistics.mean(ours) / statistics.mean(anchor)
            verdict = "met" if ratio >= CACHED_BAR else "missed"
            yield (
                f"- cached share of mode kv, replicas {num_replicas}: {_percents(ours)} against {_percents(anchor)}, "
                f"ratio of the means {ratio:.3f}; bar {CACHED_BAR}: {verdict}"
            )


def _speed(figures: Mapping[str, Sequence[Figure]]) -> str:
    loops = [each.value for measured in figures.values() for each in measured if each.name == LOOP]
    return f"{LOOP}, after each case of the router: {min(loops):.3f} to {max(loops):.3f}"


def _router_rows(figures: Mapping[str, Sequence[Figure]]) -> Iterator[tuple[str, ...]]:
    for case, measured in figures.items():
        for each in measured:
            if each.name != LOOP:
                bar = each.bar + ("" if each.meets_bar else ", missed")
                yield case, each.name, shown(each.value), bar


def _trace_rows(replays: Replays, num_workers: int) -> Iterator[tuple[str, ...]]:
    for num_replicas in sorted({arm.num_replicas for arm in replays}):
        for mode in MODES:
            ours, anchor = (replays.get(Arm(system, mode, num_replicas), ()) for system in ("ours", "anchor"))
            for figure in trace_figures(num_workers) if ours or anchor else ():
                both = figure.mean(ours), figure.mean(anchor)
                ratio = f"{both[0] / both[1]:.2f}" if both[0] is not None and both[1] else ""
                cells = ("" if value is None else figure.show(value) for value in both)
                yield str(num_replicas), mode, figure.label, *cells, ratio


def _percents(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.2%}" for share in shares)


def _table(columns: Sequence[tuple[str, str]], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [tuple(name for name, _rule in columns), tuple(rule for _name, rule in columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
