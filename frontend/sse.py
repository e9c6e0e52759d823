"""Server-sent events over an exchange, with comments through long silences so that no proxy closes the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dynamo.frontend.server.exchange import Exchange, HeaderBlock

_KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = b"content-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"


class SseStream:
    """The answer 200 is given with the first event, or with the first keep-alive, or when the keeper's time to wait for
    the first event is over: until then an error is a status."""

    __slots__ = ("_commit", "_headers", "_keeper", "exchange", "written_at")

    def __init__(self, exchange: Exchange, headers: HeaderBlock, keeper: KeepAlive) -> None:
        self.exchange = exchange
        self._headers: HeaderBlock | None = headers
        self._keeper = keeper
        self.written_at = keeper.now
        keeper.streams.add(self)
        self._commit = keeper.call_when_due(self._start)

    @property
    def is_started(self) -> bool:
        return self._headers is None

    def write(self, events: bytes) -> None:
        if self._headers is not None:
            self._start()
        self.exchange.write(events)
        self.written_at = self._keeper.now

    def _start(self) -> None:
        if self._headers is not None:
            self.exchange.start(200, _HEADERS + self._headers)
            self._headers = None

    def finish(self, events: bytes) -> None:
        """`events` are the last, whether they tell of the end or of a failure: the client has got its 200 already."""
        self.write(events)
        self.exchange.finish()

    def close(self) -> None:
        self._keeper.streams.discard(self)
        if self._commit is not None:
            self._commit.cancel()

    def keep_alive(self) -> None:
        if self.exchange.is_writable:
            self.write(_KEEP_ALIVE)


class KeepAlive:
    """Looks after all open streams of a process with one timer. `interval_s` 0 switches it off.

    `commit_s` is how long a stream may wait for its first event before it is answered 200; None lets it wait until its
    first keep-alive.
    """

    def __init__(self, interval_s: float, commit_s: float | None = None) -> None:
        self.streams: set[SseStream] = set()
        loop = asyncio.get_running_loop()
        self.now = loop.time()  # to the second or so
        self._loop = loop
        self._interval_s = interval_s
        self._commit_s = commit_s
        if interval_s:
            self._schedule()

    def call_when_due(self, commit: Callable[[], None]) -> asyncio.TimerHandle | None:
        return None if self._commit_s is None else self._loop.call_later(self._commit_s, commit)

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(min(1.0, self._interval_s / 2), self._look)

    def _look(self) -> None:
        self.now = self._loop.time()
        due = self.now - self._interval_s
        for stream in [s for s in self.streams if s.written_at <= due]:
            stream.keep_alive()
        self._schedule()
