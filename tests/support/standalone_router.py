"""`dynamo-router` by itself, on ports of its own, in a store of files."""

from __future__ import annotations

import http.client
import os
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from tests.support.fleet import Metrics, get
from tests.support.server import Server, free_port
from tests.support.waiting import PATIENCE_S


def store_in(directory: Path) -> dict[str, str]:
    """The variables by which routers, frontends and workers find each other."""
    return {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": os.fspath(directory / "store"),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    }


class StandaloneRouter(Server):
    """It keeps its ports when it is started again."""

    program = "dynamo-router"

    def __init__(self, store: Mapping[str, str], *flags: str) -> None:
        super().__init__()
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.metrics_port = free_port()
        self._environment = dict(store)
        self._flags = flags

    def arguments(self) -> list[str]:
        return [
            f"--bind={self.address}",
            "--metrics-host=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            f"--discovery-backend={self._environment['DYN_DISCOVERY_BACKEND']}",
            *self._flags,
        ]

    def environment(self) -> dict[str, str]:
        return self._environment

    def is_ready(self, output: str) -> bool:
        return re.search("routing to [0-9]+ workers", output) is not None and self.get("/health")[0] == 200

    def close(self) -> None:
        self.stop()
        super().close()

    def get(self, path: str) -> tuple[int, bytes]:
        """Status 0: nobody answers."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=PATIENCE_S)) as connection:
            try:
                return get(connection, path)
            except OSError:
                return 0, b""

    def metrics(self) -> Metrics:
        return Metrics(self.get("/metrics")[1])

    def running(self) -> dict[str, int]:
        """Requests per worker."""
        return self.metrics().by_label("dynamo_router_active_requests", "worker")
