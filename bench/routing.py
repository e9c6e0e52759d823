"""Command line of the routing benches: the router alone, then a trace through our frontend and the anchor's.

Every case leaves a file below `--out`: a run that was cut short goes on where it ended. It ends with report and plot.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import uvloop

from bench import routing_plot, routing_report, trace
from bench.about import about, check_anchor, commit
from bench.figures import Figure, decode_figures, loop
from bench.frontends import DidNotStart
from bench.routing_cases import (
    CUT,
    MOCKERS,
    QUICK_CUT,
    TRACE_SPEEDUP,
    RouterCase,
    TraceCase,
    router_cases,
    trace_cases,
)
from bench.shelf import Settings, Shelf
from bench.trace_fleet import BLOCK_SIZE, MODEL, Arm, started
from bench.trace_replay import Replay, replay
from tests.interop.network_namespace import enter_network_namespace

MAX_ROUTER_CASE_S = 300
PINNED = "what is measured alone on core 0, its client on core 1; the trace on both, with everything that serves it"
TRACE_HELP = "conversation_trace.jsonl of github.com/kvcache-ai/Mooncake; without it no trace is replayed [BENCH_TRACE]"


def main() -> None:
    args = _parse()
    settings = Settings(commit(), QUICK_CUT if args.quick else CUT, MOCKERS, TRACE_SPEEDUP, args.quick)
    shelf = Shelf(args.out, settings)
    router = [case for case in router_cases(is_quick=args.quick) if _is_wanted(case.name, args.case)]
    arms = [case for case in _trace_cases(args) if _is_wanted(case.name, args.case)]
    if arms:
        check_anchor()  # the mockers are its
    if args.fresh:
        for name in [case.name for case in router] + [case.name for case in arms]:
            shelf.forget(name)
    num_failed = _measure_router(router, shelf)
    if arms:
        requests = trace.read(args.trace, settings.cut)
        num_failed += _replay_trace(arms, requests, shelf, settings, args.out)
        _draw(arms, requests, shelf, args.out)
    _report(router, arms, shelf, settings, args.out)
    sys.exit(f"bench: {num_failed} cases failed; the same command tries them again" if num_failed else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.routing", description="Measure the router, and replay a trace.")
    parser.add_argument("--trace", type=Path, default=os.environ.get("BENCH_TRACE"), help=TRACE_HELP)
    parser.add_argument("--case", action="append", default=[], help="only cases whose name holds this; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="of mode kv; the other modes are replayed once")
    parser.add_argument("--no-anchor", action="store_true", help="replay through our frontend only")
    parser.add_argument("--quick", action="store_true", help="everything once and short, to see that all works")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run has left")
    parser.add_argument("--out", type=Path, default=Path("bench/out/routing"))
    return parser.parse_args()


def _is_wanted(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


# ---- the router alone


def _measure_router(cases: Sequence[RouterCase], shelf: Shelf) -> int:
    """How many failed."""
    num_failed = 0
    for case in cases:
        if shelf.get(case.name) is None:
            try:
                figures = _figures(case)
            except (subprocess.SubprocessError, ValueError) as error:
                num_failed += 1
                _progress(f"{case.name}: {error}")
            else:
                shelf.put(case.name, figures=[*figures, loop()])
                _progress(f"{case.name}: " + ", ".join(f"{each.name} {each.value:,.4g}" for each in figures))
    return num_failed


def _figures(case: RouterCase) -> list[Figure]:
    pinning = [] if case.core is None else ["taskset", "-c", str(case.core)]
    argv = [*pinning, sys.executable, "-m", case.module, *case.flags]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=MAX_ROUTER_CASE_S)
    return decode_figures(done.stdout)


# ---- the trace


def _trace_cases(args: argparse.Namespace) -> Iterable[TraceCase]:
    num_rounds = 1 if args.quick else args.rounds
    return trace_cases(num_rounds, with_anchor=not args.no_anchor) if args.trace is not None else ()


def _replay_trace(
    cases: Sequence[TraceCase], requests: Sequence[trace.Request], shelf: Shelf, settings: Settings, out: Path
) -> int:
    """How many failed."""
    missing = [case for case in cases if shelf.get(case.name) is None]
    if not missing:
        return 0
    _leave_the_network()
    bodies = [trace.body(MODEL, request) for request in requests]
    num_failed = 0
    for case in missing:
        try:
            with started(case.arm, settings.mockers, out) as fleet:
                replayed = uvloop.run(replay(fleet, requests, bodies, settings.trace_speedup))
        except (DidNotStart, OSError) as error:
            num_failed += 1
            _progress(f"{case.name}: {error}")
        else:
            shelf.put(case.name, replay=replayed)
            _progress(f"{case.name}: {_brief(replayed)}")
    return num_failed


def _leave_the_network() -> None:
    """The mockers listen on every interface, whatever they are told."""
    try:
        enter_network_namespace()
    except OSError as error:
        sys.exit(f"bench: no network namespace ({error}); run as root, allow user namespaces, or leave out --trace")


def _brief(replayed: Replay) -> str:
    return (
        f"{replayed.cached_share:.2%} cached, TTFT {replayed.ttft_ms(0.5):.1f}/{replayed.ttft_ms(0.99):.1f} ms, "
        f"{len(replayed.errors)} errors {replayed.errors[:1] or ''}"
    )


# ---- the end


def _draw(cases: Sequence[TraceCase], requests: Sequence[trace.Request], shelf: Shelf, out: Path) -> None:
    if replays := _replays(cases, shelf):
        routing_plot.draw(replays, MOCKERS.num_workers, trace.reusable_share(requests), out / "routing.png")


def _report(
    router: Sequence[RouterCase], arms: Sequence[TraceCase], shelf: Shelf, settings: Settings, out: Path
) -> None:
    figures = {case.name: result.figures for case in router if (result := shelf.get(case.name)) is not None}
    described = about(pinned=PINNED, with_anchor=bool(arms)) | ({"trace": _trace_settings(settings)} if arms else {})
    report = routing_report.markdown(described, figures, _replays(arms, shelf), MOCKERS.num_workers)
    (out / "routing.md").write_text(report)
    print(report)
    _progress(f"kept as {out / 'routing.md'}{', routing.png' if arms else ''}")


def _replays(cases: Sequence[TraceCase], shelf: Shelf) -> dict[Arm, list[Replay]]:
    found: dict[Arm, list[Replay]] = {}
    for case in cases:
        if (result := shelf.get(case.name)) is not None and result.replay is not None:
            found.setdefault(case.arm, []).append(result.replay)
    return found


def _trace_settings(settings: Settings) -> str:
    cut, mockers = settings.cut, settings.mockers
    return (
        f"first {cut.num_requests:,} requests, prompts up to {cut.max_input_tokens:,} tokens, answers up to "
        f"{cut.max_output_tokens}, {settings.trace_speedup:g} times as fast; {mockers.num_workers} mockers "
        f"{mockers.speedup:g} times as fast as engines, {mockers.num_blocks:,} blocks of {BLOCK_SIZE} tokens each"
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
