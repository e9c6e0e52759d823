"""A client that sends exactly the bytes it is told to, and splits what comes back into answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


class RawClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, **options: Any) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def send_slowly(self, data: bytes) -> None:
        """Byte by byte, each in a loop tick of its own."""
        for i in range(len(data)):
            self.writer.write(data[i : i + 1])
            await asyncio.sleep(0)

    async def answer(self, method: str = "GET") -> Answer:
        """The next final answer; raises IncompleteReadError if the connection ends first."""
        while True:
            status, headers = await self._head()
            if status != 100:
                return Answer(status, headers, await self._body(status, headers, method))

    async def interim(self) -> int:
        return (await self._head())[0]

    async def _head(self) -> tuple[int, dict[str, str]]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        return int(status_line.split()[1]), headers

    async def _body(self, status: int, headers: dict[str, str], method: str) -> bytes:
        if method == "HEAD" or status in (204, 304):
            return b""
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            return await self._chunks()
        return await self.reader.read()

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return body

    async def is_closed(self) -> bool:
        """Waits for the server's end; False if it sends something instead."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
