"""The whole product as one process tree: supervisor, router, acceptors and mock workers."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tests.support.server import Server


class Gateway(Server):
    """`dynamo-frontend` on a port of its own choosing. It is ready when its model is listed."""

    program = "dynamo-frontend"
    model = "demo"

    def __init__(self, *flags: str, mock_workers: int = 1, environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._flags = flags
        self._mock_workers = mock_workers
        self._environment = dict(environment or {})
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

    def environment(self) -> dict[str, str]:
        return self._environment

    def is_ready(self, output: str) -> bool:
        if (listening := re.search(r"listening on (http://\S+)", output)) is None:
            return False
        self.base_url = listening[1]
        models = self.models()
        return models is not None and (not self._mock_workers or self.model in models)

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.base_url)
        assert url.hostname is not None
        assert url.port is not None
        return url.hostname, url.port

    def close(self) -> None:
        """Ask first: a supervisor that is killed outright leaves its children to notice by themselves."""
        self.stop()
        super().close()

    def models(self) -> set[str] | None:
        """None while nobody answers."""
        answer = self.get("/v1/models")
        return None if answer is None else {model["id"] for model in answer["data"]}

    def instances(self) -> set[int]:
        """Workers of all models, as one acceptor knows them."""
        answer = self.get("/health")
        return set() if answer is None else {instance["instance_id"] for instance in answer["instances"]}

    def get(self, path: str) -> Any:
        """The JSON of a 200, from whichever acceptor takes a new connection; None where there is no answer."""
        try:
            with urllib.request.urlopen(self.base_url + path, timeout=10) as answer:
                return json.load(answer)
        except (OSError, urllib.error.URLError):
            return None
