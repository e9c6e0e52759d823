"""Command line of the comparison; prints the table and keeps it, with every sample, below `--out`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from bench import report
from bench.about import about
from bench.cases import CASES, Case
from bench.compare import FRONTEND_CORE, LOAD_CORE, Plan, Results, run
from bench.frontends import anchor, ours


def main() -> None:
    args = _parse()
    args.out.mkdir(parents=True, exist_ok=True)
    plan = _plan(args)
    pinned = f"frontend on core {FRONTEND_CORE}, worker and load generator on core {LOAD_CORE}"
    described = about(pinned=pinned, with_anchor=not args.no_anchor)
    results = uvloop.run(run(plan))
    _write(args.out, described, plan.cases, results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Compare our frontend with that of ai-dynamo 1.6.1.")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", default=[], help="only cases whose name holds this; may be repeated")
    parser.add_argument("--seconds-scale", type=float, default=1.0, help="stretch or shorten every case")
    parser.add_argument("--no-anchor", action="store_true", help="measure ours only")
    parser.add_argument("--no-ours", action="store_true", help="measure the anchor only")
    parser.add_argument("--no-footprint", action="store_true", help="leave out memory and start-up")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    return parser.parse_args()


def _plan(args: argparse.Namespace) -> Plan:
    mine = [] if args.no_ours else [ours()]
    anchors = [] if args.no_anchor else [anchor("default"), anchor("fastokens")]
    more_acceptors = [] if args.no_ours else [ours(2), ours(3)]
    return Plan(
        cases=[case for case in CASES if not args.case or any(part in case.name for part in args.case)],
        systems=[*mine, *anchors],
        footprint_systems=[] if args.no_footprint else [*mine, *anchors, *more_acceptors],
        out=args.out,
        rounds=1 if args.quick else args.rounds,
        seconds_scale=0.25 * args.seconds_scale if args.quick else args.seconds_scale,
        idle_s=2.0 if args.quick else 10.0,
    )


def _write(out: Path, described: dict[str, str], cases: Sequence[Case], results: Results) -> None:
    table = report.markdown(described, cases, results)
    stem = time.strftime("compare-%Y%m%d-%H%M%S", time.gmtime())
    (out / f"{stem}.md").write_text(table)
    (out / f"{stem}.json").write_text(report.as_json(described, results))
    print(table)
    print(f"kept as {out / stem}.md and .json", file=sys.stderr)
