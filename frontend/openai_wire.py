"""What a worker is told of an OpenAI request, besides its tokens and its routing.

`logit_bias` itself is not told, as in 1.6.1: its workers would take the keys for strings, not for token ids. What its
two ends mean, a ban and an exclusive choice, is told in the words they know.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from msgspec import UNSET

from dynamo.frontend.guided_decoding import guided_decoding
from dynamo.frontend.openai_requests import (
    MAX_BIAS,
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    JsonObject,
)
from dynamo.frontend.structural_tags import StructuralTags
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


def sampling_options(
    request: ChatCompletionRequest | CompletionRequest, tags: StructuralTags | None = None
) -> SamplingOptions:
    """`tags` are those of the model, None where its calls are not guided in its own format."""
    options = SamplingOptions(
        n=request.n,
        best_of=request.best_of,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k or (None if request.top_k is None else -1),
        min_p=request.min_p,
        seed=request.seed,
        include_stop_str_in_output=request.include_stop_str_in_output,
        guided_decoding=guided_decoding(request, tags),
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
        no_stop_trim=UNSET if isinstance(request, ChatCompletionRequest) or not request.no_stop_trim else True,
    )


def extra_args(
    request: GenerateRequest, cache_salt: str | None = None, bad_words: Sequence[list[int]] = ()
) -> JsonObject | None:
    """What has no field of its own on the wire. `bad_words` are the token ids of those given as text."""
    groups = {"nvext": _passed_nvext(request, cache_salt), "sampling_options": _passed_sampling(request, bad_words)}
    return {name: group for name, group in groups.items() if group} or None


_PASSED_SAMPLING = attrgetter("allowed_token_ids", "bad_words_token_ids", "logit_bias", "detokenize")
_NOTHING_PASSED = (None,) * 4


def _passed_sampling(request: GenerateRequest, bad_words: Sequence[list[int]]) -> JsonObject:
    if not bad_words and _PASSED_SAMPLING(request) == _NOTHING_PASSED:
        return {}
    allowed, banned = request.allowed_token_ids, [*(request.bad_words_token_ids or ()), *bad_words]
    if request.logit_bias:
        chosen = [int(token_id) for token_id, bias in request.logit_bias.items() if bias == MAX_BIAS]
        allowed = chosen if chosen and allowed is None else allowed
        banned += [[int(token_id)] for token_id, bias in request.logit_bias.items() if bias == -MAX_BIAS]
    sampling = {"allowed_token_ids": allowed, "bad_words_token_ids": banned or None, "detokenize": request.detokenize}
    return {name: value for name, value in sampling.items() if value is not None}


def _passed_nvext(request: GenerateRequest, cache_salt: str | None) -> JsonObject:
    passed: JsonObject = {}
    if cache_salt is not None:
        passed["cache_salt"] = cache_salt
    if request.nvext is not None and request.nvext.extra_fields is not None:
        passed["extra_fields"] = request.nvext.extra_fields
    if request.nvext is not None and request.nvext.token_data is not None:
        passed["token_in"] = True
    if request.nvext is not None and request.nvext.metadata_upload is not None:
        passed["metadata_upload"] = request.nvext.metadata_upload
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
