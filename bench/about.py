"""On what machine and of what versions figures are."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from bench.frontends import anchor_python

OUR_PACKAGES = ("httptools", "uvloop", "msgspec", "pyzmq", "numpy", "fastokens", "tokenizers", "minijinja")
ANCHOR_PACKAGES = ("ai-dynamo", "ai-dynamo-runtime", "fastokens", "uvloop")


def about(*, pinned: str, with_anchor: bool) -> dict[str, str]:
    """`pinned` says what runs on which core. Ends the process where the anchor is wanted and is not there."""
    described = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{_cpu_model()}, {platform.system()} {platform.release()}",
        "pinned": pinned,
        "ours": f"commit {commit()}, Python {platform.python_version()}, {_versions(sys.executable, OUR_PACKAGES)}",
    }
    if with_anchor:
        check_anchor()
        described["anchor"] = _versions(anchor_python(), ANCHOR_PACKAGES)
    return described


def check_anchor() -> None:
    if shutil.which(anchor_python()) is None:
        sys.exit(
            f"bench: no interpreter at {anchor_python()}. Install ai-dynamo 1.6.1 in a venv of its own "
            "(bench/README.md), set DYNAMO_ORACLE_PYTHON to its python, or pass --no-anchor."
        )


def commit() -> str:
    result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _versions(python: str, packages: tuple[str, ...]) -> str:
    if python == sys.executable:
        return ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {packages!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
