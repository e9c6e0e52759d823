"""What a worker is told of an OpenAI request, besides its tokens and its routing.

`logit_bias` is checked and then dropped, as 1.6.1 does: its workers would take the keys for strings, not for token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamo.frontend.openai_requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    JsonObject,
    ResponseFormat,
)
from dynamo.shared.protocol import OutputOptions, SamplingOptions, StopConditions


def stop_conditions(request: GenerateRequest, eos_token_ids: Sequence[int]) -> StopConditions:
    """With `ignore_eos` nothing but `max_tokens` stops the worker."""
    stops = StopConditions(
        max_tokens=request.max_output_tokens,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        max_thinking_tokens=_max_thinking_tokens(request),
    )
    if not request.ignore_eos:
        stops.stop = request.stop_strings or None
        stops.stop_token_ids = request.all_stop_token_ids or None
        stops.stop_token_ids_hidden = list(eos_token_ids)
    return stops


def sampling_options(request: ChatCompletionRequest | CompletionRequest) -> SamplingOptions:
    options = SamplingOptions(
        n=request.n,
        best_of=None if isinstance(request, ChatCompletionRequest) else request.best_of,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k or (None if request.top_k is None else -1),
        min_p=request.min_p,
        seed=request.seed,
        include_stop_str_in_output=request.include_stop_str_in_output,
        guided_decoding=_guided_decoding(request),
    )
    if request.nvext is not None and request.nvext.greed_sampling:
        options.temperature, options.top_p, options.top_k, options.min_p = 0.0, None, None, None
    return options


def output_options(request: ChatCompletionRequest | CompletionRequest) -> OutputOptions:
    return OutputOptions(
        logprobs=request.logprobs_count,
        prompt_logprobs=_prompt_logprobs(request),
        skip_special_tokens=request.skip_special_tokens,
        return_tokens_as_token_ids=request.return_tokens_as_token_ids,
    )


def extra_args(request: GenerateRequest, cache_salt: str | None = None) -> JsonObject | None:
    """What has no field of its own on the wire."""
    sampling = {
        name: value
        for name in ("allowed_token_ids", "bad_words_token_ids", "detokenize")
        if (value := getattr(request, name)) is not None
    }
    groups = {"nvext": _passed_nvext(request, cache_salt), "sampling_options": sampling}
    return {name: group for name, group in groups.items() if group} or None


def _passed_nvext(request: GenerateRequest, cache_salt: str | None) -> JsonObject:
    passed: JsonObject = {}
    if cache_salt is not None:
        passed["cache_salt"] = cache_salt
    if request.nvext is not None and request.nvext.extra_fields is not None:
        passed["extra_fields"] = request.nvext.extra_fields
    if request.nvext is not None and request.nvext.token_data is not None:
        passed["token_in"] = True
    return passed


def _prompt_logprobs(request: ChatCompletionRequest | CompletionRequest) -> int | None:
    """An echoed prompt is echoed with its logprobs when the client wants any."""
    if request.prompt_logprobs is None and not isinstance(request, ChatCompletionRequest) and request.echo:
        return request.logprobs
    return request.prompt_logprobs


def _max_thinking_tokens(request: GenerateRequest) -> int | None:
    if isinstance(request, ChatCompletionRequest) and request.thinking_token_budget is not None:
        return request.thinking_token_budget
    return request.nvext.max_thinking_tokens if request.nvext else None


def _guided_decoding(request: ChatCompletionRequest | CompletionRequest) -> JsonObject | None:
    """Only the keys that are set; None when the output is free. What the client asks by name goes before what
    `tool_choice` implies, and that before `response_format`."""
    guide = _guide_by_name(request)
    if guide is None and isinstance(request, ChatCompletionRequest):
        guide = _guide_by_tool_choice(request) or _guide_by_response_format(request.response_format)
    if guide is None:
        return None
    if request.guided_decoding_backend is not None:
        guide["backend"] = request.guided_decoding_backend
    if request.guided_whitespace_pattern is not None:
        guide["whitespace_pattern"] = request.guided_whitespace_pattern
    return guide


def _guide_by_name(request: GenerateRequest) -> JsonObject | None:
    if request.guided_json is not None:
        return {"json": request.guided_json}
    if request.guided_regex is not None:
        return {"regex": request.guided_regex}
    if request.guided_choice is not None:
        return {"choice": request.guided_choice}
    if request.guided_grammar is not None:
        return {"grammar": request.guided_grammar}
    return None


def _guide_by_response_format(response_format: ResponseFormat | None) -> JsonObject | None:
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is not None:
        return {"json": response_format.json_schema.schema}
    return {"json": {"type": "object"}}


def _guide_by_tool_choice(request: ChatCompletionRequest) -> JsonObject | None:
    if request.tool_choice is None or not request.tools:
        return None
    functions = [tool["function"] for tool in request.tools]
    if isinstance(request.tool_choice, dict):
        name = request.tool_choice["function"]["name"]
        return {"json": next(_parameters(function) for function in functions if function["name"] == name)}
    if request.tool_choice == "required":
        schema = _calls_schema(functions)
        return {"json": schema if request.parallel_tool_calls is not False else schema | {"maxItems": 1}}
    return None


def _calls_schema(functions: list[JsonObject]) -> JsonObject:
    """An array of at least one call, each of one of the `functions`."""
    calls = [
        {
            "properties": {"name": {"type": "string", "enum": [function["name"]]}, "parameters": _parameters(function)},
            "required": ["name", "parameters"],
        }
        for function in functions
    ]
    return {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}


def _parameters(function: JsonObject) -> JsonObject:
    parameters: Any = function.get("parameters")
    return parameters or {"type": "object", "properties": {}}
