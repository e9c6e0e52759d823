"""An acceptor between a scripted router and a worker that answers as the test says: everything can go wrong here."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from dynamo.shared.messages import Placed, Refused, Worker, WorkerSet
from tests.support.raw_worker import PATH, Call, RawWorker, raw_worker
from tests.support.scripted_router import ScriptedRouter
from tests.support.served_acceptor import MODEL, HttpAnswer, ServedAcceptor, demo_set, serve

CHAT = "/v1/chat/completions"
THRESHOLDS = "/v1/admin/busy_threshold"
ADMIN_KEY = "s3cret"
AUTHORIZED = {"authorization": f"Bearer {ADMIN_KEY}"}
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
GONE = 2
TOKENS = [1000, 1001]

Script: TypeAlias = Callable[[Call], Awaitable[None]]
"""What a worker does with a call that it has accepted."""


@dataclass
class ErrorStage:
    acceptor: ServedAcceptor
    router: ScriptedRouter
    worker: RawWorker
    directory: Path

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        return await self.acceptor.ask(method, path, body, headers)

    async def chat(
        self,
        script: Script | None = None,
        path: str = CHAT,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> HttpAnswer:
        """The answer to a question, for which the worker does what the script says; without one it is not asked."""
        asked = asyncio.create_task(self.ask("POST", path, QUESTION | fields, headers))
        if script is None:
            return await asked
        call = await self.worker.next_call()
        await script(call)
        return await asked

    def place_at(self, instance_id: int) -> None:
        self.router.answer = lambda place: Placed(place.request_id, instance_id, "set")

    def refuse(self, code: str) -> None:
        """What the router says from now on."""
        self.router.answer = lambda place: Refused(place.request_id, code, "The router says no.")

    async def raw(self, sent: bytes, *, then_shut: bool = False) -> HttpAnswer:
        """To bytes as they are, the answer until the server closes."""
        reader, writer = await asyncio.open_connection(*self.acceptor.address)
        try:
            writer.write(sent)
            if then_shut:
                writer.write_eof()
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return HttpAnswer(int(status.split()[1]), headers, body)

    @asynccontextmanager
    async def held(self, path: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[None]:
        """While a request whose body does not come is in flight."""
        _reader, writer = await asyncio.open_connection(*self.acceptor.address)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        writer.write(head_of(path, f"content-length: 10\r\n{lines}"))
        try:
            yield
        finally:
            writer.close()


@asynccontextmanager
async def error_stage(
    directory: Path, variants: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
) -> AsyncIterator[ErrorStage]:
    """`variants` are further models: by name, what their cards have that the first one's has not. `options` are of the
    frontend's config. All requests are placed at the worker 1; nobody listens where the worker GONE should be."""
    endpoint = f"ipc://{directory}/router.sock"
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(raw_worker())
        table = [Worker(1, worker.address, PATH, codec="msgpack"), Worker(GONE, "127.0.0.1:1", PATH, codec="msgpack")]
        sets = [demo_set([1]), *(_variant(name, card) for name, card in (variants or {}).items())]
        router = ScriptedRouter(endpoint, table, sets)
        stack.callback(router.channel.close)
        acceptor = await stack.enter_async_context(
            serve(endpoint, directory, admin_api_key=ADMIN_KEY, migration_limit=0, **options)
        )
        yield ErrorStage(acceptor, router, worker, directory)


def _variant(name: str, card: Mapping[str, Any]) -> WorkerSet:
    demo = demo_set([1])
    changed = json.loads(demo.card) | {"display_name": name} | card
    return msgspec.structs.replace(demo, key=name, model=name, mdcsum=name, card=msgspec.json.encode(changed))


def head_of(path: str, lines: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{lines}\r\n".encode()


# ---- scripts of a worker


def fails(error: Mapping[str, Any], *, after_tokens: bool = False) -> Script:
    """An error item, as the first one or after some tokens."""

    async def script(call: Call) -> None:
        await begin(call)
        if after_tokens:
            call.tokens(*TOKENS)
        call.item(event="error", error=error)

    return script


async def begin(call: Call) -> None:
    call.ack()
    await call.call_home()
    call.prologue()


async def completes(call: Call) -> None:
    await begin(call)
    call.tokens(*TOKENS, finish_reason="stop")
    call.complete()


async def silent(call: Call) -> None:
    await begin(call)


async def dies(call: Call) -> None:
    await begin(call)
    call.writer.transport.abort()


async def refuses(call: Call) -> None:
    call.ack()
    await call.call_home()
    call.prologue("the engine is not ready")


async def says_too_much(call: Call) -> None:
    await begin(call)
    with contextlib.suppress(ConnectionError):
        call.tokens(text="x" * 300_000)
        await call.writer.drain()
