"""`make docs`: writes docs/cli.md from the config objects, the only source of flags, variables and defaults,
docs/metrics.md from the metrics that processes register, docs/openai-compatibility.md from the tables that requests are
checked by, docs/headers.md from that of request headers, docs/errors.md from the classes of errors, and
docs/parser-names.md from the parsers' own words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from dynamo.frontend.anthropic import MESSAGES
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.embedding_requests import EMBEDDINGS
from dynamo.frontend.metric_families import Families
from dynamo.frontend.openai_compatibility import APIS, OPENAI_API, Api
from dynamo.frontend.parsers import reasoning, tools
from dynamo.frontend.parsers.reasoning import REASONING_PARSERS, delimited
from dynamo.frontend.parsers.reasoning.delimited import DelimitedFormat
from dynamo.frontend.parsers.reasoning.delimited_families import DELIMITED_FAMILIES
from dynamo.frontend.parsers.reasoning.start import Start
from dynamo.frontend.parsers.tools import TOOL_PARSERS
from dynamo.frontend.request_headers import HEADERS
from dynamo.frontend.responses import RESPONSES
from dynamo.router.config import RouterConfig
from dynamo.router.metrics import RouterMetrics
from dynamo.shared.config import Config, Option, flags_of
from dynamo.shared.errors import Entry, catalogue
from dynamo.shared.log import LogOptions
from dynamo.shared.metrics import MAX_LABEL_SETS, Distribution, Family, Registry, Value
from dynamo.shared.statuses import names_of
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
ABOUT_COMPATIBILITY = f"""# What becomes of each field of a request

Written by `make docs` from the tables that requests are checked by; do not edit.

OpenAI's API is meant as of {OPENAI_API}; beside it stand the fields of
Dynamo 1.6.1 and those that vLLM adds, and Anthropic's API. A test sends each field and looks for what its row says.

- *honoured*: this gateway does it, or what it takes to have it done.
- *forwarded*: the worker is told; its engine does it or not.
- *refused*: a 400 that names the field, for the answer would be one to another question.
- *no effect*: accepted, and changes no token.

A field of a body that is in none of these tables is unknown: `--unknown-fields` says what becomes of it. An unknown
field of `nvext` or `structured_outputs` is always refused; in other objects of a body it has no effect. Null is the
same as leaving a field out.
"""
ABOUT_ERRORS = """# Errors

Written by `make docs` from the classes of errors; do not edit.

Every error of every route is JSON, in the form that the route's clients read, with the request's id in the header
`x-request-id`:

- OpenAI's, the usual one: `{"error": {"message", "type", "param", "code"}}`. `param` is the path of the field at fault,
  as in `messages[0].content`, or null.
- Dynamo's, with `--error-format dynamo`: `{"message", "type", "code"}`, the type being the phrase of the status and the
  code its number.
- Anthropic's, at `/v1/messages` and below: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

A stream waits for its first token before it is answered 200, so that an error until then is a status as well;
`--pre-commit-error-peek-ms` says for how long, and a keep-alive comment that is due ends it too. An error after that is
the last frame of the stream: `data:` with the same body, in Anthropic's form as an `event: error`. A stream of
responses has an `error` event, then `response.failed`. `[DONE]` does not follow, but in Dynamo's form, which has it.

Of what a worker says, a 4xx is passed on in its own words, and 503 and 529 as they are; any other failure of its own is
a 500 without details but `details.backend_status`. Where the log has more than the client is told, the message names
the request's id. Where *retry* says so, the same request may be sent again, after as many seconds as the header
`retry-after` says. `--overload-status-code` stands for 529.

| Code | Status | Retry | OpenAI's type | Anthropic's type | gRPC | Meaning |
|---|---|---|---|---|---|---|
"""
ABOUT_HEADERS = """# What becomes of each header of a request

Written by `make docs` from one table in the code; do not edit. The words are those of
[the table of fields](openai-compatibility.md).

A header goes before the field of the body that means the same. Where a row has several names for one thing, the first
that is sent counts. One that must be a number, a UUID or a yes or no and is none is refused with a 400 that names it.
`--disable-frontend-nvext` ignores those that pin a request to workers or rank it. Headers that are not here have no
effect.

