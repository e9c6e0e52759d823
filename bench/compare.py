"""Our frontend and the anchor side by side: same worker, same load, same cores, alternating."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import model, process_tree
from bench.cases import EXERCISE, FIRST_REQUEST, Case
from bench.frontends import Frontend, Pinned, System
from bench.load import Tally
from bench.probe import check_text
from bench.prompts import Bodies, Prompts
from bench.replay_worker import MODES

FRONTEND_CORE, LOAD_CORE = 0, 1
WARM_UP_S = 0.7
PROBE_TOKENS = 100
CPU_VOCABULARY, MEMORY_VOCABULARY = "deepseek", "qwen"


@dataclass(frozen=True)
class Sample:
    """One run of a case. The shares of a core say who was the bottleneck, and what strangers used (`foreign`)."""

    cpu_us_per_request: float
    cpu_us_per_token: float
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    events_per_token: float
    frontend_share: float
    load_share: float
    foreign_share: float


@dataclass(frozen=True)
class Footprint:
    """A system alone, with the big vocabulary: spawn to first answer, and memory after that answer and after load."""

    start_s: float
    started: process_tree.Memory
    loaded: process_tree.Memory


@dataclass
class Results:
    """Everything measured; a list holds one entry per round."""

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))  # (case, system)
    idle_shares: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    footprints: dict[str, list[Footprint]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure and how long: `seconds_scale` stretches or shortens every case. `out` takes models and logs."""

    cases: Sequence[Case]
    systems: Sequence[System]
    footprint_systems: Sequence[System]
    out: Path
    rounds: int = 3
    seconds_scale: float = 1.0
    idle_s: float = 10.0


async def run(plan: Plan) -> Results:
    os.sched_setaffinity(0, {LOAD_CORE})
    results = Results()
    for number in range(plan.rounds):
        await _measure_cases(plan, number, results)
        for system in plan.footprint_systems:
            footprint = await _footprint(plan, system)
            results.footprints[system.name].append(footprint)
            _progress(f"round {number + 1}  {system.name:18} {footprint}")
    return results


async def _measure_cases(plan: Plan, number: int, results: Results) -> None:
    """One round: all systems up at once behind one worker, the load on one of them at a time."""
    model_dir = model.build(CPU_VOCABULARY, plan.out / "models")
    async with contextlib.AsyncExitStack() as stack:
        store, worker = stack.enter_context(_worker(plan, model_dir, tuple(MODES)))
        prompts = Prompts(model_dir, seed=number)
        frontends = [
            await stack.enter_async_context(_serving(plan, system, store, prompts, tuple(MODES)))
            for system in plan.systems
        ]
        for frontend in frontends:
            await _check_texts(frontend, prompts, model_dir)
        await _measure_idle(plan, frontends, results)
        for case in plan.cases:
            for frontend in _rotated([f for f in frontends if _takes_part(f.system, case)], number):
                sample = await _sample(plan, case, frontend, worker, prompts)
                results.samples[case.name, frontend.system.name].append(sample)
                _progress(f"round {number + 1}  {case.name:28} {frontend.system.name:18} {_brief(sample)}")


async def _sample(plan: Plan, case: Case, frontend: Frontend, worker: Pinned, prompts: Prompts) -> Sample:
    bodies = Bodies(prompts, case)
    async with frontend.client(case.concurrency) as client:
        await client.run(bodies, tokens_out=case.tokens_out, seconds=WARM_UP_S)
        before = _Clocks.read(frontend, worker)
        tally = await client.run(bodies, tokens_out=case.tokens_out, seconds=case.seconds * plan.seconds_scale)
        return _summary(tally, _Clocks.read(frontend, worker).since(before))


async def _measure_idle(plan: Plan, frontends: Sequence[Frontend], results: Results) -> None:
    await asyncio.sleep(1)  # what start-up left to do
    before = [process_tree.cpu_s(frontend.pid) for frontend in frontends]
    await asyncio.sleep(plan.idle_s)
    for frontend, cpu_s in zip(frontends, before, strict=True):
        results.idle_shares[frontend.system.name].append((process_tree.cpu_s(frontend.pid) - cpu_s) / plan.idle_s)


