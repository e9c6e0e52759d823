"""An acceptor over HTTP with its router and its only worker in the hands of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dynamo.shared.messages import Placed
from tests.support.raw_worker import RawWorker, raw_worker
from tests.support.scripted_router import ScriptedRouter
from tests.support.served_acceptor import DEMO_MODEL, MODEL, HttpAnswer, ServedAcceptor, demo_set, serve

CHAT = "/v1/chat/completions"
WORKER = 0x1F


class Stage:
    """An acceptor, the router it asks and the only worker there is."""

    def __init__(self, acceptor: ServedAcceptor, router: ScriptedRouter, worker: RawWorker) -> None:
        self.acceptor = acceptor
        self.router = router
        self.worker = worker

    async def ask(self, body: dict[str, Any], headers: dict[str, str] | None = None, path: str = CHAT) -> HttpAnswer:
        """The worker answers with three tokens, 16 of the prompt's in its cache."""
        asked = asyncio.create_task(self.acceptor.ask("POST", path, {"model": MODEL} | body, headers))
        call = await self.worker.next_call()
        call.ack()
        await call.call_home()
        call.prologue()
        call.tokens(300)
        call.tokens(301)
        usage = {"prompt_tokens": 60, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}}
        call.tokens(302, finish_reason="length", completion_usage=usage)
        call.complete()
        return await asked


@asynccontextmanager
async def open_stage(
    directory: Path, model: Path = DEMO_MODEL, model_type: str = "Chat | Completions", **options: Any
) -> AsyncIterator[Stage]:
    """The router places everything at the worker, until told otherwise. `options` are fields of FrontendConfig."""
    endpoint = f"ipc://{directory}/router.sock"
    async with raw_worker() as worker:
        router = ScriptedRouter(endpoint, [worker()], [demo_set([WORKER], model, model_type)])
        router.answer = lambda place: Placed(place.request_id, WORKER, "set", 0)
        async with serve(endpoint, directory, **options) as acceptor:
            yield Stage(acceptor, router, worker)
        router.channel.close()
