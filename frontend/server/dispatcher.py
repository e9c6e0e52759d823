"""Runs the handler for each exchange, answers what goes wrong, and knows what is in flight."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from email.utils import formatdate

from dynamo.frontend.server.exchange import Exchange, Handle, RenderError, render_headers
from dynamo.frontend.server.limits import Limits
from dynamo.shared.errors import AtCapacity, ClientDisconnected, DynamoError, InternalError, ShuttingDown

log = logging.getLogger(__name__)

# Probes and metrics have no body to hold and must be answered by a full process too.
UNCAPPED_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Dispatcher:
    def __init__(self, handle: Handle, limits: Limits, render_error: RenderError) -> None:
        self.limits = limits
        self.is_draining = False
        self.date = b""
        self.refresh_date()
        self._handle = handle
        self._render_error = render_error
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[Exchange, asyncio.Task[None]] = {}
        self._emptied = asyncio.Event()

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def refresh_date(self) -> None:
        """The date header of every answer; due once a second."""
        self.date = f"date: {formatdate(time.time(), usegmt=True)}\r\n".encode()

    def dispatch(self, exchange: Exchange) -> None:
        """Handle in a task of its own. No answer begins before this returns."""
        if self._has_room(exchange):
            self._in_flight[exchange] = self._loop.create_task(self._run(exchange))
        else:
            self._loop.call_soon(self.refuse, exchange, _at_capacity())

    async def run(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        """Handle in the task that the caller runs in."""
        if self._has_room(exchange):
            self._in_flight[exchange] = task
            await self._run(exchange)
        else:
            self.refuse(exchange, _at_capacity())

    def _has_room(self, exchange: Exchange) -> bool:
        return len(self._in_flight) < self.limits.max_in_flight or exchange.method in UNCAPPED_METHODS

    def refuse(self, exchange: Exchange, error: DynamoError) -> None:
        """Answer with an error that no handler saw."""
        request_id = uuid.uuid4().hex
        fields = [("content-type", "application/json"), ("x-request-id", request_id)]
        if error.retry_after_s is not None:
            fields.append(("retry-after", str(error.retry_after_s)))
        exchange.respond(error.status, render_headers(fields), self._render_error(exchange.path, error, request_id))

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._handle(exchange)
            if not exchange.is_complete and not exchange.is_disconnected:
                log.error("The handler of %s %s returned without a whole answer", exchange.method, exchange.path)
                self._settle(exchange, InternalError())
        except ClientDisconnected:
            exchange.abort()
        except DynamoError as error:
            self._settle(exchange, error)
        except asyncio.CancelledError:  # by `cancel_all`; nobody waits for this task
            self._settle(exchange, ShuttingDown("The server was stopped before the answer was complete."))
        except Exception:
            log.exception("The handler of %s %s failed", exchange.method, exchange.path)
            self._settle(exchange, InternalError())
        finally:
            del self._in_flight[exchange]
            if not self._in_flight:
                self._emptied.set()

    def _settle(self, exchange: Exchange, error: DynamoError) -> None:
        if exchange.is_started:
            exchange.abort()
        else:
            self.refuse(exchange, error)

    async def wait_emptied(self) -> None:
        """Until nothing is in flight."""
        while self._in_flight:
            self._emptied.clear()
            await self._emptied.wait()

    async def cancel_all(self) -> None:
        """Those without an answer get a 503."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _at_capacity() -> AtCapacity:
    return AtCapacity("This server handles as many requests as it may; send it again shortly.")
