"""Signals as something a selector can wait for: the handler only queues the number."""

from __future__ import annotations

import signal
import socket

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class SignalQueue:
    """Readable while a watched signal waits. Open it in the main thread; `close` gives the old handlers back."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in WATCHED}

    def fileno(self) -> int:
        return self._receiver.fileno()

    def take(self) -> list[signal.Signals]:
        """All that came since the last call, in order."""
        try:
            return [signal.Signals(number) for number in self._receiver.recv(4096)]
        except BlockingIOError:
            return []

    def close(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        self._receiver.close()
        self._sender.close()
