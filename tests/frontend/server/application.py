"""A small application for servers under test: each path is one behaviour, and the test sees what the handler saw."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from dynamo.frontend.server import Exchange
from dynamo.shared.errors import ClientDisconnected, DynamoError, RouteNotFound

TEXT = b"content-type: text/plain\r\nx-request-id: test\r\n"
BLOCK = b"x" * 32 * 1024


def render_error(path: str, error: DynamoError, request_id: str) -> bytes:
    return json.dumps({"error": {"message": error.message, "code": error.code}}).encode()


@dataclass
class Application:
    num_entered: int = 0
    num_left: int = 0
    num_disconnects: int = 0
    max_unsent: int = 0
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    unwritable: asyncio.Event = field(default_factory=asyncio.Event)
    body_error: DynamoError | None = None

    async def handle(self, exchange: Exchange) -> None:
        self.num_entered += 1
        exchange.on_disconnect = self._note_disconnect
        self.entered.set()
        try:
            await self._behave(exchange)
        except DynamoError as error:
            self.body_error = error
            raise
        finally:
            self.num_left += 1
            self.left.set()

    def _note_disconnect(self) -> None:
        self.num_disconnects += 1
        self.disconnected.set()

    async def _behave(self, exchange: Exchange) -> None:
        match exchange.path:
            case "/echo":
                await self._echo(exchange)
            case "/early":
                exchange.respond(200, TEXT, b"early")
            case "/hold":
                await self.released.wait()
                exchange.respond(200, TEXT, b"held")
            case "/wait":
                await self.disconnected.wait()
            case "/stream":
                exchange.start(200, TEXT)
                for part in (b"one ", b"two ", b"", b"three"):
                    exchange.write(part)
                    await asyncio.sleep(0)
                exchange.finish()
            case "/flood":
                await self._flood(exchange)
            case "/abort":
                exchange.start(200, TEXT)
                exchange.write(b"half")
                await self.released.wait()
                exchange.abort()
            case "/empty":
                exchange.respond(204, TEXT)
            case "/big":
                exchange.respond(200, TEXT, BLOCK * 64)
            case "/flood-of-several":
                await self._flood_of_several(exchange)
            case "/crash":
                raise ZeroDivisionError
            case "/silent":
                pass
            case _:
                raise RouteNotFound(f"No route for {exchange.path}")

    async def _echo(self, exchange: Exchange) -> None:
        body = await exchange.read_body()
        seen = {
            "method": exchange.method,
            "path": exchange.path,
            "query": exchange.query,
            "version": exchange.http_version,
            "scheme": exchange.scheme,
            "note": exchange.header("x-note"),
            "marked": exchange.headers_starting((b"x-mark-", b"x-tag")),
            "host": exchange.header("host"),
            "body": body.decode("latin-1"),
        }
        exchange.respond(200, TEXT, json.dumps(seen).encode())

    async def _flood_of_several(self, exchange: Exchange) -> None:
        """Three writers of one answer, as the choices of one request are; each writes what fills the buffer, twice."""

        async def write() -> None:
            for _ in range(2):
                exchange.write(BLOCK * 64)
                self.unwritable.set()
                await exchange.drain()

        exchange.start(200, TEXT)
        await asyncio.gather(*(write() for _ in range(3)))
        exchange.finish()

    async def _flood(self, exchange: Exchange) -> None:
        """As much as the client takes, never more than the server wants to hold."""
        exchange.start(200, TEXT)
        try:
            while not self.released.is_set():
                exchange.write(BLOCK)
                if not exchange.is_writable:
                    self.unwritable.set()
                    await exchange.drain()
                await asyncio.sleep(0)
        except ClientDisconnected:
            return
        exchange.finish()
