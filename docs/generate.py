"""`make docs`: writes docs/cli.md from the config objects, the only source of flags, variables and defaults, and
docs/metrics.md from the metrics that processes register."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.metric_families import Families
from dynamo.router.config import RouterConfig
from dynamo.router.metrics import RouterMetrics
from dynamo.shared.config import Config, Option, flags_of
from dynamo.shared.log import LogOptions
from dynamo.shared.metrics import MAX_LABEL_SETS, Distribution, Family, Registry, Value
from dynamo.worker.config import WorkerConfig

DOCS = Path(__file__).parent
ABOUT_FLAGS = """# Flags and variables

Written by `make docs` from the config objects; do not edit.

A value comes from the flag, else from the first variable that is set and not empty, else it is the default. Flags may
be written with underscores. A switch has a `--no-` twin. `None` switches off what has no default.
"""
PROGRAMS: list[tuple[str, str, type[Config]]] = [
    (
        "dynamo-frontend",
        "The gateway: `python -m dynamo.frontend` is the same. Options from `--kv-cache-block-size` on are those of\n"
        "[routing](routing.md). Start-up names those that are set and have no effect.",
        FrontendConfig,
    ),
    ("dynamo-router", "The router alone: `python -m dynamo.router` is the same.", RouterConfig),
    ("dynamo-worker", "A built-in engine: `python -m dynamo.worker` is the same.", WorkerConfig),
    ("Logs of all of them", "Variables only.", LogOptions),
]
ABOUT_METRICS = f"""# Metrics

Written by `make docs` from what processes register; do not edit.

A frontend's `/metrics` tells of all its acceptors and of its router together: counters and histograms add up, and go on
when a process is replaced. A router that runs alone has a `/metrics` of its own (`--metrics-port`). Names below that
begin with `dynamo_frontend_` begin with `--metrics-prefix` instead if that is set. Names that Dynamo 1.6.1 has too keep
its meaning and its labels; its counter without `_total` is untyped here, for Prometheus' text has no such counters.

Numbers are at most a second old. Each metric has at most {MAX_LABEL_SETS} sets of labels; what exceeds them is added up
under the label `other`. Workers that are gone take their gauges along.
"""
PREFIX = "dynamo_frontend"


def documents() -> dict[str, str]:
    """By file name."""
    return {"cli.md": _cli(), "metrics.md": _metrics()}


# ---- flags


def _cli() -> str:
    return ABOUT_FLAGS + "".join(_section(*program) for program in PROGRAMS)


def _section(title: str, about: str, config: type[Config]) -> str:
    has_flags = config is not LogOptions
    rows = [_row(name, field.default, opt, has_flags) for name, (field, opt, _kind) in config.options().items()]
    names = "Flag | Variable" if has_flags else "Variable"
    rule = "|---" * (names.count("|") + 3) + "|"
    return f"\n## {title}\n\n{about}\n\n| {names} | Default | Meaning |\n{rule}\n" + "\n".join(rows) + "\n"


def _row(name: str, default: Any, opt: Option, has_flags: bool) -> str:
    flags = "<br>".join(f"`{flag}`" for flag in flags_of(name, opt))
    variables = "<br>".join(f"`{variable}`" for variable in opt.env)
    choices = f" One of {', '.join(opt.choices)}." if opt.choices else ""
    cells = [*([flags] if has_flags else []), variables, _shown(default), opt.help + choices]
    return "| " + " | ".join(cells) + " |"


def _shown(default: Any) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return "on" if default else "off"
    package_root = str(DOCS.parent)
    return f"`{str(default).removeprefix(package_root).lstrip('/')}`"


# ---- metrics


def _metrics() -> str:
    acceptor, router = Registry(DOCS, "acceptor"), Registry(DOCS, "router")
    Families(acceptor, PREFIX)
    RouterMetrics(router, PREFIX, "replica")
    return ABOUT_METRICS + _families("Acceptors", acceptor) + _families("Router", router)


def _families(title: str, registry: Registry) -> str:
    rows = [_family(family) for family in sorted(registry, key=lambda each: each.name)]
    return f"\n## {title}\n\n| Name | Type | Labels | Meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _family(family: Family[Value] | Family[Distribution]) -> str:
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in family.label_names)
    buckets = f" Buckets from {family.bounds[0]:g} to {family.bounds[-1]:g}." if family.bounds else ""
    return f"| `{name}` | {family.kind} | {labels} | {family.help}{buckets} |"


if __name__ == "__main__":
    for name, text in documents().items():
        (DOCS / name).write_text(text)
