"""A TCP line that can be cut and mended: what is sent meanwhile is lost, as when a network fails."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

CHUNK = 1 << 16


class TcpLine:
    """From a port of its own to `target`, host and port. Connections of a line that is cut end, and none begins."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = _listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self._accept_from(self._listener)

    def cut(self) -> None:
        with self._lock:
            _hang_up(self._listener)
            while self._ends:
                _hang_up(self._ends.pop())

    def mend(self) -> None:
        self._listener = _listen(self.port)
        self._accept_from(self._listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cut()

    def _accept_from(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the line was cut
            while True:
                near, _address = listener.accept()
                self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        far = socket.create_connection(self._target)
        with self._lock:
            self._ends += (near, far)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
    _hang_up(sink)


def _hang_up(end: socket.socket) -> None:
    """Wakes whoever waits for it, too."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
