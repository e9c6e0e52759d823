"""`dynamo-router`: alone, or as the child of a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import setproctitle
import uvloop

from dynamo.router.config import RouterConfig
from dynamo.router.metrics_server import MetricsServer
from dynamo.router.server import RouterServer
from dynamo.shared.config import ConfigError
from dynamo.shared.discovery import DiscoveryError
from dynamo.shared.discovery.registry import open_discovery
from dynamo.shared.log import configure_logging
from dynamo.shared.metrics import render

log = logging.getLogger("dynamo.router")

PROG = "dynamo-router"
MAX_CONFIG_LINE = 1 << 20  # bytes


def main() -> None:
    if sys.argv[1:2] == ["replay"]:
        from dynamo.router import replay  # with numpy

        replay.main(sys.argv[2:])
        return
    setproctitle.setproctitle("dynamo::router")
    try:
        configure_logging("router")
        uvloop.run(run(load_config(sys.argv[1:])))
    except (ConfigError, DiscoveryError, OSError) as error:
        sys.exit(f"{PROG}: {error}")


def load_config(argv: list[str]) -> RouterConfig:
    """Flags over variables over defaults; over all of them a line on stdin, if the flags ask for it."""
    config, _ = RouterConfig.load(argv, prog=PROG, description="Place requests on workers, for one or more frontends.")
    if config.config_stdin:
        config = config.updated(sys.stdin.buffer.readline(MAX_CONFIG_LINE))
    return config.settled()


async def run(config: RouterConfig) -> None:
    """Until a signal, or until stdin ends where it carried the options."""
    serving = asyncio.create_task(serve(config))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    if config.config_stdin:
        _cancel_at_end_of_stdin(serving)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def serve(config: RouterConfig) -> None:
    with _metrics_directory(config) as directory:
        async with open_discovery(config.discovery_backend) as discovery:
            server = RouterServer(config, discovery, directory)
            async with _metrics_port(config, server, directory):
                await server.serve(lambda: _on_ready(config.ready_fd))


@contextlib.contextmanager
def _metrics_directory(config: RouterConfig) -> Iterator[Path | None]:
    """A supervisor names the one that its acceptors read. Alone, there are only our own metrics, if anybody may ask."""
    if directory := os.environ.get("DYN_METRICS_DIR"):
        yield Path(directory)
    elif config.metrics_port is None:
        yield None
    else:
        with tempfile.TemporaryDirectory(prefix="dynamo-router-") as made:
            yield Path(made)


@contextlib.asynccontextmanager
async def _metrics_port(config: RouterConfig, server: RouterServer, directory: Path | None) -> AsyncIterator[None]:
    if config.metrics_port is None or directory is None:
        yield
        return

    def metrics() -> bytes:
        server.save_metrics()
        return render(directory)

    listening = MetricsServer(metrics, server.health)
    await listening.open(config.metrics_host, config.metrics_port)
    try:
        yield
    finally:
        listening.close()


def _cancel_at_end_of_stdin(serving: asyncio.Task[None]) -> None:
    """Its writer is our parent, who has nothing more to say: readable means that it is gone."""
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def on_readable() -> None:
        loop.remove_reader(stdin)
        serving.cancel()

    loop.add_reader(stdin, on_readable)


def _on_ready(ready_fd: int | None) -> None:
    gc.collect()
    gc.freeze()
    if ready_fd is not None:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
