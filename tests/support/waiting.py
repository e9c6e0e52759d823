"""Waiting for what no event tells: poll, and fail with what was waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 60.0  # bounds a failure
INTERVAL_S = 0.02


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(INTERVAL_S)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """The same for a test that has nothing else to do meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(INTERVAL_S)
