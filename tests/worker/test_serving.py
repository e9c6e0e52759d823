"""A handler behind the request plane, asked over real sockets."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from dynamo.shared.framing import KILL, STOP, encode_request
from dynamo.worker import Context, HttpError, InvalidArgument, WorkerUnavailable, dynamo_endpoint
from tests.worker.frontend import open_frontend
from tests.worker.serving import serving


@pytest.fixture(autouse=True)
def _withdrawals_are_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo.shared.runtime.PROPAGATION_S", 0)  # as is true of the mem store


async def count(request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
    for number in range(request["n"]):
        yield {"token_ids": [number], "metadata": context.metadata, "id": context.id()}


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_a_whole_answer(codec: str) -> None:
    async with serving(count) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask_to_end(target, {"n": 3}, codec=codec, metadata={"policy-class": "gold"})
        assert frontend.acks == [b""]
        assert answer.prologue == {"error": None, "typed_error": None} or answer.prologue == {"error": None}
        assert [item["token_ids"] for item in answer.items] == [[0], [1], [2]]
        assert answer.items[0]["metadata"] == {"policy-class": "gold"}
        assert answer.items[0]["id"] == answer.id
        assert answer.is_complete


async def test_an_empty_answer_is_complete() -> None:
    async with serving(count) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask_to_end(target, {"n": 0})
        assert answer.data == [{"complete_final": True}]
        assert answer.is_complete


async def test_many_requests_pipelined_on_one_connection() -> None:
    async with serving(count) as (_, target), open_frontend() as frontend:
        answers = [await frontend.ask(target, {"n": number}) for number in range(200)]
        async with asyncio.timeout(20):
            for answer in answers:
                await answer.ended.wait()
        assert [len(answer.items) for answer in answers] == list(range(200))
        assert frontend.acks == [b""] * 200


async def test_a_handler_may_leave_the_context_out() -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    async with serving(handler) as (_, target), open_frontend() as frontend:
        assert (await frontend.ask_to_end(target, {"x": 1})).items == [{"x": 1}]


async def test_a_handler_that_refuses_is_told_in_the_prologue() -> None:
    def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        raise ValueError("not today")

    async with serving(handler) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask_to_end(target, {})
        assert answer.prologue["error"] == "Generate Error: ValueError: not today"
        assert answer.prologue["typed_error"]["class"] == "Internal"
        assert answer.data == []


TIMEOUT, REFUSED = "TimeoutError: ", "ConnectionRefusedError: "

# As a Dynamo 1.6.1 worker sent them: exception, error_type, class, reason, message
ERRORS = [
    (ValueError("x"), {"Backend": "InvalidArgument"}, "InvalidRequest", "backend.invalid_argument", "ValueError: x"),
    (InvalidArgument("x"), {"Backend": "InvalidArgument"}, "InvalidRequest", "backend.invalid_argument", "x"),
    (RuntimeError("x"), {"Backend": "Unknown"}, "Internal", "backend.unknown", "RuntimeError: x"),
    (TimeoutError(), {"Backend": "ConnectionTimeout"}, "DeadlineExceeded", "backend.connection_timeout", TIMEOUT),
    (ConnectionRefusedError(), {"Backend": "CannotConnect"}, "Unavailable", "backend.cannot_connect", REFUSED),
    (BrokenPipeError("x"), {"Backend": "Disconnected"}, "Unavailable", "backend.disconnected", "BrokenPipeError: x"),
    (asyncio.CancelledError(), {"Backend": "Cancelled"}, "Cancelled", "backend.cancelled", "CancelledError: "),
    (WorkerUnavailable("x"), "WorkerUnavailable", "Unavailable", "backend.worker_unavailable", "x"),
    (HttpError(422, "x"), "InvalidArgument", "InvalidRequest", "request.invalid", '{"message":"x","code":422}'),
]  # fmt: skip


@pytest.mark.parametrize(("error", "error_type", "category", "reason", "message"), ERRORS)
async def test_errors(error: BaseException, error_type: Any, category: str, reason: str, message: str) -> None:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"token_ids": [1]}
        raise error

    async with serving(handler) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask_to_end(target, {})
        assert answer.items == [{"token_ids": [1]}]
        wire = answer.error
        assert (wire["error_type"], wire["class"], wire["reason"], wire["message"]) == (
            error_type,
            category,
            reason,
            message,
        )
        assert answer.is_complete


class Ticker:
    """Yields for ever and writes down how it ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.context: Context

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.context = context
        try:
            for number in range(10**9):
                yield {"token_ids": [number]}
                await asyncio.sleep(0.001)
        finally:
            self.ended.set()


@pytest.mark.parametrize(("how", "is_killed"), [("stop", False), ("kill", True), ("drop", True)])
async def test_the_frontend_ends_an_answer(how: str, is_killed: bool) -> None:
    ticker = Ticker()
    async with serving(ticker) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask(target, {})
        await answer.until(3)
        if how == "drop":
            answer.drop()
        else:
            answer.control(STOP if how == "stop" else KILL)
        async with asyncio.timeout(20):
            await ticker.ended.wait()
            await answer.ended.wait()
        assert ticker.context.is_stopped()
        assert ticker.context.is_killed() is is_killed
        assert not answer.is_complete


