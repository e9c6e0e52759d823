"""What a worker says about itself in discovery, from its first word to its last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from dynamo.shared.config import ConfigError
from dynamo.shared.discovery import CARDS, INSTANCES, Deleted, Put
from dynamo.shared.discovery.mem import MemDiscovery
from dynamo.shared.protocol import Instance, ModelDeploymentCard
from dynamo.worker import (
    DistributedRuntime,
    ModelDirectoryError,
    ModelInput,
    ModelRuntimeConfig,
    ModelType,
    RuntimeClosed,
    ServingConfig,
    WorkerType,
    dynamo_worker,
    register_llm,
    unregister_llm,
)
from tests.support.server import free_port
from tests.worker.frontend import open_frontend
from tests.worker.serving import ENDPOINT, serving


class Store:
    """What discovery holds, followed from outside."""

    def __init__(self) -> None:
        self._discovery = MemDiscovery()
        self.entries: dict[tuple[str, str], Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Store:
        await self._discovery.open()
        self._tasks = [asyncio.create_task(self._follow(bucket)) for bucket in (INSTANCES, CARDS)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._discovery.close()

    async def _follow(self, bucket: str) -> None:
        async for changes in self._discovery.watch(bucket):
            for change in changes:
                match change:
                    case Put(key, value):
                        self.entries[bucket, key] = json.loads(value)
                    case Deleted(key):
                        self.entries.pop((bucket, key), None)
            self._changed.set()

    async def until(self, *buckets: str) -> list[Any]:
        """The entries, once there is exactly one in each of these buckets."""
        async with asyncio.timeout(20):
            while sorted(bucket for bucket, _ in self.entries) != sorted(buckets):
                self._changed.clear()
                await self._changed.wait()
        return [next(value for (at, _), value in self.entries.items() if at == bucket) for bucket in buckets]


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with Store() as store:
        yield store


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "Tiny-Model"
    directory.mkdir()
    (directory / "config.json").write_text('{"text_config": {"max_position_embeddings": 4096}}')
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "generation_config.json").write_text('{"eos_token_id": 1}')
    return directory


async def silence(request: Any) -> AsyncIterator[Any]:
    for _ in ():
        yield


async def register(runtime: DistributedRuntime, path: Path, name: str | None = None, **options: Any) -> None:
    kind = options.pop("model_type", ModelType.Chat | ModelType.Completions)
    options = {"worker_type": WorkerType.Aggregated, **options}
    await register_llm(ModelInput.Tokens, kind, runtime.endpoint(ENDPOINT), str(path), name, **options)


async def test_an_endpoint_is_announced_and_withdrawn(store: Store) -> None:
    async with serving(silence) as (runtime, target):
        [value] = await store.until(INSTANCES)
        instance = msgspec.convert(value, Instance)
        assert instance.instance_id == runtime.instance_id == runtime.endpoint(ENDPOINT).connection_id()
        assert instance.transport == {"tcp": target}
        assert target.endswith(f"/{runtime.instance_id:x}/demo/backend/generate")
        assert target.startswith("127.0.0.1:")
        assert instance.request_plane_codec == "msgpack"
    await store.until()


async def test_a_sleeping_worker_leaves_and_comes_back(store: Store) -> None:
    runtime = DistributedRuntime(discovery_backend="mem")
    endpoint = runtime.namespace("demo").component("backend").endpoint("generate")
    await endpoint.open(silence)
    await store.until(INSTANCES)
    await endpoint.unregister_endpoint_instance()
    await store.until()
    await endpoint.register_endpoint_instance()
    await store.until(INSTANCES)
    await runtime.wait_closed()


async def test_serve_endpoint_lasts_until_the_shutdown(store: Store) -> None:
    runtime = DistributedRuntime(discovery_backend="mem")
    served = [
        asyncio.create_task(runtime.endpoint(f"dyn://demo.backend.{name}").serve_endpoint(silence)) for name in "ab"
    ]
    await store.until(INSTANCES, INSTANCES)
    runtime.shutdown()
    await asyncio.gather(*served)
    await store.until()


async def test_a_cancelled_endpoint_is_withdrawn(store: Store) -> None:
    runtime = DistributedRuntime(discovery_backend="mem")
    served = asyncio.create_task(runtime.endpoint(ENDPOINT).serve_endpoint(silence))
    await store.until(INSTANCES)
    served.cancel()
    await store.until()
    await runtime.wait_closed()


async def test_running_requests_finish_before_the_end(store: Store) -> None:
    go_on = asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield {"token_ids": [1]}
        await go_on.wait()
        yield {"token_ids": [2]}

    async with open_frontend() as frontend, serving(handler) as (runtime, target):
        running = await frontend.ask(target, {})
        await running.until(1)
        runtime.shutdown()
        await store.until()
        while frontend.acks[-1] == b"":  # accepted while the withdrawal spreads
            await frontend.ask(target, {})
            await frontend.until_acks(len(frontend.acks) + 1)
            await asyncio.sleep(0.01)
        assert frontend.acks[-1].startswith(b"Server unavailable: unknown endpoint")
        assert not running.ended.is_set()
        go_on.set()
        await runtime.wait_closed()
        await running.ended.wait()
        assert len(running.items) == 2
        assert running.is_complete


async def test_a_request_that_does_not_finish_is_cut_off() -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield {"token_ids": [1]}
        await asyncio.Event().wait()

    async with open_frontend() as frontend, serving(handler, graceful_shutdown_timeout_s=0.1) as (runtime, target):
        answer = await frontend.ask(target, {})
        await answer.until(1)
        await runtime.wait_closed()
        await answer.ended.wait()
        assert not answer.is_complete


async def test_an_endpoint_may_decline_to_wait() -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield {"token_ids": [1]}
        await asyncio.Event().wait()

    runtime = DistributedRuntime(discovery_backend="mem")
    endpoint = runtime.endpoint(ENDPOINT)
    await endpoint.open(handler, graceful_shutdown=False)
    async with open_frontend() as frontend:
        answer = await frontend.ask(endpoint.target, {})
        await answer.until(1)
        async with asyncio.timeout(20):  # less than the 30 s that a graceful one would get
            await runtime.wait_closed()


async def test_a_card(store: Store, model_dir: Path) -> None:
    async with serving(silence) as (runtime, _):
        config = ModelRuntimeConfig(total_kv_blocks=100)
        config.set_engine_specific("flavour", "sweet")
        await register(runtime, model_dir, kv_cache_block_size=64, runtime_config=config, model_aliases=["t"])
        value, _ = await store.until(CARDS, INSTANCES)
        raw = value["card_json"]
        assert (value["type"], value["instance_id"]) == ("Model", runtime.instance_id)
        card = msgspec.convert(raw, ModelDeploymentCard)
        assert (card.display_name, card.slug, card.source_path) == ("Tiny-Model", "tiny-model", str(model_dir))
        assert card.model_types == {"Chat", "Completions"}
        assert (card.model_input, card.role, card.aliases) == ("Tokens", "aggregated", ["t"])
        assert card.max_context_length == card.context_length == 4096
        assert (card.kv_cache_block_size, card.runtime_config.total_kv_blocks) == (64, 100)
        assert raw["runtime_config"]["runtime_data"] == {"flavour": "sweet"}
        assert card.tokenizer is not None
        tokenizer = card.tokenizer["hf_tokenizer_json"]
        assert tokenizer.checksum == f"blake3:{blake3(b'{}').hexdigest()}"
        assert (tokenizer.path, tokenizer.size) == (str(model_dir / "tokenizer.json"), 2)
        assert card.gen_config is not None
        assert None not in raw.values()  # absent, not null
        await unregister_llm(runtime.endpoint(ENDPOINT))
        await store.until(INSTANCES)


async def test_a_chat_template_of_its_own(store: Store, model_dir: Path, tmp_path: Path) -> None:
    (model_dir / "chat_template.jinja").write_text("{{ messages }}")
    custom = tmp_path / "mine.jinja"
    custom.write_text("{{ mine }}")
    async with serving(silence) as (runtime, _):
        await register(runtime, model_dir)
        value, _ = await store.until(CARDS, INSTANCES)
        assert value["card_json"]["chat_template_file"]["hf_chat_template"]["is_custom"] is False
        await register(runtime, model_dir, custom_template_path=str(custom))
        template = value["card_json"]["chat_template_file"]["hf_chat_template"]
        async with asyncio.timeout(20):
            while not template["is_custom"]:
                await asyncio.sleep(0.01)
                value, _ = await store.until(CARDS, INSTANCES)
                template = value["card_json"]["chat_template_file"]["hf_chat_template"]
        assert template["file"]["path"] == str(custom)


async def test_an_adapter_has_a_card_of_its_own(store: Store, model_dir: Path) -> None:
    async with serving(silence) as (runtime, _):
        await register(runtime, model_dir, lora_name="My/Adapter", base_model_path=str(model_dir))
        value, _ = await store.until(CARDS, INSTANCES)
        assert value["model_suffix"] == "my_adapter"
        assert value["card_json"]["lora"] == {"name": "My/Adapter"}
        assert (CARDS, f"demo/backend/generate/{runtime.instance_id:x}/my_adapter") in store.entries
        await unregister_llm(runtime.endpoint(ENDPOINT), "My/Adapter")
        await store.until(INSTANCES)


async def test_registrations_that_nobody_could_serve(model_dir: Path, tmp_path: Path) -> None:
    async with serving(silence) as (runtime, _):
        prefill = WorkerType.Prefill
        with pytest.raises(ValueError, match="prefill worker has no API"):
            await register(runtime, model_dir, worker_type=prefill, needs=[[WorkerType.Decode]])
        with pytest.raises(ValueError, match="needs"):
            await register(runtime, model_dir, worker_type=prefill, model_type=ModelType.Empty)
        with pytest.raises(ValueError, match="together"):
            await register(runtime, model_dir, lora_name="a")
        with pytest.raises(ModelDirectoryError, match="has no config"):
            await register(runtime, tmp_path)
        (model_dir / "tokenizer.json").unlink()
        with pytest.raises(ModelDirectoryError, match="has neither tokenizer"):
            await register(runtime, model_dir)


async def test_the_decorator_makes_and_drains_a_runtime(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "mem")

    @dynamo_worker()
    async def worker(runtime: DistributedRuntime, name: str) -> str:
        await runtime.endpoint(ENDPOINT).open(silence)
        await store.until(INSTANCES)
        return f"{name} {runtime.instance_id:x}"

    assert (await worker("mine")).startswith("mine ")
    await store.until()


def test_endpoints_have_three_parts() -> None:
    runtime = DistributedRuntime(discovery_backend="mem")
    for path in ("a.b", "a.b.c.d", "dyn://a..c"):
        with pytest.raises(ValueError, match=r"expected namespace\.component\.endpoint"):
            runtime.endpoint(path)
    with pytest.raises(RuntimeError, match="no identity yet"):
        runtime.endpoint(ENDPOINT).connection_id()


async def test_a_shutdown_ends_a_start_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://127.0.0.1:{free_port()}")  # nobody there
    runtime = DistributedRuntime(discovery_backend="etcd")
    opening = asyncio.create_task(runtime.open())
    await asyncio.sleep(0.1)
    async with asyncio.timeout(20):
        await runtime.wait_closed()
        with pytest.raises(RuntimeClosed):
            await opening
    with pytest.raises(RuntimeClosed):
        await runtime.endpoint(ENDPOINT).serve_endpoint(silence)


def test_a_plane_that_is_not_spoken() -> None:
    with pytest.raises(ConfigError, match="request_plane must be one of tcp"):
        DistributedRuntime(discovery_backend="mem", request_plane="nats")


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ({"discovery_backend": "file"}, "127.0.0.1"),
        ({"discovery_backend": "etcd"}, None),
        ({"discovery_backend": "file", "rpc_host": "192.0.2.7"}, "192.0.2.7"),
    ],
)
def test_where_to_listen(options: dict[str, str], host: str | None) -> None:
    assert ServingConfig(**options).host == host  # type: ignore[arg-type]
