"""Clients of /v1/completions, hundreds at a time: each keeps what came back, and how that ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import httptools

from tests.support.waiting import PATIENCE_S


class Completion(asyncio.Protocol):
    """One request on a connection of its own. `begun` with the first text, `ended` with the connection or the answer.

    A held worker answers with the prompt, so its answer is whole if it has every token of it, not one more or less.
    """

    def __init__(self, prompt: str | list[int], headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        self.prompt = prompt
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()).encode()
        self.is_stream = bool(fields.get("stream"))
        self._body = json.dumps({"prompt": prompt, **fields}).encode()
        self._parser = httptools.HttpResponseParser(self)
        self._received = b""
        self._transport: asyncio.Transport
        self.local_port = 0
        self.status = 0
        self.pieces: list[str] = []
        self.finish_reason: str | None = None
        self.usage: dict[str, int] = {}
        self.error: dict[str, Any] | None = None
        self.has_said_done = False
        self.is_answered = False  # the HTTP message came to its end
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        return (
            (self.status, self.error, self.is_answered) == (200, None, True)
            and self.has_said_done == self.is_stream
            and self.text == self.prompt
            and self.finish_reason == "stop"
            and self.usage["completion_tokens"] == self.usage["prompt_tokens"]
        )

    @property
    def is_broken(self) -> bool:
        """The connection was lost in the middle of the answer, and the client can tell."""
        return self.ended.is_set() and not self.is_answered and not self.has_said_done and self.error is None

    @property
    def has_failed(self) -> bool:
        """The gateway told of a lost worker, in the stream or instead of an answer."""
        status = 200 if self.is_stream else 503
        return (
            (self.status, self.is_answered, self.has_said_done) == (status, True, False)
            and self.error is not None
            and self.error["code"] == "worker_disconnected"
        )

    def pause(self) -> None:
        self._transport.pause_reading()

    def resume(self) -> None:
        self._transport.resume_reading()

    def abort(self) -> None:
        self._transport.abort()

    def __repr__(self) -> str:
        return f"<{self.status} {len(self.text)}/{len(self.prompt)} {self.finish_reason} {self.usage} {self.error}>"

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.local_port = transport.get_extra_info("sockname")[1]
        self._transport.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            + self._headers
            + b"content-length: %d\r\n\r\n" % len(self._body)
            + self._body
        )

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.begun.set()
        self.ended.set()

    # ---- httptools

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._received += data
        if self.is_stream and self.status == 200:
            *events, self._received = self._received.split(b"\n\n")
            for event in events:
                self._on_event(event)

    def on_message_complete(self) -> None:
        self.is_answered = True
        if self._received:
            self._on_chunk(json.loads(self._received))
        self._transport.close()

    def _on_event(self, event: bytes) -> None:
        if event == b"data: [DONE]":
            self.has_said_done = True
        elif event.startswith(b"data: "):
            self._on_chunk(json.loads(event[6:]))

    def _on_chunk(self, chunk: dict[str, Any]) -> None:
        self.error = chunk.get("error") or self.error
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            self.pieces.append(choice["text"])
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.begun.set()


async def complete(
    address: tuple[str, int], prompt: str | list[int], headers: Mapping[str, str] | None = None, **fields: Any
) -> Completion:
    """Send it; returns before the answer."""
    loop = asyncio.get_running_loop()
    _, completion = await loop.create_connection(lambda: Completion(prompt, headers, **fields), *address)
    return completion


async def all_begun(completions: list[Completion]) -> None:
    """Until each has its first text."""
    async with asyncio.timeout(PATIENCE_S):
        for completion in completions:
            await completion.begun.wait()


async def all_ended(completions: list[Completion]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for completion in completions:
            await completion.ended.wait()
