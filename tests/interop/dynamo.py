"""The real Dynamo, in the Python that `DYNAMO_ORACLE_PYTHON` names."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.server import START_TIMEOUT_S, free_port

ORACLE_PYTHON = os.environ.get("DYNAMO_ORACLE_PYTHON", "")

needs_dynamo = pytest.mark.skipif(not ORACLE_PYTHON, reason="DYNAMO_ORACLE_PYTHON names no Python with ai-dynamo 1.6.1")

ON_LOOPBACK = {
    "DYN_TCP_RPC_HOST": "127.0.0.1",
    "DYN_EVENT_PLANE_HOST": "127.0.0.1",
    "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    "DYN_SYSTEM_HOST": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def dynamo_frontend(store: dict[str, str], *flags: str) -> Iterator[str]:
    """Yields the base URL of a live frontend. `store` are the variables that say where workers are found."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, **ON_LOOPBACK, **store, "HOME": home}
        arguments = ("-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port), *flags)
        log = Path(home) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [ORACLE_PYTHON, *arguments], env=environment, cwd=home, stdout=output, stderr=output
            )
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: answers(f"{url}/live"), lambda: log.read_text(errors="replace"))
            yield url
        finally:
            process.terminate()
            process.wait(timeout=START_TIMEOUT_S)


def answers(url: str) -> bytes:
    """The body of a 200, else nothing."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bytes(response.read())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return b""


def until(condition: Callable[[], object], explain: Callable[[], str]) -> None:
    """Poll until the condition holds; fails with the explanation."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(explain())
        time.sleep(0.1)
