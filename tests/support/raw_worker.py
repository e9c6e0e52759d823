"""A worker written directly on the frames, so that a test can say every byte: also the wrong ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from dynamo.shared.framing import SENTINEL, RequestDecoder, TwoPartDecoder, encode_ack, encode_two_part
from dynamo.shared.messages import Worker
from dynamo.shared.protocol import CallHome, ControlMessage

PATH = "1f/ns/backend/generate"
CODECS: dict[str, Any] = {"msgpack": msgspec.msgpack, "json": msgspec.json}


class Call:
    """One request as it arrived, and the socket its answer goes to once `call_home` was called."""

    def __init__(self, path: bytes, headers: bytes, payload: bytes, writer: asyncio.StreamWriter) -> None:
        header, self.body = next(iter(TwoPartDecoder().push(payload)))
        self.path = path
        self.headers = msgspec.json.decode(headers)
        self.control = msgspec.json.decode(header, type=ControlMessage)
        self.home = msgspec.json.decode(self.control.connection_info.info, type=CallHome)
        self._requests = writer

    @property
    def request(self) -> dict[str, Any]:
        codec = CODECS[self.control.payload_codec]
        decoded: dict[str, Any] = codec.decode(self.body)
        return decoded

    def ack(self, text: bytes = b"") -> None:
        self._requests.write(encode_ack(text))

    def hang_up(self) -> None:
        """Close the connection the request came on."""
        self._requests.close()

    async def call_home(self, subject: str | None = None) -> None:
        host, _, port = self.home.address.rpartition(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        handshake = {"subject": subject or self.home.subject, "stream_type": "response"}
        self.writer.write(encode_two_part(msgspec.json.encode(handshake)))

    def prologue(self, error: str | None = None, **more: Any) -> None:
        self.writer.write(encode_two_part(msgspec.json.encode({"error": error} | more)))

    def item(self, **annotated: Any) -> None:
        self.frame({"data": annotated, "complete_final": False})

    def tokens(self, *token_ids: int, **more: Any) -> None:
        self.item(data={"token_ids": list(token_ids)} | more)

    def frame(self, item: dict[str, Any]) -> None:
        codec = CODECS[self.control.payload_codec]
        self.writer.write(encode_two_part(b"", codec.encode(item)))

    def complete(self) -> None:
        self.frame({"complete_final": True})
        self.writer.write(encode_two_part(SENTINEL))

    async def control_frame(self) -> bytes:
        """What the frontend says on the response socket: its next control frame, or nothing when it closed."""
        decoder = TwoPartDecoder()
        while chunk := await self.reader.read(65536):
            for header, _data in decoder.push(chunk):
                return header
        return b""

    async def closed(self) -> None:
        """Until the frontend has closed the response socket."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


class RawWorker:
    """Listens like a worker; `next_call` hands out requests in the order of their arrival."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self.num_connections = 0
        self.address = ""

    def __call__(self, codec: str = "msgpack") -> Worker:
        return Worker(0x1F, self.address, PATH, codec=codec)

    async def next_call(self) -> Call:
        return await asyncio.wait_for(self._calls.get(), 5)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        decoder = RequestDecoder()
        with suppress(ConnectionError):
            while chunk := await reader.read(65536):
                for path, headers, payload in decoder.push(chunk):
                    self._calls.put_nowait(Call(path, headers, payload, writer))


@asynccontextmanager
async def raw_worker() -> AsyncIterator[RawWorker]:
    worker = RawWorker()
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    worker.address = "{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield worker
    finally:
        server.close()
