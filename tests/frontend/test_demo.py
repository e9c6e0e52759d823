"""`make run` as a user sees it: one answer on the terminal, then it stays until Ctrl-C, and leaves nothing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import is_alive
from tests.support.waiting import PATIENCE_S, wait_until


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "dynamo.frontend.demo", "--http-port", "0"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def read_until(process: subprocess.Popen[str], last: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if last in line:
            break
    return "".join(lines)


def descendants(pid: int) -> set[int]:
    children = {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)}
    return children.union(*(descendants(child) for child in children))


def _children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def test_the_demo_answers_and_ctrl_c_leaves_nothing(demo: subprocess.Popen[str]) -> None:
    shown = read_until(demo, "Ctrl-C stops everything.")
    answer = re.search(r"\n> .+\n\n(?P<text>.+)\n\nTry next:", shown, re.DOTALL)
    assert answer is not None, shown
    assert answer["text"].strip()
    children = descendants(demo.pid)
    assert len(children) == 5, "a router, two acceptors, two mock workers"
    demo.send_signal(signal.SIGINT)
    assert demo.wait(PATIENCE_S) == 0
    assert not any(map(is_alive, children))


def test_nothing_outlives_a_killed_supervisor(demo: subprocess.Popen[str]) -> None:
    read_until(demo, "Ctrl-C stops everything.")
    children = descendants(demo.pid)
    demo.kill()
    demo.wait()
    wait_until(lambda: not any(map(is_alive, children)), "the end of all children")
