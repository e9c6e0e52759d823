"""CPU time and memory of a process and all its descendants, read from /proc. Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """In MB of 10^6 bytes. `rss_mb` counts pages shared between processes for each of them, `pss_mb` once in all."""

    rss_mb: float
    pss_mb: float


def pids_of(root: int) -> list[int]:
    """`root` and its descendants that are alive."""
    pids = [root]
    for pid in pids:
        pids += [child for task in _tasks(pid) for child in _children(task)]
    return pids


def cpu_s(root: int) -> float:
    """CPU seconds the tree has used so far: of the living to the nanosecond, of reaped children to the tick."""
    return sum(time.clock_gettime(_cpu_clock(pid)) + _reaped_s(pid) for pid in pids_of(root))


def memory(root: int) -> Memory:
    totals = {"Rss": 0, "Pss": 0}
    for pid in pids_of(root):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in totals:
                totals[name] += int(rest.split()[0]) * 1024
    return Memory(rss_mb=totals["Rss"] / 1e6, pss_mb=totals["Pss"] / 1e6)


def busy_s(cores: Collection[int]) -> float:
    """CPU seconds everybody has used on these cores since boot."""
    names = {f"cpu{core}" for core in cores}
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return sum(_busy_ticks(times) for name, *times in lines if name in names) / TICKS_PER_S


def _busy_ticks(times: Sequence[str]) -> int:
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, times)
    return user + nice + system + irq + softirq


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return []


def _children(task: Path) -> list[int]:
    try:
        return [int(pid) for pid in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


def _cpu_clock(pid: int) -> int:
    """Clock id of all threads of a process, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | 2


def _reaped_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / TICKS_PER_S
