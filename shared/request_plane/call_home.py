"""The response socket: the worker dials the frontend that asked and streams its answer.

    handshake, prologue, data frame..., complete_final, sentinel; then the frontend closes

The frontend may write `"stop"` or `"kill"` meanwhile, or just go away. After any of the three nothing more is sent: an
answer without complete_final is one that nobody waits for, or one that died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any, cast

import msgspec
from msgspec import Struct

from dynamo.shared.framing import KILL, SENTINEL, STOP, FrameTooLarge, TwoPartDecoder, encode_two_part
from dynamo.shared.protocol import CallHome, Handshake, Prologue
from dynamo.shared.request_plane.codec import PayloadCodec
from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.exceptions import DynamoException, HttpError, error_payload, prologue_payload

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 10.0  # for the frontend to close after the sentinel
WRITE_HIGH_WATER = 256 * 1024  # bytes the socket may owe us before the generator has to wait
MAX_FRAMES_PER_TICK = 64  # a generator that never waits gives way to the others after so many
MAX_CONTROL_FRAME = 4096  # bytes

PROLOGUE = encode_two_part(b'{"error":null}')

Handler = Callable[[Any, Context], AsyncIterator[Any]]


class Call(Struct, frozen=True, gc=False):
    """One accepted request, not yet decoded."""

    home: CallHome
    codec: PayloadCodec
    payload: bytes
    metadata: dict[str, str]


class ResponseStream(asyncio.Protocol):
    """Our end of the socket. Frames sent in one tick of the loop leave in one write."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._controls = TwoPartDecoder(MAX_CONTROL_FRAME)
        self._frames: list[bytes] = []
        self._transport: asyncio.Transport
        self._is_finished = False
        self.is_open = True
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        try:
            for header, _ in self._controls.push(data):
                self._obey(header)
        except FrameTooLarge as error:
            logger.warning("closing response stream of request %s: %s", self._context.id(), error)
            self._cut()

    def _obey(self, control: bytes) -> None:
        if control == KILL:
            self._context.kill()
            self._cut()
        elif control == STOP:
            self._context.stop_generating()
            self._cut()

    def _cut(self) -> None:
        self.is_open = False
        self._frames.clear()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_open and not self._is_finished:  # the frontend went away without a word
            self._context.kill()
        self.is_open = False
        self._frames.clear()
        self._writable.set()
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def send(self, frame: bytes) -> None:
        if not self._frames:
            self._loop.call_soon(self._flush)
        self._frames.append(frame)

    def _flush(self) -> None:
        if self._frames and self.is_open:
            self._transport.write(b"".join(self._frames))
        self._frames.clear()

    async def give_way(self) -> None:
        """Let others run after enough frames in one tick; wait while the frontend reads too slowly."""
        if len(self._frames) >= MAX_FRAMES_PER_TICK:
            await asyncio.sleep(0)
        if not self._writable.is_set():
            await self._writable.wait()

    async def finish(self, *last_frames: bytes) -> None:
        """Send the end and wait for the frontend to close, but not forever."""
        self._is_finished = True
        for frame in last_frames:
            self.send(frame)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.closed.wait()

    def close(self) -> None:
        self._flush()
        self._transport.close()


async def serve_call(call: Call, handler: Handler) -> None:
    """Answer one request from handshake to close. Never raises but CancelledError."""
    context = Context(call.home.context, call.metadata)
    stream = await _dial(call.home, context)
    if stream is None:
        return
    try:
        await _answer(call, handler, context, stream)
    except asyncio.CancelledError:
        context.kill()
        raise
    finally:
        stream.close()


async def _dial(home: CallHome, context: Context) -> ResponseStream | None:
    host, _, port = home.address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, stream = await loop.create_connection(lambda: ResponseStream(context), host.strip("[]"), int(port))
    except (OSError, ValueError, TimeoutError) as error:
        logger.warning(
            "request %s dropped: cannot reach the frontend's response server %s: %s", home.context, home.address, error
        )
        return None
    stream.send(encode_two_part(msgspec.json.encode(Handshake(home.subject, home.stream_type))))
    return stream


async def _answer(call: Call, handler: Handler, context: Context, stream: ResponseStream) -> None:
    try:
        items = handler(call.codec.decode(call.payload), context)
    except Exception as error:  # top of a request: whatever the handler raised is told to the frontend
        _log_failure(context, error)
        text = f"Generate Error: {type(error).__name__}: {error}"
        prologue = msgspec.json.encode(Prologue(text, prologue_payload(error)))
        await stream.finish(encode_two_part(prologue), encode_two_part(SENTINEL))
        return
    stream.send(PROLOGUE)
    await _stream_items(items, call.codec, context, stream)
    if stream.is_open:
        await stream.finish(call.codec.complete_final, encode_two_part(SENTINEL))


async def _stream_items(
    items: AsyncIterator[Any], codec: PayloadCodec, context: Context, stream: ResponseStream
) -> None:
    """Send what the handler yields until it ends, fails, or nobody listens."""
    try:
        async for item in items:
            if not stream.is_open:
                break
            stream.send(codec.item(item))
            await stream.give_way()
    except (Exception, asyncio.CancelledError) as error:  # top of a request: told to the frontend
        if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
            raise
        if stream.is_open:
            _log_failure(context, error)
            stream.send(codec.error(error_payload(error)))
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


def _is_being_cancelled() -> bool:
    """Tells our own cancellation from one that the handler ran into and let through."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _log_failure(context: Context, error: BaseException) -> None:
    is_expected = isinstance(error, (DynamoException, HttpError, ValueError))
    logger.log(
        logging.INFO if is_expected else logging.ERROR,
        "request %s failed: %s: %s",
        context.id(),
        type(error).__name__,
        error,
        exc_info=None if is_expected else error,
    )
