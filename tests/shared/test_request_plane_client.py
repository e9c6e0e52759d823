"""The request plane from the frontend's side, against a worker whose every byte the test decides."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from dynamo.frontend.preprocess import pack_token_ids
from dynamo.shared.errors import (
    CannotConnect,
    Disconnected,
    PayloadTooLarge,
    ResponseTooLarge,
    WorkerError,
    WorkerRefused,
    WorkerTimeout,
)
from dynamo.shared.framing import KILL, TWO_PART_PREFIX
from dynamo.shared.messages import Worker
from dynamo.shared.protocol import (
    EngineOutput,
    OutputOptions,
    PreprocessedRequest,
    Routing,
    SamplingOptions,
    StopConditions,
)
from dynamo.shared.request_plane.client import EngineClient, EngineLimits, WorkerAtCapacity
from dynamo.shared.request_plane.stream import EngineStream, ResponseServer
from tests.support.raw_worker import Call, RawWorker, raw_worker

LIMITS = EngineLimits(max_message_size=1 << 20)


class Plane:
    """A response server and an engine client, as an acceptor has them."""

    def __init__(self, server: ResponseServer) -> None:
        self.server = server
        self.clients: list[EngineClient] = []

    def client(self, limits: EngineLimits = LIMITS) -> EngineClient:
        self.clients.append(EngineClient(self.server, limits))
        return self.clients[-1]

    async def generate(self, worker: Worker, limits: EngineLimits = LIMITS) -> EngineStream:
        return await self.client(limits).generate(worker, "id-1", request(worker.codec))


def request(codec: str = "msgpack", num_tokens: int = 2) -> PreprocessedRequest:
    ids = list(range(num_tokens))
    packed = b"".join(i.to_bytes(4, "little") for i in ids)
    return PreprocessedRequest(
        model="m",
        token_ids=pack_token_ids(packed) if codec == "msgpack" else ids,
        stop_conditions=StopConditions(max_tokens=4),
        sampling_options=SamplingOptions(),
        output_options=OutputOptions(),
        eos_token_ids=[1],
        mdc_sum="sum",
        annotations=[],
        routing=Routing(),
    )


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    server = ResponseServer("127.0.0.1", 0, max_message_size=LIMITS.max_message_size)
    await server.start()
    made = Plane(server)
    yield made
    for client in made.clients:
        client.close()
    server.stop()


@pytest.fixture
async def worker() -> AsyncIterator[RawWorker]:
    async with raw_worker() as made:
        yield made


class Collected:
    """A consumer that takes everything, or `limit` batches; while `gate` is closed it is full after each batch."""

    def __init__(self, limit: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._limit = limit

    def take(self, outputs: list[EngineOutput]) -> bool:
        self.batches.append([token for output in outputs for token in output.token_ids])
        return self.gate.is_set() and self._limit is None

    async def ready(self) -> bool:
        await self.gate.wait()
        return self._limit is None or len(self.batches) < self._limit

    @property
    def token_ids(self) -> list[int]:
        return [token for batch in self.batches for token in batch]


async def token_ids(stream: EngineStream) -> list[int]:
    collected = Collected()
    await stream.relay(collected)
    return collected.token_ids


async def begun(plane: Plane, worker: RawWorker, codec: str = "msgpack") -> tuple[EngineStream, Call]:
    """A stream whose worker has called home and accepted."""
    stream = await plane.generate(worker(codec))
    call = await worker.next_call()
    call.ack()
    await call.call_home()
    call.prologue()
    return stream, call


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_a_whole_answer_in_the_workers_codec(plane: Plane, worker: RawWorker, codec: str) -> None:
    stream, call = await begun(plane, worker, codec)
    assert call.control.payload_codec == codec
    assert call.path == b"1f/ns/backend/generate"
    assert call.headers["request-id"] == call.control.id == call.home.context == "id-1"
    assert call.request["token_ids"] == [0, 1]
    assert call.request["stop_conditions"]["max_tokens"] == 4
    assert call.request["routing"] == {}
    call.tokens(5, 6)
    call.tokens(7)
    call.complete()
    assert await token_ids(stream) == [5, 6, 7]
    stream.close()
    await call.closed()


async def test_the_worker_may_call_home_before_it_acknowledges(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker())
    call = await worker.next_call()
    await call.call_home()
    call.prologue()
    call.tokens(5)
    call.complete()
    assert await token_ids(stream) == [5]
    call.ack()


async def test_requests_share_a_connection_and_acks_their_order(plane: Plane, worker: RawWorker) -> None:
    client = plane.client()
    streams = [await client.generate(worker(), f"id-{i}", request()) for i in range(3)]
    calls = [await worker.next_call() for _ in streams]
    calls[0].ack()
    calls[1].ack(b"Server overloaded: worker at capacity")
    calls[2].ack(b"Server unavailable: unknown endpoint x")
    with pytest.raises(WorkerAtCapacity, match="at capacity"):
        await token_ids(streams[1])
    with pytest.raises(CannotConnect, match="unknown endpoint x"):
        await token_ids(streams[2])
    await calls[0].call_home()
    calls[0].prologue()
    calls[0].complete()
    assert await token_ids(streams[0]) == []
    assert worker.num_connections == 1


async def test_a_refused_connection_is_cannot_connect(plane: Plane) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(CannotConnect, match="cannot be reached"):
        await plane.generate(Worker(1, address, "p", codec="msgpack"))


async def test_a_connection_lost_before_the_ack_is_cannot_connect(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker())
    (await worker.next_call()).hang_up()
    with pytest.raises(CannotConnect, match="did not take the request"):
        await token_ids(stream)


async def test_a_connection_lost_after_the_ack_is_a_death(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker())
    call = await worker.next_call()
    call.ack()
    await asyncio.sleep(0.05)  # an ack and the end that follows it in the same read would be told apart as well
    call.hang_up()
    with pytest.raises(Disconnected, match="before it answered"):
        await token_ids(stream)


async def test_a_worker_that_does_not_acknowledge_is_given_up(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker(), replace(LIMITS, ack_timeout_s=0.2))
    await worker.next_call()
    with pytest.raises(CannotConnect, match="no acknowledgement"):
        await token_ids(stream)


async def test_an_unexplained_prologue_error_is_a_refusal(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker())
    call = await worker.next_call()
    call.ack()
    await call.call_home()
    call.prologue("engine is not ready")
    with pytest.raises(WorkerRefused, match="engine is not ready") as caught:
        await token_ids(stream)
    assert not caught.value.is_suspect


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (
            {"error_type": {"Backend": "InvalidArgument"}, "class": "InvalidRequest", "message": "bad"},
            400,
            "invalid_request",
        ),
        ({"error_type": "Unknown", "class": "CapacityExhausted", "message": "full"}, 529, "overloaded"),
        ({"error_type": {"Backend": "InvalidArgument"}, "message": "bad"}, 400, "invalid_request"),
        ({"error_type": {"Backend": "Unknown"}, "class": "Internal", "message": "boom"}, 500, "backend_error"),
        ({"error_type": "Unknown", "class": "NewerThanThis", "message": "boom"}, 500, "backend_error"),
    ],
)
async def test_typed_errors_become_statuses(
    plane: Plane, worker: RawWorker, error: dict[str, object], status: int, code: str
) -> None:
    stream, call = await begun(plane, worker)
    call.item(event="error", error=error)
    with pytest.raises(WorkerError) as caught:
        await token_ids(stream)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert str(error["message"]) in caught.value.log_message
    assert (str(error["message"]) in caught.value.message) == (status < 500 or status == 529)
    stream.close()


async def test_an_old_workers_error_is_its_comment(plane: Plane, worker: RawWorker) -> None:
    stream, call = await begun(plane, worker)
    call.item(event="error", comment=["first", "second"])
    with pytest.raises(WorkerError) as caught:
        await token_ids(stream)
    assert "first; second" in caught.value.log_message


async def test_a_worker_that_shuts_down_counts_as_gone(plane: Plane, worker: RawWorker) -> None:
    stream, call = await begun(plane, worker)
    call.item(
        event="error", error={"error_type": {"Backend": "EngineShutdown"}, "class": "Unavailable", "message": "bye"}
    )
    with pytest.raises(Disconnected, match="bye"):
        await token_ids(stream)


async def test_what_arrived_before_a_death_is_delivered_first(plane: Plane, worker: RawWorker) -> None:
    stream, call = await begun(plane, worker)
    call.tokens(5)
    await call.writer.drain()
    call.writer.close()
    collected = Collected()
    with pytest.raises(Disconnected, match="before it completed"):
        await stream.relay(collected)
    assert collected.token_ids == [5]


async def test_annotations_are_not_tokens(plane: Plane, worker: RawWorker) -> None:
    stream, call = await begun(plane, worker)
    call.item(event="worker_id", comment=["7"])
    call.tokens(5)
    call.complete()
    assert await token_ids(stream) == [5]


async def test_frames_may_be_split_anywhere(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker())
    call = await worker.next_call()
    await call.call_home()
    sent: list[bytes] = []
    real, call.writer = call.writer, Recorder(sent)  # type: ignore[assignment]
    call.prologue()
    call.tokens(5, 6)
    call.complete()
    for byte in b"".join(sent):
        real.write(bytes((byte,)))
        await real.drain()
    assert await token_ids(stream) == [5, 6]


class Recorder:
    """Takes the place of a stream writer to learn the bytes a call would send."""

    def __init__(self, sent: list[bytes]) -> None:
        self.write = sent.append


async def test_leaving_a_running_worker_kills_it(plane: Plane, worker: RawWorker) -> None:
    stream, call = await begun(plane, worker)
    call.tokens(5)
    await stream.relay(Collected(limit=1))
    stream.close()
    stream.close()
    assert await call.control_frame() == KILL
    call.writer.close()


async def test_leaving_before_the_worker_calls_home_turns_it_away(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker())
    call = await worker.next_call()
    call.ack()
    stream.close()
    await call.call_home()
    assert await call.control_frame() == KILL


async def test_an_unknown_subject_is_turned_away(plane: Plane, worker: RawWorker) -> None:
    await plane.generate(worker())
    call = await worker.next_call()
    await call.call_home(subject="somebody-elses")
    assert await call.control_frame() == KILL


async def test_noise_on_the_response_port_is_dropped(plane: Plane) -> None:
    host, _, port = plane.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 4)
    assert await reader.read() == b""


@pytest.mark.parametrize("token_id", [-1, 1 << 32])
async def test_what_cannot_be_a_token_id_is_the_workers_fault(plane: Plane, worker: RawWorker, token_id: int) -> None:
    stream, call = await begun(plane, worker)
    call.tokens(7, token_id)
    with pytest.raises(WorkerError, match="cannot be read"):
        await token_ids(stream)


async def test_an_unreadable_frame_is_the_workers_fault(plane: Plane, worker: RawWorker) -> None:
    stream, call = await begun(plane, worker)
    call.writer.write(TWO_PART_PREFIX.pack(0, 3, 0) + b"\xc1\xc1\xc1")
    with pytest.raises(WorkerError, match="cannot be read"):
        await token_ids(stream)


async def test_an_oversized_answer_is_refused_by_its_announcement(plane: Plane, worker: RawWorker) -> None:
    stream, call = await begun(plane, worker)
    call.writer.write(TWO_PART_PREFIX.pack(0, 1 << 30, 0))
    with pytest.raises(ResponseTooLarge, match="DYN_TCP_MAX_MESSAGE_SIZE"):
        await token_ids(stream)


async def test_an_oversized_request_is_not_sent(plane: Plane, worker: RawWorker) -> None:
    client = plane.client(replace(LIMITS, max_message_size=4096))
    with pytest.raises(PayloadTooLarge, match="DYN_TCP_MAX_MESSAGE_SIZE"):
        await client.generate(worker(), "id-1", request(num_tokens=2000))
    assert worker.num_connections == 0


async def test_silence_has_a_limit(plane: Plane, worker: RawWorker) -> None:
    stream = await plane.generate(worker(), replace(LIMITS, stream_timeout_s=0.1))
    (await worker.next_call()).ack()
    with pytest.raises(WorkerTimeout):
        await token_ids(stream)


async def test_a_slow_consumer_stops_the_worker_and_loses_nothing(plane: Plane, worker: RawWorker) -> None:
    """Far more than fits between the two: the worker's writer must block, and memory must not grow with what it has."""
    stream, call = await begun(plane, worker)
    num_items = 200_000
    sender = asyncio.create_task(send_items(call, num_items))
    collected = Collected()
    collected.gate.clear()
    relaying = asyncio.create_task(stream.relay(collected))
    await asyncio.sleep(0.5)
    assert not sender.done()
    assert len(collected.batches) == 1
    collected.gate.set()
    await relaying
    await sender
    assert collected.token_ids == list(range(num_items))


async def test_a_consumer_that_fails_fails_the_request(plane: Plane, worker: RawWorker) -> None:
    class Broken(Collected):
        def take(self, outputs: list[EngineOutput]) -> bool:
            raise ZeroDivisionError

    stream, call = await begun(plane, worker)
    call.tokens(5)
    with pytest.raises(ZeroDivisionError):
        await stream.relay(Broken())
    stream.close()
    assert await call.control_frame() == KILL


async def send_items(call: Call, num_items: int) -> None:
    for i in range(num_items):
        call.tokens(i)
        if i % 100 == 0:
            await call.writer.drain()
    call.complete()


async def test_a_body_is_a_map_with_string_keys(plane: Plane, worker: RawWorker) -> None:
    await plane.generate(worker())
    call = await worker.next_call()
    decoded = msgspec.msgpack.decode(call.body)
    assert {"model", "token_ids", "stop_conditions", "sampling_options", "output_options", "eos_token_ids"} <= set(
        decoded
    )
    assert {"mdc_sum", "annotations", "routing", "router_config_override"} <= set(decoded)
    assert "extra_args" not in decoded
