"""What a handler knows about the request it serves besides its body."""

from __future__ import annotations

import asyncio
import uuid


class Context:
    """Identity, metadata and cancellation of one request.

    *Stopped*: nobody wants further items. *Killed*: nobody listens any more. Killed implies stopped.
    """

    __slots__ = ("_id", "_is_killed", "_is_stopped", "_waiters", "metadata")

    def __init__(self, id: str | None = None, metadata: dict[str, str] | None = None) -> None:
        self._id = id or str(uuid.uuid4())
        self._is_stopped = False
        self._is_killed = False
        self._waiters: set[asyncio.Future[bool]] = set()
        self.metadata = metadata if metadata is not None else {}

    def id(self) -> str:
        return self._id

    def is_stopped(self) -> bool:
        return self._is_stopped

    def is_killed(self) -> bool:
        return self._is_killed

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        """A future that becomes True once the request is stopped or killed; cancelling it affects nobody else."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._is_stopped:
            future.set_result(True)
        else:
            self._waiters.add(future)
            future.add_done_callback(self._waiters.discard)
        return future

    def stop_generating(self) -> None:
        self._is_stopped = True
        for waiter in tuple(self._waiters):
            if not waiter.done():
                waiter.set_result(True)

    def kill(self) -> None:
        self._is_killed = True
        self.stop_generating()
