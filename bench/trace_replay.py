"""Replays a trace at one arm's frontends: every request at its time, on a connection of its own, whoever is late."""

from __future__ import annotations

import asyncio
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from bench.load import Connection, WrongAnswer, http_request
from bench.trace import Request
from bench.trace_fleet import Fleet

ANSWER_TIMEOUT_S = 120
USAGE = re.compile(rb'"prompt_tokens":(\d+).*?"cached_tokens":(\d+)', re.DOTALL)
WORKER = re.compile(rb'"decode_worker_id":(\d+)')


@dataclass(frozen=True)
class Record:
    """What became of one request. `lag_s` is how late it was sent."""

    worker_id: int
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float
    lag_s: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What became of them all, in their order. `cpu_s` are seconds of CPU by whose they are."""

    elapsed_s: float
    records: list[Record]
    errors: list[str]
    cpu_s: dict[str, float]

    @property
    def num_asked(self) -> int:
        return len(self.records) + len(self.errors)

    @property
    def cached_share(self) -> float:
        return sum(r.cached_tokens for r in self.records) / sum(r.prompt_tokens for r in self.records)

    def ttft_ms(self, quantile: float) -> float:
        return 1000 * _quantile([r.ttft_s for r in self.records], quantile)

    def lag_ms(self, quantile: float) -> float:
        return 1000 * _quantile([r.lag_s for r in self.records], quantile)

    def request_spread(self, num_workers: int) -> float:
        """Requests of the busiest worker over those of the average one."""
        return _spread(Counter(r.worker_id for r in self.records), num_workers)

    def token_spread(self, num_workers: int) -> float:
        """The same of prompt tokens."""
        tokens: Counter[int] = Counter()
        for record in self.records:
            tokens[record.worker_id] += record.prompt_tokens
        return _spread(tokens, num_workers)


async def replay(fleet: Fleet, requests: Sequence[Request], bodies: Sequence[bytes], speedup: float) -> Replay:
    """The requests in turn at each of the fleet's frontends, `speedup` times as fast as in the trace."""
    before = _clocks(fleet)
    started = time.perf_counter()
    asking: list[asyncio.Task[Record | str]] = []
    for request, body, port in zip(requests, bodies, cycle(fleet.ports), strict=False):
        due = started + request.at_s / speedup
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asking.append(asyncio.create_task(_ask(port, body, due)))
    results = await asyncio.gather(*asking)
    fleet.check_alive()
    after = _clocks(fleet)
    return Replay(
        elapsed_s=time.perf_counter() - started,
        records=[each for each in results if isinstance(each, Record)],
        errors=[each for each in results if isinstance(each, str)],
        cpu_s={name: after[name] - seconds for name, seconds in before.items()},
    )


async def _ask(port: int, body: bytes, due: float) -> Record | str:
    """What became of it, or what went wrong."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await _answered(port, body, due)
    except (OSError, TimeoutError, WrongAnswer) as error:
        return f"{type(error).__name__}: {error}"


async def _answered(port: int, body: bytes, due: float) -> Record:
    loop = asyncio.get_running_loop()
    _transport, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    try:
        asked_at = time.perf_counter()
        answer = await connection.ask(http_request(body, "/v1/completions"))
    finally:
        connection.close()
    return _record(answer, ttft_s=connection.first_text_at - asked_at, lag_s=asked_at - due)


def _record(answer: bytes, *, ttft_s: float, lag_s: float) -> Record:
    usage, worker = USAGE.search(answer), WORKER.search(answer)
    if not answer.startswith(b"HTTP/1.1 200 ") or b"data: [DONE]" not in answer[-64:]:
        raise WrongAnswer(f"expected a whole stream, got {answer[:300]!r} ... {answer[-100:]!r}")
    if usage is None or worker is None or ttft_s < 0:
        raise WrongAnswer(f"a stream without usage, worker or text: {answer[-600:]!r}")
    return Record(int(worker[1]), int(usage[1]), int(usage[2]), ttft_s, lag_s)


def _clocks(fleet: Fleet) -> dict[str, float]:
    return {"frontends": fleet.frontend_cpu_s(), "mockers": fleet.mocker_cpu_s(), "load": time.process_time()}


def _quantile(values: list[float], quantile: float) -> float:
    if quantile == 0.5:
        return statistics.median(values)
    return sorted(values)[math.ceil(quantile * len(values)) - 1]


def _spread(counts: Counter[int], num_workers: int) -> float:
    return max(counts.values()) * num_workers / counts.total()
