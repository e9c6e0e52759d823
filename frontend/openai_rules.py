"""Rules that one field's type cannot state: keys of maps, mixed arrays, and fields that need or exclude each other."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.guided_decoding import check_guide
from dynamo.frontend.openai_compatibility import Api
from dynamo.frontend.openai_messages import check_messages, check_tools, shown, wrong_type
from dynamo.frontend.openai_requests import (
    MAX_BIAS,
    U32_MAX,
    U64_MAX,
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    NvExt,
    Stop,
)
from dynamo.frontend.strict_schema import check_strict_tools
from dynamo.shared.errors import InvalidRequest

MAX_CHOICES = 128
MAX_DIGITS = len(str(U32_MAX))


def check_chat(
    request: ChatCompletionRequest, *, trusts_templates: bool = False, checks_strict_tools: bool = True
) -> None:
    """Raises InvalidRequest. OpenAI has rules for the schemas of strict functions, other APIs have not."""
    check_messages(request.messages)
    _check_generate(request)
    names = check_tools(request.tools) if request.tools else set()
    _check_template_options(request)
    _check_extra_fields(request, request.n or 1)
    if request.chat_template is not None and not trusts_templates:
        raise InvalidRequest(
            "This gateway renders with the template of the model alone; its operator can allow others with "
            "--trust-request-chat-template.",
            "chat_template",
            "unsupported_field",
        )
    if request.modalities is not None and "audio" in request.modalities:
        raise InvalidRequest("modalities has audio; answers are text.", "modalities", "unsupported_value")
    if checks_strict_tools and request.tools is not None:
        check_strict_tools(request.tools)
    check_guide(request, names)


def check_completion(request: CompletionRequest) -> None:
    _check_prompt(request.prompt)
    _check_generate(request)
    check_guide(request)
    n = request.n or 1
    if n * len(request.prompts) > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(request.prompts)} prompts with n = {n} make more than {MAX_CHOICES} choices.", "n", "out_of_range"
        )
    _check_extra_fields(request, n * len(request.prompts))


def refuse(request: object, names: list[str], api: Api) -> None:
    """The answer would be one to another question, so silence is no option."""
    for name in names:
        row, value = api.rows[name], getattr(request, name)
        if value is not None and value not in row.neutral:
            raise InvalidRequest(f"{name} is not supported by this gateway. {row.about}", name, "unsupported_field")


def _check_extra_fields(request: GenerateRequest, num_choices: int) -> None:
    """`nvext` belongs to an answer, not to one of its choices."""
    if num_choices > 1 and request.nvext is not None and "completion_token_ids" in (request.nvext.extra_fields or ()):
        raise _conflict(
            "completion_token_ids among nvext.extra_fields needs an answer of one choice; return_token_ids tells those "
            "of each.",
            "nvext.extra_fields",
        )


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
    if request.best_of and request.best_of < (request.n or 1):
        raise InvalidRequest(f"best_of is {request.best_of}; it must be at least n, which is {request.n}.", "best_of")
    if request.truncate_prompt_tokens == 0:
        raise InvalidRequest("truncate_prompt_tokens of 0 leaves no prompt.", "truncate_prompt_tokens", "out_of_range")
    if isinstance(request.stop, list):
        _check_stop(request.stop)
    if request.logit_bias:
        _check_logit_bias(request.logit_bias)
    if request.nvext is not None:
        check_worker_ids(request.nvext)


def _check_stop(stop: Stop) -> None:
    kind = type(stop[0])
    for index, item in enumerate(stop):
        if type(item) is not kind:
            raise wrong_type(f"stop[{index}]", "of the same type as stop[0]: all strings or all token ids", item)


def check_worker_ids(nvext: NvExt) -> None:
    for name in ("backend_instance_id", "prefill_worker_id", "decode_worker_id"):
        if (getattr(nvext, name) or 0) > U64_MAX:
            raise InvalidRequest(f"nvext.{name} is not an unsigned 64-bit number.", f"nvext.{name}", "out_of_range")
    for index, worker_id in enumerate(nvext.allowed_worker_ids or ()):
        if worker_id > U64_MAX:
            param = f"nvext.allowed_worker_ids[{index}]"
            raise InvalidRequest(f"{param} is not an unsigned 64-bit number.", param, "out_of_range")


def _check_logit_bias(logit_bias: dict[str, float]) -> None:
    for token_id, bias in logit_bias.items():
        is_number = token_id.isascii() and token_id.isdecimal() and len(token_id) <= MAX_DIGITS
        if not (is_number and int(token_id) <= U32_MAX):
            raise InvalidRequest(
                f"logit_bias has the key {shown(token_id)}; keys are token ids from 0 to {U32_MAX}.",
                "logit_bias",
                "invalid_value",
            )
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequest(
                f"logit_bias for token {token_id} is {shown(bias)}; it must be between -{MAX_BIAS} and {MAX_BIAS}.",
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
    for name in ("chat_template_args", "chat_template_kwargs"):
        if "chat_template" in (getattr(request, name) or ()):
            param = f"{name}.chat_template"
            raise InvalidRequest(f"{param} is not a variable; see the field chat_template.", param, "unsupported_field")


def _conflict(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param, "conflicting_fields")
