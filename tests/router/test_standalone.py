"""One router that runs alone, asked by two gateways, all as processes of their own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from dynamo.router.config import RouterConfig
from tests.support.completions import Completion, all_begun, all_ended, complete
from tests.support.fleet import LONG_PROMPT, SHORT_PROMPT, Fleet, HeldWorker
from tests.support.gateway import Gateway
from tests.support.server import Server
from tests.support.standalone_router import StandaloneRouter, store_in
from tests.support.waiting import PATIENCE_S, until, wait_until

MODEL = Fleet.model
NUM_WORKERS = 2
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class Deployment:
    def __init__(self, directory: Path, processes: ExitStack, *flags: str) -> None:
        store = store_in(directory)
        self.workers = [processes.enter_context(HeldWorker(store)) for _ in range(NUM_WORKERS)]
        self.router = processes.enter_context(StandaloneRouter(store, *flags))
        self.gateways = [processes.enter_context(self._gateway(store)) for _ in range(2)]

    def _gateway(self, store: dict[str, str]) -> Gateway:
        flags = (f"--router-address={self.router.address}", "--discovery-backend=file", "--router-mode=random")
        gateway = Gateway(*flags, mock_workers=0, environment=store)
        gateway.model = MODEL
        return gateway

    def open_gates(self) -> None:
        for worker in self.workers:
            worker.open_gate()

    async def hold(self, gateway: Gateway, worker: HeldWorker, count: int) -> list[Completion]:
        """Requests of this gateway that keep this worker busy."""
        pin = {"backend_instance_id": int(worker.instance_id, 16)}
        asked = [
            await complete(gateway.address, f"{i}. {LONG_PROMPT}", model=MODEL, nvext=pin, **STREAM)
            for i in range(count)
        ]
        await all_begun(asked)
        return asked


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def deployment(tmp_path: Path, processes: ExitStack) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, processes, "--router-mode=least-loaded")
    wait_for_models(deployment)
    yield deployment
    deployment.open_gates()


def wait_for_models(deployment: Deployment) -> None:
    wait_until(lambda: all(gateway.models() == {MODEL} for gateway in deployment.gateways), "the model everywhere")


def ask(gateway: Gateway, prompt: str, **headers: str) -> dict[str, str]:
    """Returns the parts of the route receipt."""
    with closing(http.client.HTTPConnection(*gateway.address, timeout=PATIENCE_S)) as connection:
        body = json.dumps({"model": MODEL, "prompt": prompt})
        wanted = {"content-type": "application/json", "x-dynamo-route-receipt": "true", **headers}
        connection.request("POST", "/v1/completions", body, wanted)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        told = answer.getheader("x-dynamo-route")
        assert told is not None
        return dict(part.split("=") for part in told.split("; "))


async def test_what_one_gateway_has_running_the_other_avoids(deployment: Deployment) -> None:
    busy, idle = deployment.workers
    first, second = deployment.gateways
    held = await deployment.hold(first, busy, 4)
    asked = [await complete(second.address, f"{i}: {LONG_PROMPT}", model=MODEL, **STREAM) for i in range(4)]
    await all_begun(asked)
    assert (busy.num_began, idle.num_began) == (4, 4)
    assert deployment.router.running() == {busy.instance_id: 4, idle.instance_id: 4}
    deployment.open_gates()
    await all_ended([*held, *asked])
    await until(lambda: not deployment.router.running(), "all to be freed")


async def test_what_a_killed_gateway_had_running_is_freed(deployment: Deployment) -> None:
    worker, _ = deployment.workers
    dying, living = deployment.gateways
    await deployment.hold(dying, worker, 3)
    await deployment.hold(living, worker, 2)
    assert deployment.router.running() == {worker.instance_id: 5}
    acceptor = int(dying.log.partition("acceptor-0 is ready pid=")[2].split()[0])
    dying.kill()
    os.kill(acceptor, signal.SIGKILL)  # or it would let its requests end
    await until(lambda: deployment.router.running() == {worker.instance_id: 2}, "the dead gateway's load to go")


async def test_gateways_place_by_themselves_while_the_router_is_away(deployment: Deployment) -> None:
    worker, _ = deployment.workers
    held = [request for gateway in deployment.gateways for request in await deployment.hold(gateway, worker, 2)]
    deployment.router.kill()
    wait_until(lambda: all("the router is gone" in gateway.log for gateway in deployment.gateways), "the loss")
    for gateway in deployment.gateways:
        assert ask(gateway, SHORT_PROMPT)["reason"] == "local"
    deployment.router.start()
    await until(lambda: deployment.router.running() == {worker.instance_id: 4}, "what runs to be told again")
    for gateway in deployment.gateways:
        assert ask(gateway, SHORT_PROMPT)["reason"] == "mode"
    deployment.open_gates()
    await all_ended(held)
    assert all(request.is_whole for request in held)


def test_sessions_and_predicted_blocks_are_known_to_both(tmp_path: Path, processes: ExitStack) -> None:
    flags = ("--router-mode=kv", "--no-router-kv-events", "--router-session-affinity-ttl-secs=600")
    deployment = Deployment(tmp_path, processes, *flags)
    wait_for_models(deployment)
    deployment.open_gates()
    first, second = deployment.gateways

    told = ask(first, LONG_PROMPT)
    again = ask(second, LONG_PROMPT)
    assert (told["device"], again["device"]) == ("0", str(int(again["blocks"]) - 1))
    assert again["worker"] == told["worker"]

    for i in range(6):
        bound = ask(first, f"{i} {SHORT_PROMPT}", **{"x-dynamo-session-id": f"session {i}"})
        followed = ask(second, f"{i} and more", **{"x-dynamo-session-id": f"session {i}"})
        assert (followed["worker"], followed["reason"]) == (bound["worker"], "affinity")


def test_options_of_placement_are_the_routers(deployment: Deployment) -> None:
    for gateway in deployment.gateways:
        assert gateway.log.count("for the router at --router-address decides: --router-mode\n") == 1
        assert "router is ready" not in gateway.log


def test_acceptors_of_two_gateways_have_names_of_their_own(deployment: Deployment) -> None:
    assert deployment.router.metrics().total("dynamo_router_acceptors") == 2
    assert "silent" not in deployment.router.log


# --------------------------------------------------------------------------- its own port


def test_health_says_how_many_workers_there_are(deployment: Deployment) -> None:
    status, body = deployment.router.get("/health?verbose=1")
    assert (status, json.loads(body)) == (200, {"status": "ready", "workers": NUM_WORKERS})


def test_what_is_no_request_for_metrics_is_told_so(deployment: Deployment) -> None:
    def talk(sent: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", deployment.router.metrics_port), PATIENCE_S) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()

    assert deployment.router.get("/")[0] == 404
    assert talk(b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert talk(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert talk(b"GET /metrics") == b""
    assert talk(b"x" * 100_000) == b""
    assert deployment.router.get("/health")[0] == 200
    assert "Traceback" not in deployment.router.log


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = [f"--bind=ipc://{tmp_path}/router", "--metrics-host=127.0.0.1", f"--metrics-port={port}"]
        complaint = refusal("dynamo.router", "--discovery-backend=mem", *flags)
    assert f"cannot listen on 127.0.0.1 port {port}" in complaint
    assert "choose another --metrics-port" in complaint


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("module", "flags", "complaint"),
    [
        ("dynamo.router", ["--endpoint=dynamo.backend"], "expected namespace.component.endpoint"),
        ("dynamo.frontend", ["--router-address=host:1"], "expected tcp://host:port or ipc:///path"),
        (
            "dynamo.frontend",
            ["--router-address=ipc:///tmp/router", "--discovery-backend=mem", "--mock-workers=1"],
            "could not see them",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(module: str, flags: list[str], complaint: str) -> None:
    assert complaint in refusal(module, *flags)


def refusal(module: str, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *flags], capture_output=True, timeout=PATIENCE_S, check=False, text=True
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_router_of_an_endpoint_has_defaults_of_its_own() -> None:
    def load(*flags: str) -> tuple[str, str]:
        config, _ = RouterConfig.load(flags, {"DYN_ROUTER_ENDPOINT": "a.b.c"}, prog="dynamo-router")
        return config.router_mode, config.bind

    assert load() == ("kv", "tcp://127.0.0.1:*")
    assert load("--router-mode=random", "--bind=ipc:///tmp/r") == ("random", "ipc:///tmp/r")


def test_routers_of_several_endpoints_share_a_host(tmp_path: Path) -> None:
    """As Dynamo's do, one for prefill and one for decode."""
    store = store_in(tmp_path)
    with RouterOfAnEndpoint(store, "dynamo.prefill.generate"), RouterOfAnEndpoint(store, "dynamo.decode.generate"):
        pass


class RouterOfAnEndpoint(Server):
    program = "dynamo-router"

    def __init__(self, store: dict[str, str], endpoint: str) -> None:
        super().__init__()
        self._environment = {**store, "DYN_ROUTER_ENDPOINT": endpoint}

    def arguments(self) -> list[str]:
        return []

    def environment(self) -> dict[str, str]:
        return self._environment

    def is_ready(self, output: str) -> bool:
        return "listens on" in output
