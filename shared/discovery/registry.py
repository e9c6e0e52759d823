"""Discovery backends by name. A backend is imported when it is asked for: only `etcd` costs a process gRPC."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from dynamo.shared.discovery import Discovery, DiscoveryError


def _etcd(environ: Mapping[str, str]) -> Discovery:
    from dynamo.shared.discovery.etcd import EtcdDiscovery
    from dynamo.shared.discovery.etcd_config import EtcdConfig

    return EtcdDiscovery(EtcdConfig.load([], environ, prog="discovery in etcd")[0])


def _file(environ: Mapping[str, str]) -> Discovery:
    from dynamo.shared.discovery.file import FileDiscovery, default_root

    return FileDiscovery(default_root(environ))


def _mem(environ: Mapping[str, str]) -> Discovery:
    from dynamo.shared.discovery.mem import MemDiscovery

    return MemDiscovery()


BACKENDS: dict[str, Callable[[Mapping[str, str]], Discovery]] = {"etcd": _etcd, "file": _file, "mem": _mem}


def make_discovery(backend: str, environ: Mapping[str, str] = os.environ) -> Discovery:
    """The backend, not yet open. Raises DiscoveryError for a name that is not in `BACKENDS`."""
    try:
        make = BACKENDS[backend]
    except KeyError:
        raise DiscoveryError(f"discovery backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}") from None
    return make(environ)


@asynccontextmanager
async def open_discovery(backend: str, environ: Mapping[str, str] = os.environ) -> AsyncIterator[Discovery]:
    """The backend, open for the length of the block."""
    discovery = make_discovery(backend, environ)
    await discovery.open()
    try:
        yield discovery
    finally:
        await discovery.close()
