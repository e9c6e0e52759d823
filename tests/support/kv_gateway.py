"""A gateway in router mode kv: where a prompt went, who is known to hold it, what its router counts."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.support.fleet import Fleet
from tests.support.waiting import PATIENCE_S, until, wait_until

TRACKED = ("dynamo_router_active_requests", "dynamo_router_active_prefill_tokens", "dynamo_router_active_blocks")
FOUND = "the router answers"  # an acceptor says so each time
COMPLAINTS = ("Traceback", " ERROR ")


class Rank(NamedTuple):
    worker_id: int
    dp_rank: int = 0


class Routed(NamedTuple):
    """Where a request went and why; tokens that the router expected in its cache, and that the worker found there."""

    rank: Rank
    reason: str
    predicted: int
    cached: int


class Refusal(Exception):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


class KvGateway(Fleet):
    """Prompts are token ids. `tracked` are the metrics that say what a router takes to be running."""

    def __init__(self, *flags: str, model: str, environment: Mapping[str, str], mock_workers: int = 0) -> None:
        super().__init__("--router-mode=kv", *flags, environment=environment, mock_workers=mock_workers)
        self.model = model

    def route(
        self,
        prompt: list[int],
        *,
        at: Rank | None = None,
        weights: Mapping[str, float] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Routed:
        """One token of answer, from `at` if that is given. Raises Refusal."""
        nvext: dict[str, Any] = {"extra_fields": ["route_receipt"]}
        if at is not None:
            nvext |= {"backend_instance_id": at.worker_id, "dp_rank": at.dp_rank}
        if weights is not None:
            nvext["router_config_override"] = weights
        body = {"prompt": prompt, "max_tokens": 1, "nvext": nvext}
        answer = self.call("POST", "/v1/completions", body, headers)
        receipt = answer["nvext"]["route_receipt"]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert receipt["cached_tokens"] == cached
        rank = Rank(receipt["worker_id"], receipt["dp_rank"] or 0)
        return Routed(rank, receipt["reason"], receipt["predicted_cached_tokens"], cached)

    def candidates(self, prompt: list[int]) -> dict[Rank, dict[str, Any]]:
        """What the router would compare for this prompt."""
        told = self.call("POST", "/v1/admin/router/explain", {"prompt": prompt})
        return {Rank(one["worker_id"], one["dp_rank"]): one for one in told["candidates"]}

    def held_blocks(self, prompt: list[int]) -> dict[Rank, int]:
        """Blocks of the prompt on the device of each rank, as far as the router knows."""
        return {rank: one["cached_blocks"]["device"] for rank, one in self.candidates(prompt).items()}

    def wait_until_held(self, prompt: list[int], at: Rank, num_blocks: int) -> None:
        """Events come after the answer that they are about."""
        wait_until(lambda: self.held_blocks(prompt).get(at) == num_blocks, f"{num_blocks} blocks at {at}")

    def ranks(self) -> list[Rank]:
        """None of them while the model is not there."""
        try:
            return sorted(self.candidates([1, 2, 3]))
        except Refusal:
            return []

    def wait_until_it_has(self, num_ranks: int) -> None:
        wait_until(lambda: len(self.ranks()) == num_ranks, f"{num_ranks} ranks")

    def kill_router(self) -> Callable[[], bool]:
        """What is returned tells whether every acceptor has found the next one."""
        found = self.log.count(FOUND) + len(self.acceptors())
        os.kill(self.pid_of("router"), signal.SIGKILL)
        return lambda: self.log.count(FOUND) >= found

    def call(self, method: str, path: str, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        """Over a connection of its own, so by any acceptor. Raises Refusal."""
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)) as connection:
            answer = self._send(connection, method, path, fields, headers)
            told = json.loads(answer.read())
        if answer.status != 200:
            raise Refusal(answer.status, told)
        return told

    @contextmanager
    def open_stream(self, fields: Mapping[str, Any]) -> Iterator[None]:
        """A completion whose answer has begun, and whose client leaves at the end."""
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)) as connection:
            answer = self._send(connection, "POST", "/v1/completions", {**fields, "stream": True})
            assert (answer.status, answer.readline()[:6]) == (200, b"data: ")
            yield

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        fields: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        body = json.dumps({"model": self.model, **fields})
        connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
        return connection.getresponse()

    def total(self, name: str, **labels: str) -> int:
        return self.metrics().total(name, **labels)

    @property
    def load(self) -> dict[str, int]:
        """Over all ranks."""
        metrics = self.metrics()
        return {name: metrics.total(name) for name in TRACKED}

    async def until_idle(self) -> None:
        await until(lambda: not any(self.load.values()), "the end of all load")

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that nobody should have to read."""
        return [line for line in self.log.splitlines() if any(word in line for word in COMPLAINTS)]


def prompt_of(seed: int, num_tokens: int) -> list[int]:
    """One that shares no block with that of another seed."""
    return [5 + (seed * 7919 + at) % 15000 for at in range(num_tokens)]
