"""A load generator cheap enough to share its core with the worker: kept-alive HTTP/1.1 connections, each closed-loop.

Nothing is parsed that need not be: only the status line, where an answer ends, when its first text came, and its usage.
An answer that is not exactly what was asked for ends the run.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self, cast

FIRST_TEXT = re.compile(rb'"(?:content|text)":"[^"]')
END_OF_CHUNKS = b"0\r\n\r\n"
MAX_DRAIN_S = 60


class WrongAnswer(Exception):
    """A system under test answered something else than it was asked for; its figures would mean nothing."""


@dataclass
class Tally:
    """What a run produced: `ttft_s` and `latency_s` in seconds per request."""

    elapsed_s: float = 0.0
    num_requests: int = 0
    num_tokens: int = 0
    num_events: int = 0
    num_bytes: int = 0
    ttft_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One request at a time: `ask` returns the whole answer, headers included, and when its first text arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._answer: asyncio.Future[bytes] | None = None

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        self._parts: list[bytes] = []
        self._missing: int | None = None  # bytes of the body still to come; -1 when chunked, None before the headers
        self.first_text_at = 0.0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if not self.first_text_at and FIRST_TEXT.search(data):
            self.first_text_at = time.perf_counter()
        if self._missing is None:
            self._read_headers()
        elif self._missing > 0:
            self._missing -= len(data)
        if self._missing == 0 or (self._missing == -1 and self._is_last_chunk(data)):
            self._finish()

    def _read_headers(self) -> None:
        head, end, body = b"".join(self._parts).partition(b"\r\n\r\n")
        if end:
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            self._missing = int(length[1]) - len(body) if length else -1

    def _is_last_chunk(self, data: bytes) -> bool:
        tail = data if len(data) >= len(END_OF_CHUNKS) else b"".join(self._parts[-len(END_OF_CHUNKS) :])
        return tail.endswith(END_OF_CHUNKS)

    def _finish(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(b"".join(self._parts))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(
                WrongAnswer(f"connection lost before the answer ended: {exc or 'closed by peer'}")
            )

    def close(self) -> None:
        self._transport.close()


class Client:
    """`concurrency` kept-alive connections to one frontend, open inside `async with`."""

    def __init__(self, port: int, concurrency: int) -> None:
        self._port = port
        self._concurrency = concurrency
        self._connections: list[Connection] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for _ in range(self._concurrency):
            _transport, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
            self._connections.append(connection)
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        for connection in self._connections:
            connection.close()

    async def ask(self, body: bytes) -> bytes:
        """One request on the first connection; the answer with its headers, unchecked."""
        async with asyncio.timeout(MAX_DRAIN_S):
            return await self._connections[0].ask(http_request(body))

    async def run(self, bodies: Iterator[bytes], *, tokens_out: int, seconds: float) -> Tally:
        """Every connection asks until `seconds` are over and then finishes what it began; all of it is counted."""
        tally = Tally()
        started = time.perf_counter()
        async with asyncio.timeout(seconds + MAX_DRAIN_S):
            await asyncio.gather(
                *(
                    self._keep_asking(connection, bodies, tokens_out, started + seconds, tally)
                    for connection in self._connections
                )
            )
        tally.elapsed_s = time.perf_counter() - started
        return tally

    async def _keep_asking(
        self, connection: Connection, bodies: Iterator[bytes], tokens_out: int, until: float, tally: Tally
    ) -> None:
        while time.perf_counter() < until:
            request = http_request(next(bodies))
            asked_at = time.perf_counter()
            answer = await connection.ask(request)
            tally.latency_s.append(time.perf_counter() - asked_at)
            tally.ttft_s.append(connection.first_text_at - asked_at)
            check(answer, tokens_out)
            tally.num_requests += 1
            tally.num_tokens += tokens_out
            tally.num_events += answer.count(b"data: {")
            tally.num_bytes += len(answer)


def http_request(body: bytes, path: str = "/v1/chat/completions") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def check(answer: bytes, tokens_out: int) -> None:
    """Status 200, usage as asked, and text present; a stream must end with its [DONE]."""
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswer(f"expected status 200, got {answer[:600]!r}")
    if b'"completion_tokens":%d' % tokens_out not in answer[-1200:]:
        raise WrongAnswer(f"expected {tokens_out} completion tokens, got an answer ending {answer[-600:]!r}")
    if not FIRST_TEXT.search(answer):
        raise WrongAnswer(f"an answer without text: {answer[:1200]!r}")
    if b"text/event-stream" in answer[:600] and b"data: [DONE]" not in answer[-64:]:
        raise WrongAnswer(f"a stream without [DONE]: {answer[-600:]!r}")
