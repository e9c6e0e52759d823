"""A real nats-server."""

from __future__ import annotations

from tests.support.server import Server, free_port


class NatsServer(Server):
    program = "nats-server"

    def __init__(self, *, jetstream: bool = False) -> None:
        super().__init__()
        self._port = free_port()
        self._jetstream = jetstream

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def arguments(self) -> list[str]:
        storage = ["--jetstream", f"--store_dir={self.directory / 'jetstream'}"] if self._jetstream else []
        return ["--addr=127.0.0.1", f"--port={self._port}", *storage]

    def is_ready(self, output: str) -> bool:
        return "Server is ready" in output
