"""Rules that one field's type cannot state: keys of maps, mixed arrays, and fields that need or exclude each other."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.guided_decoding import check_guide
from dynamo.frontend.openai_messages import check_messages, check_tools, shown, wrong_type
from dynamo.frontend.openai_requests import (
    U32_MAX,
    U64_MAX,
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    NvExt,
    Stop,
)
from dynamo.shared.errors import InvalidRequest

MAX_CHOICES = 128


def check_chat(request: ChatCompletionRequest) -> None:
    check_messages(request.messages)
    _check_generate(request)
    names = check_tools(request.tools) if request.tools else set()
    _check_template_options(request)
    check_guide(request, names)


def check_completion(request: CompletionRequest) -> None:
    _check_prompt(request.prompt)
    _check_generate(request)
    check_guide(request)
    _refuse_what_is_not_honoured(request)
    n = request.n or 1
    if request.best_of and request.best_of < n:
        raise InvalidRequest(f"best_of is {request.best_of}; it must be at least n, which is {n}.", "best_of")
    if n * len(request.prompts) > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(request.prompts)} prompts with n = {n} make more than {MAX_CHOICES} choices.", "n", "out_of_range"
        )


def _refuse_what_is_not_honoured(request: CompletionRequest) -> None:
    """The answer would be one to another question, so silence is no option."""
    for name in ("suffix", "prompt_embeds"):
        if getattr(request, name):
            raise InvalidRequest(f"{name} is not supported by this gateway.", name, "unsupported_field")


def _check_prompt(prompt: Any) -> None:
    if not prompt:
        raise InvalidRequest("prompt must not be empty.", "prompt", "out_of_range")
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return
    for index, item in enumerate(prompt):
        if not item:
            raise InvalidRequest(f"prompt[{index}] must not be empty.", f"prompt[{index}]", "out_of_range")


def _check_generate(request: GenerateRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise _conflict("stream_options is allowed only with stream set to true.", "stream_options")
    if request.n is not None and request.n > 1 and request.temperature == 0:
        raise _conflict("n above 1 with temperature 0 would only repeat one answer.", "n")
    if isinstance(request.stop, list):
        _check_stop(request.stop)
    if request.logit_bias:
        _check_logit_bias(request.logit_bias)
    if request.nvext is not None:
        _check_worker_ids(request.nvext)


def _check_stop(stop: Stop) -> None:
    kind = type(stop[0])
    for index, item in enumerate(stop):
        if type(item) is not kind:
            raise wrong_type(f"stop[{index}]", "of the same type as stop[0]: all strings or all token ids", item)


def _check_worker_ids(nvext: NvExt) -> None:
    for name in ("backend_instance_id", "prefill_worker_id", "decode_worker_id"):
        if (getattr(nvext, name) or 0) > U64_MAX:
            raise InvalidRequest(f"nvext.{name} is not an unsigned 64-bit number.", f"nvext.{name}", "out_of_range")
    for index, worker_id in enumerate(nvext.allowed_worker_ids or ()):
        if worker_id > U64_MAX:
            param = f"nvext.allowed_worker_ids[{index}]"
            raise InvalidRequest(f"{param} is not an unsigned 64-bit number.", param, "out_of_range")


def _check_logit_bias(logit_bias: dict[str, float]) -> None:
    for token_id, bias in logit_bias.items():
        if not (token_id.isascii() and token_id.isdecimal() and int(token_id) <= U32_MAX):
            raise InvalidRequest(
                f"logit_bias has the key {shown(token_id)}; keys are token ids from 0 to {U32_MAX}.",
                "logit_bias",
                "invalid_value",
            )
        if not -100 <= bias <= 100:
            raise InvalidRequest(
                f"logit_bias for token {token_id} is {shown(bias)}; it must be between -100 and 100.",
                f"logit_bias.{token_id}",
                "out_of_range",
            )


def _check_template_options(request: ChatCompletionRequest) -> None:
    if request.continue_final_message and request.add_generation_prompt is not False:
        raise _conflict(
            "continue_final_message needs add_generation_prompt to be false; it is true by default.",
            "continue_final_message",
        )
    if request.chat_template_args is not None and request.chat_template_kwargs is not None:
        raise InvalidRequest(
            "chat_template_args and chat_template_kwargs are two names of one field.",
            "chat_template_kwargs",
            "duplicate_field",
        )


def _conflict(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param, "conflicting_fields")
