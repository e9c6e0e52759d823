"""The whole product as one process tree: supervisor, router, acceptors and mock workers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from tests.support.server import Server

STOP_TIMEOUT_S = 60.0  # bounds a failure; a stop without running requests takes a fraction of a second


class Gateway(Server):
    """`dynamo-frontend` on a port of its own choosing. It is ready when its model is listed."""

    program = "dynamo-frontend"
    model = "demo"

    def __init__(self, *flags: str, mock_workers: int = 1) -> None:
        super().__init__()
        self._flags = flags
        self._mock_workers = mock_workers
        self.base_url = ""

    def arguments(self) -> list[str]:
        return [
            "--http-host=127.0.0.1",
            "--http-port=0",
            "--workers=1",
            f"--mock-workers={self._mock_workers}",
            "--discovery-backend=mem",
            *self._flags,
        ]

    def is_ready(self, output: str) -> bool:
        if (listening := re.search(r"listening on (http://\S+)", output)) is None:
            return False
        self.base_url = listening[1]
        models = self._models()
        return models is not None and (not self._mock_workers or self.model in models)

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.base_url)
        assert url.hostname is not None
        assert url.port is not None
        return url.hostname, url.port

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Ask first: a supervisor that is killed outright leaves its children to notice by themselves."""
        if self._process is not None:
            self.signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        super().close()

    def _models(self) -> set[str] | None:
        """None while nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.base_url}/v1/models", timeout=10) as answer:
                return {model["id"] for model in json.load(answer)["data"]}
        except (OSError, urllib.error.URLError):
            return None