async def _footprint(plan: Plan, system: System) -> Footprint:
    model_dir = model.build(MEMORY_VOCABULARY, plan.out / "models")
    prompts = Prompts(model_dir)
    with _worker(plan, model_dir, ("burst",)) as (store, _process):
        async with _serving(plan, system, store, prompts, ("burst",)) as frontend:
            started = process_tree.memory(frontend.pid)
            for case in EXERCISE:
                async with frontend.client(case.concurrency) as client:
                    seconds = case.seconds * plan.seconds_scale
                    await client.run(Bodies(prompts, case), tokens_out=case.tokens_out, seconds=seconds)
            return Footprint(frontend.start_s, started, process_tree.memory(frontend.pid))


async def _check_texts(frontend: Frontend, prompts: Prompts, model_dir: Path) -> None:
    expected = "".join(text for _id, text in model.words(model_dir, PROBE_TOKENS))
    for mode in MODES:
        async with frontend.client() as client:
            await check_text(client, prompts, mode, expected)


@contextlib.contextmanager
def _worker(plan: Plan, model_dir: Path, modes: Sequence[str]) -> Iterator[tuple[Path, Pinned]]:
    """A replay worker, registered in a store of its own."""
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as store:
        argv = [sys.executable, "-m", "bench.replay_worker", "--modes", ",".join(modes)]
        argv += ["--model-dir", str(model_dir), "--store", store]
        worker = Pinned("replay worker", argv, cores=(LOAD_CORE,), env={}, log=plan.out / "worker.log")
        try:
            yield Path(store), worker
        finally:
            worker.stop()


@contextlib.asynccontextmanager
async def _serving(
    plan: Plan, system: System, store: Path, prompts: Prompts, modes: Sequence[str]
) -> AsyncIterator[Frontend]:
    frontend = Frontend(system, core=FRONTEND_CORE, store=store, log=plan.out / f"{system.slug}.log")
    try:
        first = [next(Bodies(prompts, replace(FIRST_REQUEST, mode=mode))) for mode in modes]
        await frontend.until_serving(first)
        yield frontend
    finally:
        frontend.stop()


@dataclass(frozen=True)
class _Clocks:
    """CPU seconds of the parties, and of everybody on the two cores."""

    frontend: float
    load: float
    cores: float

    @classmethod
    def read(cls, frontend: Frontend, worker: Pinned) -> _Clocks:
        load = time.process_time() + process_tree.cpu_s(worker.pid)
        return cls(process_tree.cpu_s(frontend.pid), load, process_tree.busy_s((FRONTEND_CORE, LOAD_CORE)))

    def since(self, before: _Clocks) -> _Clocks:
        return _Clocks(self.frontend - before.frontend, self.load - before.load, self.cores - before.cores)


def _summary(tally: Tally, used: _Clocks) -> Sample:
    ttft_ms = sorted(1000 * seconds for seconds in tally.ttft_s)
    return Sample(
        cpu_us_per_request=1e6 * used.frontend / tally.num_requests,
        cpu_us_per_token=1e6 * used.frontend / tally.num_tokens,
        requests_per_s=tally.num_requests / tally.elapsed_s,
        tokens_per_s=tally.num_tokens / tally.elapsed_s,
        ttft_p50_ms=statistics.median(ttft_ms),
        ttft_p99_ms=ttft_ms[math.ceil(0.99 * len(ttft_ms)) - 1],
        events_per_token=tally.num_events / tally.num_tokens,
        frontend_share=used.frontend / tally.elapsed_s,
        load_share=used.load / tally.elapsed_s,
        foreign_share=max(0.0, used.cores - used.frontend - used.load) / tally.elapsed_s,
    )


def _takes_part(system: System, case: Case) -> bool:
    return system.tokenizer is None or system.tokenizer in case.tokenizers


def _rotated(frontends: Sequence[Frontend], number: int) -> list[Frontend]:
    start = number % len(frontends)
    return [*frontends[start:], *frontends[:start]]


def _brief(sample: Sample) -> str:
    return (
        f"{sample.cpu_us_per_request:9.1f} µs/req {sample.cpu_us_per_token:8.2f} µs/tok "
        f"{sample.requests_per_s:8.1f} req/s {sample.tokens_per_s:9.0f} tok/s "
        f"TTFT {sample.ttft_p50_ms:.2f}/{sample.ttft_p99_ms:.2f} ms "
        f"busy {sample.frontend_share:.2f}/{sample.load_share:.2f} foreign {sample.foreign_share:.2f}"
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
