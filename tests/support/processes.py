"""What Linux says about a process: whether it lives, what it holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.waiting import wait_until

ESTABLISHED = "01"


def is_alive(pid: int) -> bool:
    """A zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_files(pid: int) -> Iterator[str]:
    """Paths, or what stands for one, as in `socket:[inode]`."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed while we look
            yield os.readlink(descriptor)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_ticks(pid: int) -> int:
    """Spent so far, by the program and by the system for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def client_ports(pid: int, server_port: int) -> set[int]:
    """Ports of the clients whose connections to `server_port` (IPv4) this process has accepted."""
    inodes = {name[len("socket:[") : -1] for name in open_files(pid) if name.startswith("socket:[")}
    return {
        int(fields[2].partition(":")[2], 16)
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[3] == ESTABLISHED
        and fields[9] in inodes
        and int(fields[1].partition(":")[2], 16) == server_port
    }


@contextmanager
def paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _is_stopped(pid), f"process {pid} to stop")
    try:
        yield
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    """All its threads: on a busy machine the signal takes its time."""
    states = [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state == "T" for state in states)
