"""A gateway whose model writes what a test tells it to: with `RAW` the only user message comes back as the answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.gateway import Gateway
from tests.support.mock_worker import MockWorker
from tests.support.waiting import wait_until

RAW: Mapping[str, Any] = {"nvext": {"use_raw_prompt": True}}
"""Further fields of a request: its prompt is what it says, without a template."""

THOUGHT_AND_CALL = (
    '<think>hm</think>Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
)


class EchoGateway(Gateway):
    model = "echo"

    def __init__(self, store: Path, *flags: str) -> None:
        environment = {
            "DYN_FILE_KV": str(store),
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_EVENT_PLANE_HOST": "127.0.0.1",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        }
        super().__init__(
            "--workers=1",
            "--discovery-backend=file",
            "--responses-store-mb=16",
            *flags,
            mock_workers=0,
            environment=environment,
        )
        self._worker = MockWorker(
            "--engine=echo",
            f"--model-name={self.model}",
            "--discovery-backend=file",
            "--tool-call-parser=hermes",
            "--reasoning-parser=qwen3",
            environment=environment,
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self._worker.__enter__()
        wait_until(lambda: self.model in (self.models() or ()), "the echoing model is listed")
        return self

    def close(self) -> None:
        self._worker.close()
        super().close()
