"""A mock worker in a process of its own, which can be killed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.support.server import Server


class MockWorker(Server):
    program = "dynamo-worker"
    model = "mock"

    def __init__(self, *flags: str, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._flags = flags
        self._environment = dict(environment)
        self.instance_id = 0

    def arguments(self) -> list[str]:
        return [f"--model-name={self.model}", *self._flags]

    def environment(self) -> dict[str, str]:
        return self._environment

    def is_ready(self, output: str) -> bool:
        if (listening := re.search(r"instance (\w+) listens", output)) is None:
            return False
        self.instance_id = int(listening[1], 16)
        return ": serving " in output
