"""A real NATS server, with JetStream unless told otherwise."""

from __future__ import annotations

from tests.support.server import Server, free_port


class NatsServer(Server):
    program = "nats-server"

    def __init__(self, *flags: str, has_jetstream: bool = True) -> None:
        super().__init__()
        self._has_jetstream = has_jetstream
        self._port = free_port()
        self.flags = flags

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def arguments(self) -> list[str]:
        jetstream = ["--jetstream", f"--store_dir={self.directory / 'jetstream'}"] if self._has_jetstream else []
        return ["--addr=127.0.0.1", f"--port={self._port}", *jetstream, *self.flags]

    def is_ready(self, output: str) -> bool:
        return "Server is ready" in output
