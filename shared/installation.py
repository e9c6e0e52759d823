"""Whose `dynamo.*` packages are these? `ai-dynamo` ships folders of the same names; an environment has room for one.

Installed beside our wheel, the two overwrite each other's files; beside an editable install theirs win silently.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGES = ("frontend", "router", "shared", "worker")
ROOT = Path(__file__).resolve().parent.parent


def find_conflict() -> str | None:
    """What is wrong with this installation and what to do; None when it is sound."""
    advice = "install ai-dynamo and dynamo-gateway into separate virtual environments"
    for name in PACKAGES:
        spec = importlib.util.find_spec(f"dynamo.{name}")
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != ROOT / name / "__init__.py":
            return f"dynamo.{name} is not ours but comes from {origin or 'nowhere'}: {advice}"
    if any(ROOT.parent.glob("ai_dynamo-*.dist-info")):
        return f"ai-dynamo is installed in {ROOT.parent} too and overwrites our files there: {advice}"
    return None


def require_sound_installation() -> None:
    if problem := find_conflict():
        sys.exit(f"dynamo-gateway: {problem}")


# The console scripts start here and not in the packages they run: those may not be ours, this one is in any case.


def run_frontend() -> None:
    _run("frontend")


def run_router() -> None:
    _run("router")


def run_worker() -> None:
    _run("worker")


def _run(package: str) -> None:
    require_sound_installation()
    importlib.import_module(f"dynamo.{package}.main").main()
