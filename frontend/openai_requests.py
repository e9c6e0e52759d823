"""Bodies of `POST /v1/chat/completions` and `POST /v1/completions` as typed structs.

A type carries its own range, so that one decode checks both; rules that need two fields live in `openai_rules`.
Every optional field may also be null, which means absent. What becomes of each field is in `openai_compatibility`;
those of type `Any` without a rule are there to be refused by name, or have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from msgspec import Meta, Struct, field

from dynamo.frontend.guided_types import ResponseFormat, StructuredOutputs
from dynamo.shared.protocol import RouterConfigOverride, RoutingConstraints

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1
MAX_STOP_SEQUENCES = 32
MAX_TOOLS = 1536
MAX_OUTPUT_TOKENS = 2**20
MAX_ALLOWED_WORKERS = 1024
MAX_TAINTS = 64
MAX_BAD_WORDS = 256
MAX_BIAS = 100
REQUEST_ID = r"^[\x21-\x7e]{1,128}$"

TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=U32_MAX)]
OutputTokens: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)]
WorkerId: TypeAlias = Annotated[int, Meta(ge=0)]  # u64; the decoder cannot state bounds above i64
I64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Unit: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
NonEmptyStr: TypeAlias = Annotated[str, Meta(min_length=1)]
Stop: TypeAlias = (
    NonEmptyStr | Annotated[list[NonEmptyStr | TokenId], Meta(min_length=1, max_length=MAX_STOP_SEQUENCES)]
)
JsonObject: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Prompt: TypeAlias = str | list[str] | list[int] | list[list[int]]

ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ServiceTier: TypeAlias = Literal["auto", "default", "flex", "scale", "priority", "fast"]


class StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class AgentHints(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """`osl` is the expected output length in tokens."""

    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    strict_priority: TokenId | None = None
    osl: TokenId | None = None
    speculative_prefill: bool | None = None
    latency_sensitivity: float | None = None


NotNegative: TypeAlias = Annotated[float, Meta(ge=0)]


class RouterConfig(RouterConfigOverride, omit_defaults=True, forbid_unknown_fields=True):
    """What a request may change of the router's weights, each within the router's own range."""

    overlap_score_credit: NotNegative | None = None
    overlap_score_credit_decay: NotNegative | None = None
    prefill_load_scale: NotNegative | None = None
    decode_active_request_weight: NotNegative | None = None
    host_cache_hit_weight: Unit | None = None
    disk_cache_hit_weight: Unit | None = None
    router_temperature: NotNegative | None = None
    shared_cache_multiplier: NotNegative | None = None


class Constraints(RoutingConstraints, omit_defaults=True, forbid_unknown_fields=True):
    required_taints: Annotated[list[str], Meta(max_length=MAX_TAINTS)] = field(default_factory=list)
    preferred_taints: Annotated[dict[str, float], Meta(max_length=MAX_TAINTS)] = field(default_factory=dict)


class MetadataUpload(Struct, omit_defaults=True, forbid_unknown_fields=True):
    url: str


class NvExt(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Dynamo's own extension of a request. Encodes back to what the client sent.

    `allowed_worker_ids` and `router_config_override` are ours: 1.6.1 knows them, but takes them from Python alone.
    """

    greed_sampling: bool | None = None
    use_raw_prompt: bool | None = None
    annotations: list[str] | None = None
    backend_instance_id: WorkerId | None = None
    prefill_worker_id: WorkerId | None = None
    decode_worker_id: WorkerId | None = None
    dp_rank: TokenId | None = None
    prefill_dp_rank: TokenId | None = None
    token_data: list[TokenId] | None = None
    max_thinking_tokens: TokenId | None = None
    cache_salt: str | None = None
    extra_fields: list[str] | None = None
    agent_hints: AgentHints | None = None
    metadata_upload: MetadataUpload | None = None
    request_timestamp_ms: float | None = None
    routing_constraints: Constraints | None = None
    allowed_worker_ids: Annotated[list[WorkerId], Meta(min_length=1, max_length=MAX_ALLOWED_WORKERS)] | None = None
    router_config_override: RouterConfig | None = None
    router: JsonObject | None = None


class RequestBody(Struct, dict=True):
    """What bodies of all APIs have in common."""

    @property
    def unknown_fields(self) -> tuple[str, ...]:
        """Top-level names this gateway does not know and has accepted all the same."""
        names: tuple[str, ...] = self.__dict__.get("unknown_fields", ())
        return names


