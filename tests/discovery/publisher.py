"""A process that publishes one instance and stays: `publisher.py etcd|file <TTL in seconds>`; prints its lease id."""

from __future__ import annotations

import asyncio
import os
import sys

from dynamo.shared.discovery import INSTANCES, Discovery
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.discovery.registry import make_discovery


def discovery_of(backend: str, ttl_s: str) -> Discovery:
    if backend == "file":
        return FileDiscovery(ttl_s=float(ttl_s))
    return make_discovery(backend, {**os.environ, "ETCD_LEASE_TTL": ttl_s})


async def main(backend: str, ttl_s: str) -> None:
    discovery = discovery_of(backend, ttl_s)
    await discovery.open()
    await discovery.publish(INSTANCES, "demo/backend/generate/1", b"alive")
    print(f"{discovery.lease_id:x}", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
