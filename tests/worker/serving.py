"""Endpoints served by this process, for the length of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from dynamo.shared.runtime import DistributedRuntime
from dynamo.shared.serving_config import ServingConfig

ENDPOINT = "demo.backend.generate"


@asynccontextmanager
async def serving(handler: Callable[..., Any], **config: Any) -> AsyncIterator[tuple[DistributedRuntime, str]]:
    """Yields the runtime and the target to ask."""
    runtime = DistributedRuntime(config=ServingConfig(discovery_backend="mem", **config))
    endpoint = runtime.endpoint(ENDPOINT)
    await endpoint.open(handler)
    try:
        yield runtime, endpoint.target
    finally:
        await runtime.wait_closed()
