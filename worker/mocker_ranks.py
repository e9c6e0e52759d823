"""The mocker of a worker process: an engine per data-parallel rank, and what routers are told of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.exceptions import InvalidArgument
from dynamo.shared.runtime import Endpoint
from dynamo.worker.config import WorkerConfig
from dynamo.worker.kv_publisher import KvEventPublisher
from dynamo.worker.latency import LatencyModel
from dynamo.worker.load_publisher import WorkerMetricsPublisher
from dynamo.worker.made_up_text import words_of
from dynamo.worker.mocker import GenerateItem, MockerEngine
from dynamo.worker.scheduler import Scheduler, SchedulerConfig

CLEAR_ENDPOINT = "clear_kv_blocks"


class MockerRanks:
    """`generate` and `clear_kv_blocks` are the handlers to serve."""

    def __init__(self, engines: list[MockerEngine]) -> None:
        self._engines = engines

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[GenerateItem]:
        """On the rank that the request names, else on the one with the fewest requests."""
        engine = self._engine_of(request)
        async for item in engine.generate(request, context):
            yield item

    async def clear_kv_blocks(self, _request: object) -> AsyncIterator[dict[str, str]]:
        """The ranks that are idle forget what they cached."""
        num_cleared = sum(engine.clear_kv_blocks() for engine in self._engines)
        if num_cleared == len(self._engines):
            yield {"status": "success", "message": "KV cache cleared"}
        else:
            yield {"status": "error", "message": "requests are running: their ranks keep their KV cache"}

    def _engine_of(self, request: dict[str, Any]) -> MockerEngine:
        match request.get("routing"):
            case {"dp_rank": int(rank)} if 0 <= rank < len(self._engines):
                return self._engines[rank]
            case {"dp_rank": int(rank)}:
                raise InvalidArgument(f"dp_rank is {rank}; this worker has the ranks 0 to {len(self._engines) - 1}")
        return min(self._engines, key=lambda engine: engine.num_requests)


async def serve_mocker(config: WorkerConfig, endpoint: Endpoint, context_length: int | None) -> None:
    load = WorkerMetricsPublisher()
    engines = [_engine(config, endpoint, context_length, rank, load) for rank in range(config.data_parallel_size)]
    ranks = MockerRanks(engines)
    # A single rank takes whatever comes, without a generator in between.
    await endpoint.open(engines[0].generate if len(engines) == 1 else ranks.generate)
    clear = Endpoint(endpoint.runtime, endpoint.namespace, endpoint.component, CLEAR_ENDPOINT)
    await clear.open(ranks.clear_kv_blocks)
    await load.create_endpoint(endpoint)


def _engine(
    config: WorkerConfig, endpoint: Endpoint, context_length: int | None, rank: int, load: WorkerMetricsPublisher
) -> MockerEngine:
    scheduler_config = SchedulerConfig(
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_waiting=config.max_num_waiting,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
    )
    latency = LatencyModel(config.speedup_ratio, config.decode_speedup_ratio)
    scheduler = Scheduler(scheduler_config, latency, _kv_publisher(config, endpoint, rank))
    max_num_tokens = min(scheduler_config.max_num_tokens, context_length or scheduler_config.max_num_tokens)

    def report(num_used_blocks: int) -> None:
        load.publish(rank, num_used_blocks, num_used_blocks)

    report(0)
    return MockerEngine(scheduler, words_of(Path(config.model_path)), max_num_tokens, config.seed, report)


def _kv_publisher(config: WorkerConfig, endpoint: Endpoint, rank: int) -> KvEventPublisher | None:
    if not config.publishes_kv_events:
        return None
    return KvEventPublisher(endpoint, kv_block_size=config.block_size, dp_rank=rank, enable_local_indexer=True)
