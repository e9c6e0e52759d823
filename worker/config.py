"""Options of a worker with one of the built-in engines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgspec

from dynamo.shared.config import ConfigError, option
from dynamo.shared.serving_config import ServingConfig

DEMO_MODEL_DIR = Path(__file__).parent / "demo_model"
DEFAULT_ENDPOINT = "dyn://dynamo.backend.generate"


def _endpoint(text: str) -> str:
    parts = text.removeprefix("dyn://").split(".")
    if len(parts) != 3 or not all(parts):
        raise ValueError("expected namespace.component.endpoint")
    return text


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(ServingConfig):
    engine: str = option(
        "mocker",
        choices=("mocker", "echo", "text-echo", "embedder"),
        help="What answers: made-up text at a device's pace, the prompt itself, the same for frontends that leave the "
        "tokenizer to the worker, or vectors for /v1/embeddings.",
    )
    model_path: str = option(
        str(DEMO_MODEL_DIR), env="DYN_MODEL_PATH", help="Directory with config.json and the tokenizer."
    )
    model_name: str | None = option(
        None, env="DYN_MODEL_NAME", help="Name in the OpenAI API; unset means the directory's name."
    )
    endpoint: str = option(
        DEFAULT_ENDPOINT, env="DYN_ENDPOINT", parse=_endpoint, help="Endpoint to serve: namespace.component.endpoint."
    )
    migration_limit: int = option(
        0, env="DYN_MIGRATION_LIMIT", minimum=0, help="Told to frontends in the model card; ours go by their own limit."
    )
    context_length: int | None = option(
        None,
        flags=("--context-length", "--max-model-len"),
        minimum=1,
        help="Longest sequence, prompt and output; unset means the model's own.",
    )
    block_size: int = option(64, minimum=1, help="Tokens in a block of the KV cache.")
    num_blocks: int = option(
        16384,
        flags=("--num-blocks", "--num-gpu-blocks-override"),
        minimum=1,
        help="Blocks in the KV cache.",
    )
    max_num_seqs: int = option(256, minimum=1, help="Sequences in one batch.")
    max_num_batched_tokens: int = option(8192, minimum=1, help="Tokens computed in one step.")
    max_num_waiting: int = option(8192, minimum=1, help="Requests that may wait for a place in the batch.")
    enable_prefix_caching: bool = option(True, help="Keep the blocks of finished sequences for later prompts.")
    data_parallel_size: int = option(
        1, minimum=1, maximum=1024, help="Ranks of the worker, each a mocker with a KV cache of its own."
    )
    kv_events: bool = option(
        True, help="Tell routers which blocks the mocker holds; without prefix caching it holds none for later."
    )
    enable_chunked_prefill: bool = option(True, help="Let a prompt be computed in several steps.")
    speedup_ratio: float = option(1.0, minimum=0, help="How much faster than the simulated device; 0 means no waiting.")
    decode_speedup_ratio: float = option(1.0, minimum=0.001, help="The same for decode steps only, on top.")
    seed: int = option(0, help="Which texts the mocker makes up.")
    tokens_per_frame: int = option(1, minimum=1, help="Tokens that the echo engine puts in one item.")
    delay_ms: float = option(0.0, minimum=0, help="Milliseconds that an echo engine waits before each item.")
    tool_call_parser: str | None = option(
        None,
        flags=("--tool-call-parser", "--dyn-tool-call-parser"),
        help="Parser of tool calls that frontends use.",
    )
    reasoning_parser: str | None = option(
        None,
        flags=("--reasoning-parser", "--dyn-reasoning-parser"),
        help="Parser of reasoning that frontends use.",
    )
    config_stdin: bool = option(
        False,
        help="Read one line of JSON with these options from stdin, over flags and variables; end of stdin then means "
        "that the parent is gone, and the worker drains.",
    )
    ready_fd: int | None = option(
        None, minimum=0, help='Descriptor to write "ready\\n" to, and to close, once registered.'
    )

    @property
    def publishes_kv_events(self) -> bool:
        return self.engine == "mocker" and self.kv_events and self.enable_prefix_caching

    @property
    def served_name(self) -> str:
        return self.model_name or Path(self.model_path).resolve().name

    def updated(self, line: bytes) -> Self:
        """The same with the fields that a line of JSON names. Raises ConfigError naming the field that does not fit."""
        try:
            values: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ConfigError(f"options on stdin: expected one line with a JSON object: {error}") from None
        return replace(self, **{name: self._converted(name, value) for name, value in values.items()})

    def _converted(self, name: str, value: Any) -> Any:
        try:
            _field, _option, kind = self.options()[name]
            return msgspec.convert(value, kind)
        except KeyError:
            raise ConfigError(f"options on stdin: {name!r} is not an option of the worker") from None
        except msgspec.ValidationError as error:
            raise ConfigError(f"options on stdin: {name}: {error}") from None
