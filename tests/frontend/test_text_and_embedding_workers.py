"""Workers that take text and workers that embed, where they fail: what is asked of the next one, and what clients see.

The router and every byte of the workers are the test's; the acceptor between them is real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.shared.messages import Free, Place, Placed, Settings, Worker, WorkerSet
from tests.support.raw_worker import PATH, Call, RawWorker, raw_worker
from tests.support.scripted_router import ScriptedRouter
from tests.support.served_acceptor import HttpAnswer, ServedAcceptor, demo_set, serve
from tests.support.waiting import until

TEXT, VECTORS = "text", "vectors"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
ZEROS = "AAAAAAAAAAA="


def set_of(name: str, **fields: Any) -> WorkerSet:
    """Two workers; a card that takes text names no file at all."""
    demo = demo_set([1, 2])
    card = msgspec.json.decode(demo.card) if fields.get("model_input") != "Text" else {}
    encoded = msgspec.json.encode(card | {"display_name": name} | fields)
    return WorkerSet(name, name, "ns", "backend", "generate", "aggregated", name, encoded, [1, 2])


class Gateway:
    def __init__(self, acceptor: ServedAcceptor, router: ScriptedRouter, workers: list[RawWorker]) -> None:
        self.router = router
        self._acceptor = acceptor
        self._workers = workers

    def ask(self, path: str, **body: Any) -> asyncio.Task[HttpAnswer]:
        return asyncio.create_task(self._acceptor.ask("POST", path, body))

    def chat(self, **fields: Any) -> asyncio.Task[HttpAnswer]:
        return self.ask(CHAT, model=TEXT, messages=MESSAGES, **fields)

    def embed(self, **fields: Any) -> asyncio.Task[HttpAnswer]:
        return self.ask("/v1/embeddings", **{"model": VECTORS, "input": "hi"} | fields)

    async def called(self, instance_id: int) -> Call:
        call = await self._workers[instance_id - 1].next_call()
        call.ack()
        await call.call_home()
        call.prologue()
        return call

    @property
    def places(self) -> list[Place]:
        return [message for message in self.router.heard if isinstance(message, Place)]

    async def is_freed(self) -> None:
        await until(lambda: sum(isinstance(message, Free) for message in self.router.heard) == len(self.places))


@asynccontextmanager
async def gateway(directory: Path, **options: Any) -> AsyncIterator[Gateway]:
    """The router wants hashes of prompts' blocks, and hands out worker 1 and then 2."""
    endpoint = f"ipc://{directory}/router.sock"
    sets = [set_of(TEXT, model_input="Text", model_type="Chat | Completions"), set_of(VECTORS, model_type="Embedding")]
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(raw_worker()) for _ in range(2)]
        table = [Worker(i, worker.address, PATH, codec="msgpack") for i, worker in enumerate(workers, 1)]
        router = ScriptedRouter(endpoint, table, sets, Settings(needs_block_hashes=True))
        stack.callback(router.channel.close)
        router.answer = lambda place: Placed(place.request_id, 2 if 1 in place.excluded else 1, place.model)
        yield Gateway(await stack.enter_async_context(serve(endpoint, directory, **options)), router, workers)


def chunk(content: str, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}]} | more


def embeddings(*vectors: str) -> dict[str, Any]:
    return {"embeddings": list(vectors), "prompt_tokens": 1, "total_tokens": 1}


def die(call: Call) -> None:
    call.writer.transport.abort()


def content_of(answer: HttpAnswer) -> str:
    return str(answer.json["choices"][0]["message"]["content"])


async def test_a_chat_that_has_not_begun_moves_to_another_worker(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.chat(max_tokens=9)
        first = await gate.called(1)
        die(first)
        second = await gate.called(2)
        second.item(data=chunk("hello", "stop"))
        second.complete()
        assert content_of(await answer) == "hello"
        assert second.request == first.request == {"model": TEXT, "messages": MESSAGES, "max_tokens": 9}
        await gate.is_freed()


async def test_a_chat_that_has_begun_stays(tmp_path: Path) -> None:
    """The next worker could only begin again."""
    async with gateway(tmp_path) as gate:
        answer = gate.chat()
        first = await gate.called(1)
        first.item(data=chunk("hel"))
        die(first)
        assert (await answer).status == 503
        assert len(gate.places) == 1
        await gate.is_freed()


async def test_a_chat_without_its_worker_s_last_word_is_complete_with_its_reason(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.chat()
        first = await gate.called(1)
        first.item(data=chunk("hello", "stop"))
        die(first)
        assert content_of(await answer) == "hello"


async def test_prompts_of_unknown_tokens_are_placed_by_load(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.ask(CHAT, model=TEXT, messages=[{"role": "user", "content": "x" * 4000}])
        call = await gate.called(1)
        call.item(data=chunk("a", "stop"))
        call.complete()
        assert (await answer).status == 200
        [place] = gate.places
        assert place.block_hashes == b""
        assert 1000 <= place.num_tokens <= 1100


async def test_an_embedding_is_asked_of_another_worker_where_one_fails(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.embed()
        first = await gate.called(1)
        die(first)
        second = await gate.called(2)
        second.item(data=embeddings(ZEROS))
        second.complete()
        assert (await answer).json["data"][0]["embedding"] == [0.0, 0.0]
        assert second.request == first.request
        assert [place.block_hashes for place in gate.places] == [b"", b""]
        await gate.is_freed()


async def test_an_embedding_counts_without_the_worker_s_last_word(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.embed(encoding_format="base64")
        call = await gate.called(1)
        call.item(data=embeddings(ZEROS))
        die(call)
        assert (await answer).json["data"][0]["embedding"] == ZEROS


@pytest.mark.parametrize("item", [embeddings(), embeddings(ZEROS, ZEROS), embeddings("?"), embeddings("AAA=")], ids=str)
async def test_what_is_no_answer_is_the_worker_s_fault(tmp_path: Path, item: dict[str, Any]) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.embed()
        call = await gate.called(1)
        call.item(data=item)
        call.complete()
        assert ((await answer).status, (await answer).json["error"]["code"]) == (500, "backend_error")


async def test_no_item_at_all_is_no_answer(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.embed()
        (await gate.called(1)).complete()
        assert (await answer).status == 500


async def test_headers_and_nvext_choose_the_worker(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.embed(nvext={"backend_instance_id": 1}, priority=-5)
        call = await gate.called(1)
        call.item(data=embeddings(ZEROS))
        call.complete()
        assert (await answer).status == 200
        [place] = gate.places
        assert place.instance_id == 1
        assert place.hints is not None
        assert place.hints.priority_jump == 5
