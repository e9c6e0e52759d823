"""Whatever the bytes of a body, its request can be sent and answered, or it is refused as the client's fault."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.frontend.anthropic import MESSAGES, MessagesMouth
from dynamo.frontend.artifacts import ArtifactStore
from dynamo.frontend.body_fields import RequestPolicy
from dynamo.frontend.embedding_requests import EMBEDDINGS
from dynamo.frontend.embeddings import Embeddings
from dynamo.frontend.error_formats import AnthropicErrors, OpenAiErrors
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.model import Model, ModelLoader
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.mouths import ChatMouth, CompletionMouth, Mouth
from dynamo.frontend.openai_answers import Choice
from dynamo.frontend.openai_compatibility import CHAT, COMPLETIONS, Api
from dynamo.frontend.pipeline import Pipeline, PipelineOptions
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.prepared import Errand
from dynamo.frontend.responses import RESPONSES, ResponsesMouth
from dynamo.frontend.router_client import RouterClient
from dynamo.frontend.routing_headers import NO_ROUTING_HEADERS
from dynamo.shared.errors import RequestError
from dynamo.shared.messages import Settings
from tests.frontend.test_model import card
from tests.fuzz.bodies import VALID, bodies
from tests.fuzz.budget import budget

POLICIES = [
    RequestPolicy(),
    RequestPolicy("ignore", trusts_chat_templates=True, forces_usage=True),
    RequestPolicy("reject", takes_nvext=False),
]
APIS: dict[str, Api] = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
    "messages": MESSAGES,
    "responses": RESPONSES,
}


class OneModel(ModelRegistry):
    """Serves the same model by every name."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def get(self, name: str, kind: str | None) -> Model:
        return self._model


class Bench:
    """All that a request meets before its worker, and what its answer is made by."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._model = ModelLoader(ArtifactStore(cache_dir=directory)).load(card(context_length=4096), "sum")
        self._loop.run_until_complete(self._open(f"ipc://{directory}/nobody.sock"))

    async def _open(self, endpoint: str) -> None:
        self._router = RouterClient(endpoint, "fuzz", lambda left: None, 1.0)
        self._router.settings = Settings(needs_block_hashes=True)
        unused: Any = None  # a request is not sent
        self._pipeline = Pipeline(OneModel(self._model), self._router, unused, PipelineOptions())

    def close(self) -> None:
        self._router.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def prepare(self, api: str, body: bytes, policy: RequestPolicy) -> None:
        """Raises what the client is told."""
        self._loop.run_until_complete(self._prepare(api, body, policy))

    async def _prepare(self, api: str, body: bytes, policy: RequestPolicy) -> None:
        record = RequestRecord("id", "id", api, 0.0)
        if api == "embeddings":
            service = Embeddings(policy)
            errand = await service.prepare(self._pipeline, service.decode(body), record, NO_ROUTING_HEADERS)
            _send(errand)
            return
        mouth = _mouth(api, policy)
        request = mouth.decode(body)
        for prepared in await mouth.prepare(self._pipeline, request, record, NO_ROUTING_HEADERS):
            _send(prepared)
        _answer(mouth, request, record)


def _mouth(api: str, policy: RequestPolicy) -> Mouth[Any]:
    match api:
        case "chat":
            return ChatMouth(policy)
        case "completions":
            return CompletionMouth(policy)
        case "responses":
            return ResponsesMouth(policy, None, OpenAiErrors())
        case _:
            return MessagesMouth(policy, AnthropicErrors(), strips_preamble=True)


def _send(errand: Errand) -> None:
    msgspec.json.encode(errand.wire_request("json"))
    msgspec.msgpack.encode(errand.wire_request("msgpack"))


def _answer(mouth: Mouth[Any], request: Any, record: RequestRecord) -> None:
    """Whole and as a stream, for answers repeat some of the request."""
    msgspec.json.decode(mouth.body(request, record, 0, [Choice(0, ["Hi"], "stop")], None))
    renderer = mouth.renderer(request, record, 0, None)
    assert (renderer.of(Delta(0, "Hi", 1, "stop")) + renderer.last()).endswith(b"\n\n")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


@pytest.mark.parametrize("api", APIS)
def test_valid_bodies_are_valid(bench: Bench, api: str) -> None:
    bench.prepare(api, msgspec.json.encode(VALID[api]), RequestPolicy("reject"))


@pytest.mark.parametrize("api", APIS)
@budget(150)
@given(data=st.data())
def test_any_body(bench: Bench, api: str, data: st.DataObject) -> None:
    body = data.draw(bodies(api, sorted(APIS[api].rows)))
    with contextlib.suppress(RequestError):
        bench.prepare(api, body, data.draw(st.sampled_from(POLICIES)))
