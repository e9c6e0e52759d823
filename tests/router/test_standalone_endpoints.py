"""What a router answers on the request plane: a router and two workers as processes, the test is their client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.shared.discovery import INSTANCES, Put
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.errors import BackendError, Disconnected, DynamoError
from dynamo.shared.hashing import pack_tokens
from dynamo.shared.messages import Worker
from dynamo.shared.protocol import Instance
from dynamo.shared.request_plane.client import EngineClient, EngineLimits, fresh_uuid
from dynamo.shared.request_plane.items import ANYTHING, items_of
from dynamo.shared.request_plane.stream import ResponseServer
from tests.support import held_worker
from tests.support.fleet import HeldWorker
from tests.support.standalone_router import StandaloneRouter, store_in
from tests.support.waiting import PATIENCE_S, until

BLOCK_SIZE = 16
SHORT = list(range(100, 120))
LONG = list(range(1000, 1070))  # four full blocks
FLAGS = ("--endpoint=dynamo.held.generate", "--no-router-kv-events", "--router-track-output-blocks")


class Client:
    """Finds the endpoints of `dynamo.router` in the store, and calls them."""

    def __init__(self, discovery: FileDiscovery, responses: ResponseServer) -> None:
        self._discovery = discovery
        self._engine = EngineClient(responses, EngineLimits())
        self._forever = asyncio.get_running_loop().create_future()

    async def call(self, name: str, request: Any) -> list[Any]:
        async with asyncio.timeout(PATIENCE_S), aclosing(self.stream(name, request)) as items:
            return [item async for item in items]

    async def stream(self, name: str, request: Any) -> Any:
        call = self._engine.call(await self._find(name), fresh_uuid(), request, ANYTHING)
        with await call as stream:
            async with aclosing(items_of(stream, self._forever)) as items:
                async for item in items:
                    yield item

    async def _find(self, name: str) -> Worker:
        listed = await anext(aiter(self._discovery.watch(INSTANCES)))
        values = [change.value for change in listed if isinstance(change, Put)]
        instances = [msgspec.json.decode(value, type=Instance) for value in values]
        (found,) = [i for i in instances if (i.component, i.endpoint) == ("router", name)]
        address, _, path = found.transport["tcp"].partition("/")
        return Worker(found.instance_id, address, path, codec=found.request_plane_codec or "json")

    def close(self) -> None:
        self._engine.close()


class Deployment:
    def __init__(self, directory: Path, processes: ExitStack) -> None:
        self.store = store_in(directory)
        self.workers = {
            int(worker.instance_id, 16): worker
            for worker in (processes.enter_context(HeldWorker(self.store)) for _ in range(2))
        }
        self.router = processes.enter_context(StandaloneRouter(self.store, *FLAGS))

    @property
    def num_tracked(self) -> int:
        return self.router.metrics().total("dynamo_router_tracked_requests")


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with ExitStack() as processes:
        yield Deployment(tmp_path, processes)


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    async with client_in(deployment.store) as client:
        yield client


@asynccontextmanager
async def client_in(store: dict[str, str]) -> AsyncIterator[Client]:
    discovery = FileDiscovery(Path(store["DYN_FILE_KV"]))
    responses = ResponseServer("127.0.0.1", 0, max_message_size=1 << 20)
    await discovery.open()
    await responses.start()
    client = Client(discovery, responses)
    yield client
    client.close()
    responses.stop()
    await discovery.close()


def generation(token_ids: list[int], **fields: Any) -> dict[str, Any]:
    return {"token_ids": token_ids, "stop_conditions": {"max_tokens": len(token_ids)}, **fields}


def pinned(worker_id: int) -> dict[str, Any]:
    return {"routing": {"backend_instance_id": worker_id}}


async def test_an_answer_comes_back_as_the_worker_gave_it(deployment: Deployment, client: Client) -> None:
    wanted = max(deployment.workers)
    (item,) = await client.call("generate", generation(SHORT, **pinned(wanted)))
    data = item.pop("routing_data")
    assert item == {"token_ids": SHORT, "finish_reason": "stop"}
    assert data["worker_id"] == {
        "prefill_worker_id": wanted,
        "prefill_dp_rank": 0,
        "decode_worker_id": wanted,
        "decode_dp_rank": 0,
    }
    timing = data["timing"]
    assert timing["ttft_ms"] == pytest.approx(timing["prefill_wait_time_ms"] + timing["prefill_time_ms"])
    assert timing["total_time_ms"] >= timing["ttft_ms"]
    assert (timing["kv_hit_rate"], timing["router_queue_depth"]) == (0.0, 0)
    assert deployment.num_tracked == 0


async def test_what_was_placed_is_expected_there(deployment: Deployment, client: Client) -> None:
    wanted, other = deployment.workers
    for worker in deployment.workers.values():
        worker.open_gate()
    await client.call("generate", generation(LONG, **pinned(wanted)))

    (scores,) = await client.call("get_overlap_scores", {"token_ids": LONG})
    assert (scores["block_size"], scores["num_blocks"]) == (BLOCK_SIZE, 4)
    assert [row["worker_id"] for row in scores["workers"]] == sorted((wanted, other))
    assert {row["worker_id"]: row["device_blocks"] for row in scores["workers"]} == {wanted: 4, other: 0}
    assert all(row["disk_blocks"] == row["device_blocks"] for row in scores["workers"])
    for foreign in (
        {"lora_name": "x"},
        {"cache_namespace": "x"},
        {"block_mm_infos": [{"mm_objects": [{"mm_hash": 1}]}]},
    ):
        (scores,) = await client.call("get_overlap_scores", {"token_ids": LONG, **foreign})
        assert [row["device_blocks"] for row in scores["workers"]] == [0, 0]

    for request in (LONG, pack_tokens(LONG), {"token_ids": LONG}, {"token_ids": pack_tokens(LONG)}):
        assert await client.call("best_worker_id", request) == [wanted]
    cold = {"token_ids": LONG, "cache_namespace": "x", "router_config_override": {"router_temperature": 0.5}}
    assert {(await client.call("best_worker_id", cold))[0] for _ in range(40)} == {wanted, other}
    assert deployment.num_tracked == 0


async def test_load_is_counted_while_an_answer_lasts(deployment: Deployment, client: Client) -> None:
    worker_id, worker = next(iter(deployment.workers.items()))
    prompt = LONG[:40]
    async with asyncio.timeout(PATIENCE_S):
        async with aclosing(client.stream("generate", generation(prompt, **pinned(worker_id)))) as items:
            await anext(items)
            metrics = deployment.router.metrics()
            assert metrics.total("dynamo_router_active_requests", worker=f"{worker_id:x}") == 1
            assert metrics.total("dynamo_router_active_prefill_tokens") == 0  # the first token has come
            assert metrics.total("dynamo_router_active_blocks") == 2
            for _ in range(8):
                await anext(items)  # the ninth token is the first of another block
            assert deployment.router.metrics().total("dynamo_router_active_blocks") == 3
            worker.open_gate()
            num_left = sum([len(item["token_ids"]) async for item in items])
    assert num_left == len(prompt) - 9
    assert deployment.num_tracked == 0


@pytest.mark.parametrize("num_items", [1, len(LONG) - 1], ids=["while it comes", "while the worker is silent"])
async def test_who_leaves_frees_the_worker(deployment: Deployment, client: Client, num_items: int) -> None:
    worker_id, worker = next(iter(deployment.workers.items()))
    async with asyncio.timeout(PATIENCE_S):
        async with aclosing(client.stream("generate", generation(LONG, **pinned(worker_id)))) as items:
            for _ in range(num_items):
                await anext(items)
            assert deployment.num_tracked == 1
    await until(lambda: worker.num_cancelled == 1, "the worker to hear of it")
    await until(lambda: deployment.num_tracked == 0, "the placement to be freed")


async def test_who_reads_slowly_holds_up_the_worker(deployment: Deployment, client: Client) -> None:
    worker_id, worker = next(iter(deployment.workers.items()))
    num_tokens = 20_000 * held_worker.TOKENS_PER_ITEM  # 625 MiB of text; buffers on the way take a few dozen
    request = {"token_ids": LONG, "stop_conditions": {"max_tokens": num_tokens}, **pinned(worker_id)}
    async with aclosing(client.stream("generate", request)) as items:
        await anext(items)
        num_flooded = -1
        while worker.num_flooded > num_flooded:
            num_flooded = worker.num_flooded
            await asyncio.sleep(0.5)
        assert num_flooded < num_tokens / 4
    await until(lambda: deployment.num_tracked == 0, "the placement to be freed")


async def test_a_namespace_goes_over_that_of_the_endpoint(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    flags = ("--endpoint=elsewhere.held.generate", "--namespace=dynamo")
    with HeldWorker(store), StandaloneRouter(store, *flags):
        async with client_in(store) as client:
            (item,) = await client.call("generate", generation(SHORT))
    assert item["token_ids"] == SHORT


async def test_a_worker_that_dies_is_told_and_freed(deployment: Deployment, client: Client) -> None:
    worker_id, worker = next(iter(deployment.workers.items()))
    async with aclosing(client.stream("generate", generation(LONG, **pinned(worker_id)))) as items:
        await anext(items)
        worker.kill()
        with pytest.raises(Disconnected):
            async for _ in items:
                pass
    await until(lambda: deployment.num_tracked == 0, "the placement to be freed")


async def test_a_worker_that_cannot_be_reached_costs_nobody_an_answer(deployment: Deployment, client: Client) -> None:
    next(iter(deployment.workers.values())).kill()  # discovery will not know for seconds
    for i in range(6):
        (item,) = await client.call("generate", generation([i, *SHORT]))
        assert item["token_ids"] == [i, *SHORT]


async def test_a_restarted_router_is_found_again(deployment: Deployment, client: Client) -> None:
    deployment.router.stop()
    assert "Traceback" not in deployment.router.log
    deployment.router.start()
    (item,) = await client.call("generate", generation(SHORT))
    assert item["token_ids"] == SHORT


@pytest.mark.parametrize(
    ("name", "request_", "complaint"),
    [
        ("generate", generation(SHORT, **pinned(77)), "has no worker with the instance id 77"),
        ("generate", generation(SHORT, dp_rank=9), "has no worker with the data parallel rank 9"),
        ("generate", {"model": "held"}, "missing required field `token_ids`"),
        ("generate", [1, 2], "Expected `object`"),
        ("get_overlap_scores", {"token_ids": [-1]}, "Expected `int` >= 0"),
        ("get_overlap_scores", {"token_ids": "text"}, "token_ids"),
        ("best_worker_id", "text", "token_ids"),
        (
            "best_worker_id",
            {"token_ids": SHORT, "router_config_override": {"router_temperature": "hot"}},
            "temperature",
        ),
    ],
)
async def test_requests_at_fault(
    deployment: Deployment, client: Client, name: str, request_: Any, complaint: str
) -> None:
    with pytest.raises(BackendError, match=complaint) as raised:
        await client.call(name, request_)
    assert raised.value.status == 400
    assert "Traceback" not in deployment.router.log


async def test_without_workers_nobody_is_chosen(deployment: Deployment, client: Client) -> None:
    for worker in deployment.workers.values():
        worker.stop()
    await until(lambda: deployment.router.get("/health")[1] == b'{"status":"ready","workers":0}', "both to leave")
    for name, request in (("generate", generation(SHORT)), ("best_worker_id", SHORT)):
        with pytest.raises(DynamoError, match=r"No worker serves the endpoint dynamo/held/generate\."):
            await client.call(name, request)
    (scores,) = await client.call("get_overlap_scores", {"token_ids": list(range(300))})
    assert (scores["block_size"], scores["num_blocks"], scores["workers"]) == (128, 2, [])
