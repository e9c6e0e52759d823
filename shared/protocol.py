"""The structs Dynamo 1.6.1 puts on its planes: discovery values, request, response. Source: what 1.6.1
was seen to send and accept.

Unknown keys are ignored on reading, as Dynamo does. Ids are u64. On the request plane a body is a msgpack or JSON
*map*; which one is the instance's `request_plane_codec`.
"""

from __future__ import annotations

import typing
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

T = TypeVar("T")

# --------------------------------------------------------------------------- discovery


class Instance(Struct, tag_field="type", tag="Endpoint", omit_defaults=True):
    """Value below `v1/instances`: where one endpoint of one process is served."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int
    transport: dict[str, str]
    device_type: str | None = None
    request_plane_codec: str | None = None  # missing means json


class Registration(Struct, tag_field="type", tag="Model", omit_defaults=True):
    """Value below `v1/mdc`: one instance says which model it serves. `card_json` stays raw until someone needs it."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int
    card_json: msgspec.Raw
    model_suffix: str | None = None


class FileRef(Struct, omit_defaults=True):
    """A file of the model: `path` is local or a URL, `checksum` is `blake3:<64 hex>`, `size` in bytes."""

    path: str
    checksum: str
    size: int | None = None


class ChatTemplateFile(Struct):
    file: FileRef
    is_custom: bool = False


class RuntimeConfig(Struct):
    """What the engine behind a card told its frontend. Sizes in tokens, blocks or sequences as named."""

    context_length: int | None = None
    total_kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    structural_tag: Any = UNSET
    structural_tag_mode: str = "off"
    structural_tag_scope: str = "auto"
    structural_tag_schema: str = "auto"
    exclude_tools_when_tool_choice_none: bool = True
    data_parallel_start_rank: int = 0
    data_parallel_size: int = 1
    enable_local_indexer: bool = True
    enable_eagle: bool = False
    tokenizer_backend: str | None = None
    taints: list[str] = []


class ModelDeploymentCard(Struct, kw_only=True):
    """The part of a card a frontend reads. One-key objects such as `tokenizer` name the kind of file they hold."""

    display_name: str
    slug: str = ""
    source_path: str | None = None
    model_info: dict[str, FileRef] | None = None
    tokenizer: dict[str, FileRef] | None = None
    prompt_formatter: dict[str, FileRef] | None = None
    chat_template_file: dict[str, ChatTemplateFile] | None = None
    gen_config: dict[str, FileRef] | None = None
    prompt_context: list[Any] | None = None
    architectural_max_context_length: int | None = None
    context_length: int | None = None
    kv_cache_block_size: int = 16
    migration_limit: int = 0
    model_type: str = ""
    model_input: str = "Tokens"
    worker_type: str | None = None
    needs: list[list[str]] = []
    lora: dict[str, Any] | None = None
    aliases: list[str] = []
    user_data: Any = None
    runtime_config: RuntimeConfig = msgspec.field(default_factory=RuntimeConfig)
    router_config: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)  # empty when absent
    indexer_identity: dict[str, dict[str, str] | None] | None = None
    extra_files: list[FileRef] | None = None

    @property
    def model_types(self) -> frozenset[str]:
        """`"Chat | Completions"` as a set."""
        return frozenset(part.strip() for part in self.model_type.split("|") if part.strip())

    @property
    def max_context_length(self) -> int:
        """Effective context in tokens, 0 when nobody knows."""
        return self.runtime_config.context_length or self.architectural_max_context_length or self.context_length or 0

    @property
    def role(self) -> str:
        """Worker type with the legacy default: a Prefill flag means prefill, else aggregated."""
        return self.worker_type or ("prefill" if "Prefill" in self.model_types else "aggregated")


# --------------------------------------------------------------------------- request plane

TokenId: TypeAlias = typing.Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class ConnectionInfo(Struct):
    """`info` is itself a JSON string (`CallHome`)."""

    info: str
    transport: str = "tcp_server"


class CallHome(Struct):
    """Where the worker dials to stream its answer, and the one-time `subject` it shows there."""

    address: str
    subject: str
    context: str
    stream_type: str = "response"


class ControlMessage(Struct):
    id: str
    connection_info: ConnectionInfo
    request_type: str = "single_in"
    response_type: str = "many_out"
    payload_codec: str = "json"
    metadata: dict[str, str] | UnsetType = UNSET


class Handshake(Struct):
    """First frame of a worker on the response socket."""

    subject: str
    stream_type: str = "response"


class StopConditions(Struct):
    max_tokens: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_token_ids_visible: list[int] | None = None
    stop_token_ids_hidden: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    max_thinking_tokens: int | None = None


