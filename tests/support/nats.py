"""A real NATS server, with JetStream."""

from __future__ import annotations

from tests.support.server import Server, free_port


class NatsServer(Server):
    program = "nats-server"

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self._port = free_port()
        self.flags = flags

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def arguments(self) -> list[str]:
        store = self.directory / "jetstream"
        return ["--addr=127.0.0.1", f"--port={self._port}", "--jetstream", f"--store_dir={store}", *self.flags]

    def is_ready(self, output: str) -> bool:
        return "Server is ready" in output
