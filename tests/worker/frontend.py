"""The frontend's side of the request plane, small: asks one worker and keeps every frame of the answer."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from dynamo.shared.discovery import INSTANCES, Discovery, Put
from dynamo.shared.framing import SENTINEL, AckDecoder, TwoPartDecoder, encode_request, encode_two_part
from dynamo.shared.protocol import Instance

TIMEOUT_S = 20.0  # bounds a failure

DECODERS: dict[str, Callable[[bytes], Any]] = {"msgpack": msgspec.msgpack.decode, "json": msgspec.json.decode}
ENCODERS: dict[str, Callable[[Any], bytes]] = {"msgpack": msgspec.msgpack.encode, "json": msgspec.json.encode}


class Answer:
    """One response socket. `frames` are (header, decoded data), the handshake first."""

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.id = str(uuid.uuid4())
        self.subject = str(uuid.uuid4())
        self.frames: list[tuple[bytes, Any]] = []
        self.ended = asyncio.Event()
        self._grew = asyncio.Event()
        self.reads = asyncio.Event()  # cleared: a frontend that does not read
        self.reads.set()
        self.writer: asyncio.StreamWriter

    @property
    def prologue(self) -> Any:
        return json.loads(self.frames[1][0])

    @property
    def data(self) -> list[Any]:
        return [data for _, data in self.frames[2:] if data is not None]

    @property
    def items(self) -> list[Any]:
        return [frame["data"]["data"] for frame in self.data if "data" in frame.get("data", {})]

    @property
    def error(self) -> Any:
        return next(frame["data"]["error"] for frame in self.data if frame.get("data", {}).get("event") == "error")

    @property
    def is_complete(self) -> bool:
        return self.data[-1:] == [{"complete_final": True}] and self.frames[-1][0] == SENTINEL

    def control(self, frame: bytes) -> None:
        self.writer.write(encode_two_part(frame))

    def drop(self) -> None:
        self.writer.transport.abort()

    async def until(self, num_items: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.items) < num_items:
                self._grew.clear()
                await self._grew.wait()

    def take(self, header: bytes, data: bytes) -> None:
        self.frames.append((header, DECODERS[self.codec](data) if data else None))
        self._grew.set()


class Frontend:
    """`ask` sends a request over one pooled connection; `acks` come back in the order of the requests."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}
        self._address = ""
        self._server: asyncio.Server
        self._writers: list[asyncio.StreamWriter] = []
        self.acks: list[bytes] = []
        self._acked = asyncio.Event()
        self._pools: dict[str, asyncio.StreamWriter] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._respond, "127.0.0.1", 0, limit=4096)
        self._address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def ask(self, target: str, body: Any, *, codec: str = "msgpack", **control: Any) -> Answer:
        """`target` is the `tcp` value of an instance. Returns at once; wait for `ended` or frames."""
        answer = Answer(codec)
        self._answers[answer.subject] = answer
        host, _, path = target.partition("/")
        payload = body if isinstance(body, bytes) else ENCODERS[codec](body)
        await self.send(host, encode_request(path.encode(), b"{}", self._control_message(answer, **control), payload))
        return answer

    async def ask_to_end(self, target: str, body: Any, *, codec: str = "msgpack", **control: Any) -> Answer:
        answer = await self.ask(target, body, codec=codec, **control)
        async with asyncio.timeout(TIMEOUT_S):
            await answer.ended.wait()
        return answer

    async def send(self, host: str, data: bytes) -> None:
        if host not in self._pools:
            reader, self._pools[host] = await asyncio.open_connection(*host.split(":"))
            self._writers.append(self._pools[host])
            self._tasks.append(asyncio.create_task(self._read_acks(reader)))
        self._pools[host].write(data)

    async def until_acks(self, count: int) -> list[bytes]:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.acks) < count:
                self._acked.clear()
                await self._acked.wait()
        return self.acks

    def _control_message(self, answer: Answer, **control: Any) -> bytes:
        info = {"address": self._address, "subject": answer.subject, "context": answer.id, "stream_type": "response"}
        message = {
            "id": answer.id,
            "request_type": "single_in",
            "response_type": "many_out",
            "payload_codec": answer.codec,
            "connection_info": {"transport": "tcp_server", "info": json.dumps(info)},
        }
        return json.dumps({**message, **control}).encode()

    async def _read_acks(self, reader: asyncio.StreamReader) -> None:
        decoder = AckDecoder()
        while chunk := await reader.read(65536):
            self.acks += decoder.push(chunk)
            self._acked.set()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        decoder, answer = TwoPartDecoder(), None
        try:
            while chunk := await reader.read(4096):
                for header, data in decoder.push(chunk):
                    if answer is None:
                        answer = self._answers.pop(json.loads(header)["subject"])
                        answer.writer = writer
                    answer.take(header, data)
                    if header == SENTINEL:
                        writer.close()
                if answer is not None:
                    await answer.reads.wait()
        except ConnectionError:
            pass
        finally:
            writer.close()
            if answer is not None:
                answer.ended.set()


@asynccontextmanager
async def open_frontend() -> AsyncIterator[Frontend]:
    frontend = Frontend()
    await frontend.open()
    try:
        yield frontend
    finally:
        await frontend.close()


async def instance_in(discovery: Discovery, endpoint: str = "generate") -> Instance:
    """Waits for the first instance of the endpoint to appear."""
    async with asyncio.timeout(TIMEOUT_S):
        async for changes in discovery.watch(INSTANCES):
            for change in changes:
                if isinstance(change, Put):
                    found = msgspec.json.decode(change.value, type=Instance)
                    if found.endpoint == endpoint:
                        return found
    raise AssertionError("the watch ended")