class GenerateRequest(RequestBody, kw_only=True):
    """What chat and text completions have in common."""

    model: NonEmptyStr
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_tokens: OutputTokens | None = None
    min_tokens: TokenId | None = None
    stop: Stop | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None

    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Unit | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    seed: I64 | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: Annotated[list[NonEmptyStr], Meta(max_length=MAX_BAD_WORDS)] | None = None
    bad_words_token_ids: list[list[TokenId]] | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None

    guided_json: Any = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None
    structured_outputs: StructuredOutputs | None = None

    prompt_logprobs: TokenId | None = None
    skip_special_tokens: bool | None = None
    detokenize: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None

    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=U32_MAX)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31) + 1, le=2**31 - 1)] | None = None
    request_id: Annotated[str, Meta(pattern=REQUEST_ID)] | None = None
    lora_request: Any = None
    cache_salt: str | None = None
    user: NonEmptyStr | None = None
    metadata: Any = None
    nvext: NvExt | None = None

    @property
    def max_output_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else [item for item in self.stop if isinstance(item, str)]

    @property
    def all_stop_token_ids(self) -> list[int]:
        """Ids of `stop_token_ids`, then those given in `stop`."""
        given = self.stop_token_ids or []
        if not isinstance(self.stop, list):
            return given
        return given + [item for item in self.stop if isinstance(item, int)]

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage_stats(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class Thinking(Struct):
    type: Literal["enabled", "disabled", "adaptive"]


class ChatCompletionRequest(GenerateRequest, kw_only=True):
    """`messages` and `tools` stay plain dicts, as the chat template wants them; `openai_messages` has checked them."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: OutputTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[JsonObject], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    chat_template_args: JsonObject | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    thinking: bool | Thinking | None = None
    thinking_token_budget: TokenId | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template: NonEmptyStr | None = None
    documents: list[JsonObject] | None = None

    media_io_kwargs: JsonObject | None = None
    mm_processor_kwargs: JsonObject | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: Any = None
    prediction: Any = None
    store: bool | None = None
    service_tier: ServiceTier | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    moderation: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None

    @property
    def max_output_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprobs_count(self) -> int | None:
        """Alternatives asked for per token; 0 asks for the chosen token alone, None for nothing."""
        if not self.logprobs:
            return None
        return 1 if self.top_logprobs is None else self.top_logprobs

    @property
    def num_tops(self) -> int | None:
        """Alternatives shown of each token; None without logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_args(self) -> JsonObject:
        """Extra variables for the chat template: what the client gives by name, in a field that has two, and what other
        fields mean for a template."""
        args = self.chat_template_args or self.chat_template_kwargs or {}
        if self.documents is not None:
            args = {"documents": self.documents} | args
        if self.verbosity is not None:
            args = {"verbosity": self.verbosity} | args
        if self.thinking is None and self.reasoning_effort is None:
            return args
        return _with_thinking(args, self.reasoning_effort, self.thinking)


def _with_thinking(args: JsonObject, effort: str | None, thinking: bool | Thinking | None) -> JsonObject:
    """As 1.6.1: `thinking` wins over `enable_thinking` among `args`, that over what an effort implies."""
    if effort is not None:
        args = _thinking_args(args.get("enable_thinking", effort != "none")) | args | {"reasoning_effort": effort}
    if thinking is None:
        return args
    if not isinstance(thinking, Thinking):
        return args | _thinking_args(thinking)
    if thinking.type != "adaptive":
        return args | _thinking_args(thinking.type == "enabled")
    undecided = {name: value for name, value in args.items() if name not in ("enable_thinking", "thinking")}
    return undecided | {"thinking_mode": "adaptive"}


def _thinking_args(is_on: Any) -> JsonObject:
    """The names that templates give to one switch."""
    return {"enable_thinking": is_on, "thinking": is_on, "thinking_mode": "enabled" if is_on else "disabled"}


P = TypeVar("P")


class CompletionBody(GenerateRequest, Generic[P], kw_only=True):
    """A request for each shape a prompt may have: msgspec tells arrays apart only by decoding them as one type."""

    prompt: P
    suffix: Annotated[str, Meta(max_length=10_000)] | None = None
    no_stop_trim: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    prompt_embeds: str | None = None

    @property
    def logprobs_count(self) -> int | None:
        return self.logprobs

    @property
    def num_tops(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per answer to generate: text, or token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


CompletionRequest: TypeAlias = CompletionBody[Prompt]
