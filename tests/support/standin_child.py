"""A child of the supervisor for tests of the supervisor alone: reads its message, says ready, serves, obeys.

Message fields: `mode` (serve, fail, hang, deaf), `listen_fd` (answer every connection with index and pid), `index`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading


def serve(message: dict[str, object]) -> None:
    listener = socket.socket(fileno=int(str(message["listen_fd"])))
    listener.setblocking(True)
    while True:
        connection, _ = listener.accept()
        connection.sendall(f"{message['index']} {os.getpid()}\n".encode())
        connection.close()


def main() -> None:
    message = json.loads(sys.stdin.readline())
    mode = message["mode"]
    if mode == "fail":
        sys.exit(3)
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if mode != "hang":
        os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), b"ready\n")
    if "listen_fd" in message:
        threading.Thread(target=serve, args=(message,), daemon=True).start()
    sys.stdin.read()  # ends when the supervisor does
    os._exit(7)


if __name__ == "__main__":
    main()
