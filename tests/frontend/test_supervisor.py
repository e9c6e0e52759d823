"""The supervisor as a real process over real child processes that only answer connections (tests/support/standin_*)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dynamo.frontend.listeners import ListenError, listen
from dynamo.frontend.run_dir import RunDir
from tests.support.processes import is_alive, paused
from tests.support.waiting import PATIENCE_S, wait_until

STANDIN = Path(__file__).parent.parent / "support" / "standin_supervisor.py"


class Running:
    """A supervisor and what it logged so far."""

    def __init__(self, log: Path, plan: dict[str, object]) -> None:
        self._log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(STANDIN), json.dumps(plan)], stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        wait_until(lambda: re.search(pattern, self.log) is not None, f"{pattern} in\n{self.log}")
        found = re.search(pattern, self.log)
        assert found is not None
        return found

    def pids_of(self, child: str) -> list[int]:
        """Of all its lives so far."""
        return [int(pid) for pid in re.findall(rf"{child} is ready pid=(\d+)", self.log)]

    def ask(self) -> tuple[str, int]:
        """One connection: index and pid of the acceptor that took it."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port or 0), timeout=PATIENCE_S) as connection:
            index, pid = connection.makefile().readline().split()
        return index, int(pid)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*modes: str, **plan: object) -> Running:
        running = Running(tmp_path / f"log-{len(started)}", {"modes": modes, **plan})
        started.append(running)
        return running

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()
        assert running.process.stdout is not None
        running.process.stdout.close()


def test_connections_are_spread_over_all_acceptors(supervise: Callable[..., Running]) -> None:
    running = supervise("serve", "serve", "serve")
    running.wait_for_line("serving")
    assert {running.ask()[0] for _ in range(100)} == {"0", "1", "2"}


def test_a_dead_acceptor_comes_back_on_its_socket_and_nothing_else_restarts(supervise: Callable[..., Running]) -> None:
    running = supervise("serve")
    running.wait_for_line("serving")
    _, pid = running.ask()
    os.kill(pid, signal.SIGKILL)
    running.wait_for_line("acceptor-0 was killed by SIGKILL; starting it again")
    index, successor = running.ask()  # waits in the queue of the socket until the successor accepts
    assert index == "0"
    assert successor != pid
    assert len(running.pids_of("router")) == 1


def test_connections_queued_at_a_killed_acceptor_are_served_by_its_successor(supervise: Callable[..., Running]) -> None:
    running = supervise("serve")
    running.wait_for_line("serving")
    _, pid = running.ask()
    address = urlsplit(running.url)
    with paused(pid):
        queued = [socket.create_connection((address.hostname, address.port or 0), PATIENCE_S) for _ in range(8)]
        os.kill(pid, signal.SIGKILL)
    answers = [connection.makefile().readline().split() for connection in queued]
    for connection in queued:
        connection.close()
    # One connection may have been taken by the accept() that was pending at the kill: it died with its owner.
    assert len([answer for answer in answers if answer and int(answer[1]) != pid]) >= 7


def test_a_dead_router_comes_back_and_acceptors_stay(supervise: Callable[..., Running]) -> None:
    running = supervise("serve", "serve")
    running.wait_for_line("serving")
    os.kill(running.pids_of("router")[0], signal.SIGKILL)
    wait_until(lambda: len(running.pids_of("router")) == 2, "a second router")
    assert [len(running.pids_of(f"acceptor-{i}")) for i in range(2)] == [1, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_in_order_and_leaves_nothing(supervise: Callable[..., Running], number: signal.Signals) -> None:
    running = supervise("serve", "serve")
    running.wait_for_line("serving")
    pids = [*running.pids_of("acceptor-."), *running.pids_of("router")]
    assert len(pids) == 3
    assert running.stop(number) == 0
    assert not any(map(is_alive, pids))
    assert running.log.index("acceptor-1 exited") < running.log.index("router exited")


def test_a_second_signal_ends_everything_at_once(supervise: Callable[..., Running]) -> None:
    running = supervise("deaf", grace_s=1000)
    running.wait_for_line("serving")
    running.process.send_signal(signal.SIGTERM)
    running.wait_for_line("running requests may finish")
    assert running.stop() == 1
    assert not any(map(is_alive, [*running.pids_of("acceptor-0"), *running.pids_of("router")]))


def test_a_child_that_does_not_stop_in_its_time_is_killed(supervise: Callable[..., Running]) -> None:
    running = supervise("deaf", grace_s=0.2)
    running.wait_for_line("serving")
    assert running.stop() == 1
    assert "acceptor-0 did not stop in 0.2 s" in running.log
    assert "router exited with status 0" in running.log


def test_no_orphans_when_the_supervisor_is_killed(supervise: Callable[..., Running]) -> None:
    running = supervise("serve", "deaf")
    running.wait_for_line("serving")
    pids = [*running.pids_of("acceptor-."), *running.pids_of("router")]
    running.stop(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)), "the end of all children")


def test_new_connections_are_refused_once_the_drain_has_ended_the_acceptor(supervise: Callable[..., Running]) -> None:
    running = supervise("serve", router_mode="deaf")
    running.wait_for_line("serving")
    running.process.send_signal(signal.SIGTERM)
    running.wait_for_line("acceptor-0 exited")
    with pytest.raises(ConnectionRefusedError):
        running.ask()


def test_a_child_that_never_gets_ready_ends_the_start(supervise: Callable[..., Running]) -> None:
    running = supervise("serve", "fail")
    assert running.process.wait(PATIENCE_S) == 1
    assert "cannot start: acceptor-1 exited with status 3, 5 times" in running.log
    assert "Traceback" not in running.log


def test_signal_during_the_start_is_obeyed(supervise: Callable[..., Running]) -> None:
    running = supervise("hang")
    running.wait_for_line("router is ready")
    assert running.stop() == 0


def test_an_occupied_port_is_said_in_one_line(supervise: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as foreign:
        running = supervise("serve", port=foreign.getsockname()[1])
        assert running.process.wait(PATIENCE_S) == 1
    assert re.fullmatch(r"cannot start: cannot listen on 127.0.0.1:\d+: Address already in use .*\n", running.log)


def test_ipv6_and_a_free_port_for_all() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        sockets = listen("[::1]", 0, 3, 16)
    except ListenError as error:
        pytest.skip(str(error))
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ListenError, match=r"--http-host 256\.1\.1\.1"):
        listen("256.1.1.1", 0, 1, 16)


def test_run_dir_is_private_and_removes_what_a_dead_owner_left(tmp_path: Path) -> None:
    abandoned = tmp_path / "dynamo-frontend-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    first, second = RunDir(tmp_path), RunDir(tmp_path)
    assert first.path.stat().st_mode & 0o777 == 0o700
    assert not abandoned.exists()
    assert first.path.exists(), "its owner lives"
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []
