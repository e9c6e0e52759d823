"""The results as a Markdown table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cases import Case
from bench.compare import Footprint, Results

DISTURBED_SHARE = 0.05
MEMORY_FIGURES = (
    ("RSS MB, started", "started.rss_mb"),
    ("RSS MB, after load", "loaded.rss_mb"),
    ("PSS MB, after load", "loaded.pss_mb"),
)
START_FIGURE = ("start-up s", "start_s", None)
HEADER = ("case", "figure", "anchor's tokenizer", "ours", "anchor", "ours/anchor", "bar")


@dataclass(frozen=True)
class Row:
    """One figure of ours against one anchor; None where it was not measured."""

    case: str
    figure: str
    tokenizer: str
    ours: float | None
    anchor: float | None
    bar: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.anchor if self.ours is not None and self.anchor else None


def markdown(about: Mapping[str, str], cases: Sequence[Case], results: Results) -> str:
    rows = [*case_rows(cases, results), *footprint_rows(results), *idle_rows(results)]
    lines = [*(f"- {name}: {value}" for name, value in about.items()), f"- {_disturbance(results)}", ""]
    lines += [_line(HEADER), _line(("---", "---", "---", "--:", "--:", "--:", "--:"))]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def as_json(about: Mapping[str, str], results: Results) -> str:
    samples = [
        {"case": case, "system": system, "samples": [dataclasses.asdict(sample) for sample in samples]}
        for (case, system), samples in results.samples.items()
    ]
    footprints = {
        name: [dataclasses.asdict(footprint) for footprint in all] for name, all in results.footprints.items()
    }
    document: dict[str, Any] = {
        "about": dict(about),
        "samples": samples,
        "idle_shares": results.idle_shares,
        "footprints": footprints,
    }
    return json.dumps(document, indent=1)


def case_rows(cases: Sequence[Case], results: Results) -> list[Row]:
    def median(case: Case, system: str, name: str) -> float | None:
        return _median([getattr(sample, name) for sample in results.samples.get((case.name, system), ())])

    return [
        Row(
            case.name,
            figure.label,
            tokenizer,
            median(case, "ours", figure.name),
            median(case, f"anchor, {tokenizer}", figure.name),
            figure.bars.get(tokenizer),
        )
        for case in cases
        for tokenizer in case.tokenizers
        for figure in case.figures
    ]


def footprint_rows(results: Results) -> list[Row]:
    def median(system: str, name: str) -> float | None:
        return _median([_deep(footprint, name) for footprint in results.footprints.get(system, ())])

    rows = [
        Row("one acceptor", label, tokenizer, median("ours", name), median(f"anchor, {tokenizer}", name), bar)
        for tokenizer in ("default", "fastokens")
        for label, name, bar in (*((label, name, 1.0) for label, name in MEMORY_FIGURES), START_FIGURE)
    ]
    further = "each further acceptor (bar: 150 MB)"
    return rows + [Row(further, label, "", _slope(results.footprints, name), None) for label, name in MEMORY_FIGURES]


def idle_rows(results: Results) -> list[Row]:
    def percent(system: str) -> float | None:
        share = _median(results.idle_shares.get(system, ()))
        return None if share is None else 100 * share

    return [Row("idle", "% of a core", "default", percent("ours"), percent("anchor, default"))]


def _slope(footprints: Mapping[str, Sequence[Footprint]], name: str) -> float | None:
    """Memory that one more acceptor costs, between one acceptor and the most that were measured."""
    by_count = {
        1 if system == "ours" else int(system.removeprefix("ours, ")): statistics.median(_deep(f, name) for f in all)
        for system, all in footprints.items()
        if system.startswith("ours")
    }
    most = max(by_count, default=1)
    return (by_count[most] - by_count[1]) / (most - 1) if most > 1 else None


def _deep(footprint: Footprint, name: str) -> float:
    value: float = operator.attrgetter(name)(footprint)
    return value


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _disturbance(results: Results) -> str:
    shares = [sample.foreign_share for samples in results.samples.values() for sample in samples]
    disturbed = sum(share > DISTURBED_SHARE for share in shares)
    return (
        f"disturbance: in {disturbed} of {len(shares)} runs other processes used over {DISTURBED_SHARE:.0%} of a core"
    )


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (_number(row.ours), _number(row.anchor), _ratio(row.ratio), _ratio(row.bar))
    return (row.case, row.figure, row.tokenizer, *numbers)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