| Header | | |
|---|---|---|
"""
ABOUT_PARSERS = """# Parsers by name

Written by `make docs` from the parsers; do not edit. [Parsers](parsers.md) says how a model gets one.
"""
ABOUT_DELIMITED = """
The last three columns say how an answer starts where the prompt does not show it: if the request says nothing of
thinking, asks for it, or asks for none. *thought*: all is thought up to the closing marker; *marked*: thought begins
with the opening marker; *content*: there is no thought, whatever stands there.

| Names | Opens | Closes | Unsaid | Asked for | Not asked for |
|---|---|---|---|---|---|
"""
STARTS = {Start.THINKING: "thought", Start.LOOKING: "marked", Start.OFF: "content"}
PREFIX = "dynamo_frontend"


def documents() -> dict[str, str]:
    """By file name."""
    return {
        "cli.md": _cli(),
        "metrics.md": _metrics(),
        "openai-compatibility.md": _compatibility(),
        "errors.md": _errors(),
        "headers.md": _headers(),
        "parser-names.md": _parsers(),
    }


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


# ---- what becomes of a request's fields


def _compatibility() -> str:
    return ABOUT_COMPATIBILITY + "".join(_api(api) for api in (*APIS, RESPONSES, EMBEDDINGS, MESSAGES))


def _api(api: Api) -> str:
    rows = [f"| `{name}` | {row.fate} | {row.about} |" for name, row in sorted(api.rows.items())]
    return f"\n## {api.title}\n\n| Field | | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


# ---- headers


def _headers() -> str:
    return ABOUT_HEADERS + "".join(
        f"| {'<br>'.join(f'`{name}`' for name in names)} | {row.fate} | {row.about} |\n"
        for names, row in HEADERS.items()
    )


# ---- errors


def _errors() -> str:
    return ABOUT_ERRORS + "".join(_error(entry) for entry in catalogue())


def _error(entry: Entry) -> str:
    names = names_of(entry.status)
    retry = "yes" if entry.is_retryable else ""
    kinds = f"`{names.openai}` | `{names.anthropic}` | `{names.grpc}`"
    return f"| `{entry.code}` | {entry.status} | {retry} | {kinds} | {entry.meaning} |\n"


# ---- parsers


def _parsers() -> str:
    calls = "".join(_formats(tools, TOOL_PARSERS))
    others = {name: parser for name, parser in REASONING_PARSERS.items() if name not in DELIMITED_FAMILIES}
    thought = f"\n{_about(delimited)}{ABOUT_DELIMITED}{_delimited()}" + "".join(_formats(reasoning, others))
    return f"{ABOUT_PARSERS}\n## Tool calls\n{calls}\n## Reasoning\n{thought}"


def _formats(package: ModuleType, parsers: Mapping[str, Any]) -> Iterator[str]:
    """What each module says of itself, under the names of its parsers."""
    undescribed = set(parsers)
    for info in iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        values = [each for value in vars(module).values() for each in _flat(value)]
        names = [name for name in sorted(undescribed) if any(parsers[name] is each for each in values)]
        undescribed.difference_update(names)
        if names:
            yield f"\n### {_code(names)}\n\n{_about(module)}"
    assert not undescribed, undescribed


def _about(module: ModuleType) -> str:
    return cleandoc(module.__doc__ or "") + "\n"


def _flat(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _delimited() -> str:
    names: dict[int, list[str]] = {}
    for name, factory in sorted(DELIMITED_FAMILIES.items()):
        names.setdefault(id(factory), []).append(name)
    return "".join(_delimited_row(aliases) for aliases in names.values())


def _delimited_row(names: list[str]) -> str:
    factory: Any = DELIMITED_FAMILIES[names[0]]
    form: DelimitedFormat = factory.args[0]
    rule = form.rule
    starts = " | ".join(STARTS[each] for each in (rule.unsaid, rule.wanted, rule.unwanted))
    return f"| {_code(names)} | {_code(form.openers)} | {_code(form.closers)} | {starts} |\n"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names).replace("|", "\\|")


if __name__ == "__main__":
    for name, text in documents().items():
        (DOCS / name).write_text(text)