async def test_a_waiting_handler_hears_of_the_stop() -> None:
    heard = asyncio.Event()

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"token_ids": [1]}
        assert await context.async_killed_or_stopped()
        heard.set()

    async with serving(handler) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask(target, {})
        await answer.until(1)
        answer.control(STOP)
        async with asyncio.timeout(20):
            await heard.wait()


async def test_a_handler_that_never_waits_lets_others_run() -> None:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        while not context.is_killed():
            yield {"token_ids": [1]}

    async with serving(handler) as (_, target), open_frontend() as frontend:
        greedy = await frontend.ask(target, {})
        await greedy.until(10)
        greedy.control(KILL)
        async with asyncio.timeout(20):
            await greedy.ended.wait()


async def test_a_frontend_that_does_not_read_stops_the_handler() -> None:
    num_yielded = 0

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        nonlocal num_yielded
        for _ in range(4000):
            num_yielded += 1
            yield {"text": "x" * 10_000}

    async with serving(handler) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask(target, {})
        answer.reads.clear()
        previous = -1
        while num_yielded != previous or not num_yielded:  # until it stands still
            previous = num_yielded
            await asyncio.sleep(0.2)
        assert num_yielded < 4000
        answer.reads.set()
        async with asyncio.timeout(20):
            await answer.ended.wait()
        assert len(answer.items) == 4000


async def test_what_cannot_be_served_is_refused_in_the_ack() -> None:
    async with serving(count) as (_, target), open_frontend() as frontend:
        host = target.partition("/")[0]
        await frontend.ask(f"{host}/nobody/home", {})
        await frontend.ask(target, {"n": 1}, connection_info={"transport": "quic", "info": "{}"})
        await frontend.ask(target, {"n": 1}, request_type="many_in")
        await frontend.ask(target, {"n": 1}, payload_codec="xml")
        await frontend.ask(target, {"n": 1}, id="somebody else")
        path = target.partition("/")[2].encode()
        await frontend.send(host, encode_request(path, b"{}", b"no json", b""))
        acks = await frontend.until_acks(6)
        assert acks[0] == b"Server unavailable: unknown endpoint nobody/home"
        assert all(ack.startswith(b"Server unavailable: ") for ack in acks)
        answer = await frontend.ask_to_end(target, {"n": 1})  # the connection is as good as ever
        assert answer.is_complete


async def test_a_payload_that_is_no_msgpack() -> None:
    async with serving(count) as (_, target), open_frontend() as frontend:
        answer = await frontend.ask_to_end(target, b"\xc1")
        assert "DecodeError" in answer.prologue["error"]


async def test_requests_over_the_limit_are_refused() -> None:
    ticker = Ticker()
    async with serving(ticker, request_limit=2) as (_, target), open_frontend() as frontend:
        first = await frontend.ask(target, {})
        second = await frontend.ask(target, {})
        third = await frontend.ask(target, {})
        assert await frontend.until_acks(3) == [b"", b"", b"Server overloaded: worker at capacity"]
        await first.until(1)
        first.control(KILL)
        while frontend.acks[-1] != b"":  # until the handler has noticed
            third = await frontend.ask(target, {})
            await frontend.until_acks(len(frontend.acks) + 1)
        for answer in (second, third):
            await answer.until(1)
            answer.control(KILL)


async def test_an_oversized_request_closes_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(count, max_message_size=2048) as (_, target), open_frontend() as frontend:
        assert (await frontend.ask_to_end(target, {"n": 1})).is_complete
        host, _, path = target.partition("/")
        reader, writer = await asyncio.open_connection(*host.split(":"))
        with caplog.at_level(logging.WARNING):
            writer.write(struct.pack(">H", len(path)) + path.encode() + struct.pack(">HI", 0, 4096))
            assert await reader.read() == b""
        assert "4096 bytes, limit 2048" in caplog.text
        writer.close()
        assert (await frontend.ask_to_end(target, {"n": 1})).is_complete


async def test_an_unreachable_frontend_costs_nothing_but_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(count) as (_, target), open_frontend() as frontend:
        info = '{"address":"127.0.0.1:1","subject":"s","context":"c"}'
        await frontend.ask(target, {"n": 1}, id="c", connection_info={"transport": "tcp_server", "info": info})
        await frontend.until_acks(1)
        assert (await frontend.ask_to_end(target, {"n": 1})).is_complete
        assert "cannot reach the frontend's response server 127.0.0.1:1" in caplog.text


async def test_typed_requests() -> None:
    class Ask(msgspec.Struct):
        n: int

    @dynamo_endpoint(Ask, dict)
    async def handler(request: Ask, context: Context) -> AsyncIterator[Any]:
        yield {"n": request.n + 1}

    async with serving(handler) as (_, target), open_frontend() as frontend:
        assert (await frontend.ask_to_end(target, {"n": 1})).items == [{"n": 2}]
        answer = await frontend.ask_to_end(target, {"n": "one"})
        assert answer.error["class"] == "InvalidRequest"
        assert "does not fit Ask" in answer.error["message"]
