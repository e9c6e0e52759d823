"""`make docs`: writes docs/cli.md from the config objects, the only source of flags, variables and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamo.frontend.config import FrontendConfig
from dynamo.router.config import RouterConfig
from dynamo.shared.config import Config, Option, flags_of
from dynamo.shared.log import LogOptions
from dynamo.worker.config import WorkerConfig

TARGET = Path(__file__).parent / "cli.md"
INTRODUCTION = """# Flags and variables

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


def render() -> str:
    return INTRODUCTION + "".join(_section(*program) for program in PROGRAMS)


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
    package_root = str(TARGET.parent.parent)
    return f"`{str(default).removeprefix(package_root).lstrip('/')}`"


if __name__ == "__main__":
    TARGET.write_text(render())