class SamplingOptions(Struct):
    n: int | None = None
    best_of: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    seed: int | None = None
    include_stop_str_in_output: bool | None = None
    guided_decoding: dict[str, Any] | None = None
    logit_bias: dict[str, float] | UnsetType | None = UNSET


class OutputOptions(Struct):
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    formatted_prompt: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    no_stop_trim: bool | UnsetType = UNSET


class RouterConfigOverride(Struct, omit_defaults=True):
    """A request's own weights for its placement; None keeps the router's."""

    overlap_score_credit: float | None = None
    overlap_score_credit_decay: float | None = None
    prefill_load_scale: float | None = None
    decode_active_request_weight: float | None = None
    host_cache_hit_weight: float | None = None
    disk_cache_hit_weight: float | None = None
    router_temperature: float | None = None
    assume_kv_reuse: bool | None = None
    track_prefill_tokens: bool | None = None
    shared_cache_multiplier: float | None = None


class RoutingConstraints(Struct, omit_defaults=True):
    """Taints that a worker must have, and taints that speak for or against one."""

    required_taints: list[str] = []
    preferred_taints: dict[str, float] = {}


class Routing(Struct, omit_defaults=True):
    """Placement wishes and facts that travel with the request; all optional."""

    backend_instance_id: int | None = None
    prefill_worker_id: int | None = None
    decode_worker_id: int | None = None
    dp_rank: int | None = None
    prefill_dp_rank: int | None = None
    expected_output_tokens: int | None = None
    lora_name: str | None = None
    cache_salt: str | None = None
    priority_jump: float | None = None
    strict_priority: int | None = None
    priority: int | None = None
    allowed_worker_ids: list[int] | None = None
    routing_constraints: RoutingConstraints | None = None


class AgentContext(Struct, omit_defaults=True):
    """Which conversation of which agent a request belongs to. `agent_headers` are those it was sent with;
    `input_trigger`: user_message, tool_result or other."""

    session_id: str
    parent_session_id: str | None = None
    session_final: bool | None = None
    agent_headers: dict[str, list[str]] = {}
    input_trigger: str = ""


class PreprocessedRequest(Struct):
    """What a worker with model_input Tokens is asked. `token_ids` is a list on our side of the encoder, or a `Raw`
    already in the payload codec."""

    model: str
    token_ids: list[int] | msgspec.Raw
    stop_conditions: StopConditions
    sampling_options: SamplingOptions
    output_options: OutputOptions
    eos_token_ids: list[int]
    mdc_sum: str
    annotations: list[str]
    routing: Routing
    router_config_override: RouterConfigOverride | None = None
    extra_args: dict[str, Any] | UnsetType = UNSET
    agent_context: AgentContext | UnsetType = UNSET
    image_cache_scope: str | UnsetType = UNSET
    router: dict[str, Any] | UnsetType = UNSET
    request_timestamp_ms: float | UnsetType = UNSET
    media_io_kwargs: dict[str, Any] | UnsetType = UNSET
    mm_processor_kwargs: dict[str, Any] | UnsetType = UNSET


class WorkerErrorPayload(Struct):
    """Dynamo's error object on the wire."""

    message: str = ""
    error_type: str | dict[str, str] | None = None
    klass: str | None = msgspec.field(default=None, name="class")
    reason: str | None = None


class TopLogprob(Struct, gc=False):
    token_id: int = 0
    token: str | None = None
    logprob: float = 0.0
    rank: int | None = None
    bytes: list[int] | None = None


class EngineOutput(Struct, gc=False):
    """One item of a worker's answer: `token_ids` are *new* tokens, u32."""

    token_ids: list[TokenId] = []
    text: str | None = None
    log_probs: list[float] | None = None
    top_logprobs: list[list[TopLogprob]] | None = None
    finish_reason: str | dict[str, str] | None = None
    stop_reason: str | int | None = None
    index: int | None = None
    completion_usage: dict[str, Any] | None = None
    disaggregated_params: Any = None
    extra_args: Any = None
    engine_data: Any = None


class Annotated(Struct, Generic[T], gc=False):
    """Envelope of an item. `event` is None for data, `"error"` for failure, else the name of an annotation."""

    data: T | None = None
    event: str | None = None
    comment: list[str] | None = None
    error: WorkerErrorPayload | None = None


class ResponseItem(Struct, Generic[T], gc=False):
    """Data frame of the response socket."""

    data: Annotated[T] | None = None
    complete_final: bool = False


class Prologue(Struct):
    """Second frame of the response socket: `error` is None when the engine accepted the request."""

    error: str | None = None
    typed_error: WorkerErrorPayload | None = None
