"""One acceptor inside the test's own loop, serving HTTP on a free port to whoever asks; the router is the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from dynamo.frontend.acceptor import Acceptor, AcceptorConfig
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.listeners import listen
from dynamo.shared.messages import WorkerSet
from dynamo.worker.config import DEMO_MODEL_DIR

MODEL = "demo"
DEMO_MODEL = Path(DEMO_MODEL_DIR)


class HttpAnswer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ServedAcceptor:
    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    @property
    def base_url(self) -> str:
        return "http://{}:{}".format(*self.address)

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """`body` is sent as JSON, bytes as they are."""
        return await asyncio.to_thread(self._ask, method, path, body, headers or {})

    def _ask(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> HttpAnswer:
        connection = HTTPConnection(*self.address, timeout=30)
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, sent, {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            return HttpAnswer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@asynccontextmanager
async def serve(endpoint: str, directory: Path, **options: Any) -> AsyncIterator[ServedAcceptor]:
    """`options` are fields of FrontendConfig. A router must answer at `endpoint`."""
    (listener,) = listen("127.0.0.1", 0, 1, 64)
    (directory / "metrics").mkdir()
    config = FrontendConfig(tcp_response_stream_host="127.0.0.1", graceful_shutdown_timeout_s=1, **options)
    host, port = listener.getsockname()[:2]
    acceptor = Acceptor(AcceptorConfig(config.as_dict(), 0, listener.detach(), endpoint, str(directory)))
    await acceptor.start()
    try:
        yield ServedAcceptor((host, port))
    finally:
        await acceptor.drain()


def demo_set(members: list[int], model: Path = DEMO_MODEL, model_type: str = "Chat | Completions") -> WorkerSet:
    """Workers of the bundled demo model, or of one with such files in another directory."""
    card = {
        "display_name": MODEL,
        "model_type": model_type,
        "tokenizer": {"hf_tokenizer_json": _file(model, "tokenizer.json")},
        "prompt_formatter": {"hf_tokenizer_config_json": _file(model, "tokenizer_config.json")},
        "gen_config": {"hf_generation_config_json": _file(model, "generation_config.json")},
        "architectural_max_context_length": 1024,
        "kv_cache_block_size": 16,
    }
    return WorkerSet("set", MODEL, "ns", "backend", "generate", "aggregated", "sum", msgspec.json.encode(card), members)


def _file(model: Path, name: str) -> dict[str, str]:
    path = model / name
    return {"path": str(path), "checksum": f"blake3:{blake3(path.read_bytes()).hexdigest()}"}
