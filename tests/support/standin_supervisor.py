"""The real supervisor over stand-in children, as a process: prints its address, then logs as in production.

Arguments: JSON with `port`, `modes` (of the acceptors), `router_mode`, `grace_s`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dynamo.frontend.child import Child
from dynamo.frontend.listeners import ListenError, listen, url_of
from dynamo.frontend.supervisor import Stage, StartError, Supervisor
from dynamo.shared.log import configure_logging

ENVIRON = {"PYTHONPATH": os.fspath(Path(__file__).parent)}


def child(name: str, message: dict[str, object], *fds: int) -> Child:
    return Child(name, "standin_child", message, fds, ENVIRON)


def main() -> None:
    plan = json.loads(sys.argv[1])
    configure_logging("supervisor")
    try:
        listeners = listen("127.0.0.1", plan.get("port", 0), len(plan["modes"]), backlog=16)
        print(url_of(listeners[0], "http"), flush=True)
        acceptors = [
            child(f"acceptor-{i}", {"mode": mode, "index": i, "listen_fd": sock.fileno()}, sock.fileno())
            for i, (mode, sock) in enumerate(zip(plan["modes"], listeners, strict=True))
        ]
        router = child("router", {"mode": plan.get("router_mode", "serve")})
        stages = [Stage(acceptors, plan.get("grace_s", 10)), Stage([router], 5)]
        sys.exit(Supervisor(stages, listeners).run())
    except (StartError, ListenError) as error:
        sys.exit(f"cannot start: {error}")


if __name__ == "__main__":
    main()
