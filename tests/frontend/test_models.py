"""Which models an acceptor says it has, as cards come, fail and go. The models are real: the bundled demo model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from dynamo.frontend.artifacts import ArtifactStore
from dynamo.frontend.model import ModelLoader
from dynamo.frontend.model_table import ModelTable
from dynamo.frontend.models import ModelRegistry
from dynamo.shared.errors import ModelNotFound, ModelNotReady, NoModelOfKind, WrongKindOfModel
from dynamo.shared.messages import TableDelta, Worker, WorkerSet
from dynamo.worker.config import DEMO_MODEL_DIR


def file_ref(name: str) -> dict[str, Any]:
    path = Path(DEMO_MODEL_DIR) / name
    return {"path": str(path), "checksum": f"blake3:{blake3(path.read_bytes()).hexdigest()}"}


def card(name: str = "demo", **more: Any) -> bytes:
    fields = {
        "display_name": name,
        "model_type": "Chat | Completions",
        "tokenizer": {"hf_tokenizer_json": file_ref("tokenizer.json")},
        "prompt_formatter": {"hf_tokenizer_config_json": file_ref("tokenizer_config.json")},
        "gen_config": {"hf_generation_config_json": file_ref("generation_config.json")},
        "architectural_max_context_length": 1024,
    }
    return msgspec.json.encode(fields | more)


def worker_set(card: bytes, *, key: str = "set", mdcsum: str = "sum", members: tuple[int, ...] = (1,)) -> WorkerSet:
    name = msgspec.json.decode(card)["display_name"]
    role = msgspec.json.decode(card).get("worker_type", "aggregated")
    return WorkerSet(key, name, "ns", "backend", "generate", role, mdcsum, card, list(members))


class Fleet:
    """A table and the registry that follows it."""

    def __init__(self, executor: ThreadPoolExecutor, cache: Path) -> None:
        self.table = ModelTable()
        self.table.version = 0
        self.registry = ModelRegistry(self.table, ModelLoader(ArtifactStore(cache_dir=cache)).load, executor)

    def change(self, **delta: Any) -> None:
        assert self.table.apply(TableDelta(self.table.version + 1, **delta))
        self.registry.update()

    def names(self) -> list[str]:
        return [name for name, _model in self.registry.ready_models()]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
async def fleet(executor: ThreadPoolExecutor, tmp_path: Path) -> Fleet:
    return Fleet(executor, tmp_path)


WORKER = Worker(1, "127.0.0.1:1", "p")


async def test_a_request_waits_for_a_model_that_is_being_loaded(fleet: Fleet) -> None:
    fleet.change(workers_up=[WORKER], sets_up=[worker_set(card())])
    assert fleet.names() == []
    model = await fleet.registry.get("demo", "Chat")
    assert (model.name, model.mdcsum, model.max_context_length) == ("demo", "sum", 1024)
    assert fleet.names() == ["demo"]


async def test_an_alias_is_another_name_of_the_same_model(fleet: Fleet) -> None:
    fleet.change(workers_up=[WORKER], sets_up=[worker_set(card(aliases=["other"]))])
    assert (await fleet.registry.get("other", "Chat")).name == "demo"
    assert fleet.names() == ["demo", "other"]


async def test_an_unknown_name_and_a_kind_the_model_lacks_are_not_found(fleet: Fleet) -> None:
    fleet.change(workers_up=[WORKER], sets_up=[worker_set(card(model_type="Completions"))])
    with pytest.raises(ModelNotFound, match="'nope'"):
        await fleet.registry.get("nope", "Completions")
    with pytest.raises(WrongKindOfModel, match="registered for Completions, and not for Chat"):
        await fleet.registry.get("demo", "Chat")
    with pytest.raises(NoModelOfKind, match=r"ModelType\.Chat"):
        await fleet.registry.get("nope", "Chat")
    assert (await fleet.registry.get("demo", "Completions")).name == "demo"


async def test_a_card_that_cannot_be_loaded_hurts_no_other(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    bad = card(
        "bad", tokenizer={"hf_tokenizer_json": {"path": "/nowhere/tokenizer.json", "checksum": "blake3:" + "0" * 64}}
    )
    fleet.change(workers_up=[WORKER], sets_up=[worker_set(bad, key="bad", mdcsum="b"), worker_set(card())])
    with pytest.raises(ModelNotReady, match="ready says why"):
        await fleet.registry.get("bad", "Chat")
    await fleet.registry.get("demo", "Chat")
    assert fleet.names() == ["demo"]
    report: Any = fleet.registry.readiness("bad")
    assert report["ready"] is False
    assert "tokenizer.json" in report["namespaces"]["ns"]["errors"]["aggregated"]
    complaints = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(complaints) == 1
    assert complaints[0].exc_info is None


async def test_a_model_goes_with_its_last_worker_set(fleet: Fleet) -> None:
    fleet.change(workers_up=[WORKER], sets_up=[worker_set(card())])
    await fleet.registry.get("demo", "Chat")
    fleet.change(sets_down=["set"], workers_down=[1])
    assert fleet.names() == []
    with pytest.raises(NoModelOfKind):
        await fleet.registry.get("demo", "Chat")


async def test_a_model_without_a_routable_worker_is_known_but_not_listed(fleet: Fleet) -> None:
    fleet.change(sets_up=[worker_set(card(), members=())])
    await fleet.registry.get("demo", "Chat")
    assert fleet.names() == []
    assert fleet.registry.knows("demo")
    assert fleet.registry.readiness("demo")["ready"] is False


async def test_readiness_names_what_is_missing(fleet: Fleet) -> None:
    decode = card(worker_type="decode", needs=[["prefill"]])
    fleet.change(workers_up=[WORKER], sets_up=[worker_set(decode)])
    await fleet.registry.get("demo", "Chat")
    report: Any = fleet.registry.readiness("demo")
    namespace = report["namespaces"]["ns"]
    assert report["ready"] is False
    assert namespace["missing_worker_types"] == ["prefill"]
    assert namespace["worker_types"]["decode"] == {"workers": 1, "needs": [["prefill"]]}


async def test_two_versions_in_two_namespaces_share_the_requests_by_their_workers(fleet: Fleet) -> None:
    second = card(architectural_max_context_length=2048)
    fleet.change(
        workers_up=[WORKER, Worker(2, "127.0.0.1:2", "p")],
        sets_up=[
            worker_set(card(), key="a", mdcsum="a", members=(1,)),
            worker_set(second, key="b", mdcsum="b", members=(2,)),
        ],
    )
    async with asyncio.timeout(20):
        while len(fleet.registry.loaded()) < 2:
            await asyncio.sleep(0.01)
    drawn = {(await fleet.registry.get("demo", "Chat")).mdcsum for _ in range(100)}
    assert drawn == {"a", "b"}
