from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from dynamo.frontend.server import Limits, NativeServer, tls_context
from dynamo.frontend.server.granian import GranianServer
from tests.frontend.server.application import Application, render_error
from tests.frontend.server.raw_client import RawClient


@dataclass
class Served:
    """One server with its application and the clients of one test."""

    server: Any
    app: Application
    port: int
    clients: list[RawClient] = field(default_factory=list)

    async def connect(self, **options: Any) -> RawClient:
        client = await RawClient.connect(self.port, **options)
        self.clients.append(client)
        return client


Serve = Callable[..., Awaitable[Served]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The acceptors run on uvloop."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def loop_errors(caplog: pytest.LogCaptureFixture) -> Any:
    """Whatever a client does, nothing is raised into the loop."""
    yield
    assert not [record for record in caplog.get_records("call") if record.name == "asyncio"]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`serve(kind="native", **limits)` starts a server; it is closed after the test."""
    started: list[Served] = []

    async def start(kind: str = "native", tls: Any = None, **limits: Any) -> Served:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        app = Application()
        make: Any = NativeServer if kind == "native" else GranianServer
        server = make(app.handle, listener, Limits(**limits), render_error, *([tls] if tls else []))
        await server.start()
        served = Served(server, app, listener.getsockname()[1])
        started.append(served)
        return served

    yield start
    for served in started:
        for client in served.clients:
            await client.close()
        served.app.released.set()
        await served.server.close(grace_s=1.0)
        served.server._socket.close()


@dataclass(frozen=True)
class Certificate:
    cert_path: str
    key_path: str
    client_context: ssl.SSLContext

    def server_context(self) -> ssl.SSLContext:
        return tls_context(self.cert_path, self.key_path)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    directory: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = directory / "cert.pem", directory / "key.pem"
    leaf.private_key_pem.write_to_path(key)
    cert.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return Certificate(str(cert), str(key), context)
