"""What a worker says about its model, in Dynamo's names."""

from __future__ import annotations

import enum
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field


class ModelInput(enum.Enum):
    """What a request of the model is made of."""

    Text = "Text"
    Tokens = "Tokens"
    Tensor = "Tensor"


class ModelType(enum.Flag):
    """Surfaces of the OpenAI API that the model has, joined with `|`. Empty: none, as for a prefill worker."""

    Empty = 0
    Chat = enum.auto()
    Completions = enum.auto()
    Embedding = enum.auto()
    TensorBased = enum.auto()
    Prefill = enum.auto()
    Images = enum.auto()
    Audios = enum.auto()
    Videos = enum.auto()
    Realtime = enum.auto()
    Classify = enum.auto()
    Pooling = enum.auto()
    Rerank = enum.auto()

    @property
    def names(self) -> list[str]:
        return [member.name for member in self if member.name]

    def __str__(self) -> str:
        return ",".join(self.names).lower()

    def supports_chat(self) -> bool:
        return ModelType.Chat in self

    def supports_embedding(self) -> bool:
        return ModelType.Embedding in self

    def supports_classify(self) -> bool:
        return ModelType.Classify in self

    def supports_pooling(self) -> bool:
        return ModelType.Pooling in self

    def supports_rerank(self) -> bool:
        return ModelType.Rerank in self


class WorkerType(enum.Enum):
    """Stage of processing; exactly one per worker."""

    Prefill = "prefill"
    Decode = "decode"
    Encode = "encode"
    Aggregated = "aggregated"

    def __str__(self) -> str:
        return self.value


class DisaggregatedEndpoint(Struct):
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None


class ModelRuntimeConfig(Struct, kw_only=True):
    """What the engine tells its frontend, as it stands in the card. Sizes in tokens, blocks or sequences as named."""

    context_length: int | None = None
    total_kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    tool_call_arguments_format: str = "json_string"
    structural_tag_mode: str = "off"
    structural_tag_scope: str = "auto"
    structural_tag_schema: str = "auto"
    exclude_tools_when_tool_choice_none: bool = True
    data_parallel_start_rank: int = 0
    data_parallel_size: int = 1
    enable_local_indexer: bool = True
    enable_eagle: bool = False
    runtime_data: dict[str, Any] = field(default_factory=dict)
    kv_event_publishing_enabled: bool | UnsetType = UNSET
    tokenizer_backend: str | UnsetType = UNSET
    stable_routing_id: str | UnsetType = UNSET
    taints: list[str] | UnsetType = UNSET
    topology_domains: dict[str, str] | UnsetType = UNSET
    kv_transfer_domain: str | UnsetType = UNSET
    kv_transfer_enforcement: str | UnsetType = UNSET
    kv_transfer_preferred_weight: float | UnsetType = UNSET
    disaggregated_endpoint: DisaggregatedEndpoint | UnsetType = UNSET

    def set_engine_specific(self, key: str, value: Any) -> None:
        self.runtime_data[key] = value

    def get_engine_specific(self, key: str) -> Any | None:
        return self.runtime_data.get(key)

    def set_disaggregated_endpoint(self, bootstrap_host: str | None = None, bootstrap_port: int | None = None) -> None:
        self.disaggregated_endpoint = DisaggregatedEndpoint(bootstrap_host, bootstrap_port)
