"""An OpenAI request becomes what a worker is asked: template → text → token ids → `PreprocessedRequest`.

Nothing here waits for anybody, except that a slow tokenizer encodes a long text in a thread.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from dynamo.frontend.model import Model
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest, reject_media
from dynamo.frontend.openai_wire import extra_args, output_options, routing, sampling_options, stop_conditions
from dynamo.frontend.postprocess import StopRules
from dynamo.shared.errors import InvalidRequest
from dynamo.shared.protocol import (
    OutputOptions,
    PreprocessedRequest,
    Routing,
    SamplingOptions,
    StopConditions,
)

LONG_TEXT = 16_384  # characters; above it a slow tokenizer leaves the event loop

Prompt = str | list[int]
"""One prompt of a completion request, or a chat already rendered."""


class Prepared(Struct):
    """One prompt, ready to be placed and sent. `token_ids` are packed u32 LE."""

    model: Model
    token_ids: bytes
    stop: StopConditions
    sampling: SamplingOptions
    output: OutputOptions
    rules: StopRules
    annotations: list[str]
    routing: Routing
    extra_args: dict[str, Any] | None
    num_choices: int

    def choices(self) -> list[Prepared]:
        """One request per choice, each with a seed of its own if one was given."""
        if self.num_choices == 1:
            return [self]
        seed = self.sampling.seed
        seeds = [None if seed is None else seed + i for i in range(self.num_choices)]
        return [replace(self, num_choices=1, sampling=replace(self.sampling, n=None, seed=seed)) for seed in seeds]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) >> 2

    def wire_request(self, codec: str) -> PreprocessedRequest:
        """The body for a worker that speaks `codec`."""
        return PreprocessedRequest(
            model=self.model.name,
            token_ids=pack_token_ids(self.token_ids) if codec == "msgpack" else unpack_token_ids(self.token_ids),
            stop_conditions=self.stop,
            sampling_options=self.sampling,
            output_options=self.output,
            eos_token_ids=[] if self.stop.ignore_eos else list(self.model.eos_token_ids),
            mdc_sum=self.model.mdcsum,
            annotations=self.annotations,
            routing=self.routing,
            extra_args=UNSET if self.extra_args is None else self.extra_args,
        )


async def prepare_chat(model: Model, request: ChatCompletionRequest) -> Prepared:
    """Raises InvalidRequest: the template refuses the messages, or the prompt does not fit the context."""
    nvext = request.nvext
    if nvext is not None and nvext.token_data:
        return _prepared(model, request, _packed(nvext.token_data, model, "nvext.token_data"))
    text = _raw_prompt(request) if nvext is not None and nvext.use_raw_prompt else render_chat(model, request)
    return _prepared(model, request, await _encode(model, text, add_special_tokens=False))


async def prepare_completion(model: Model, request: CompletionRequest, prompt: Prompt) -> Prepared:
    if request.nvext is not None and request.nvext.token_data:
        return _prepared(model, request, _packed(request.nvext.token_data, model, "nvext.token_data"))
    if isinstance(prompt, str):
        return _prepared(model, request, await _encode(model, prompt, add_special_tokens=True))
    return _prepared(model, request, _packed(prompt, model, "prompt"))


def render_chat(model: Model, request: ChatCompletionRequest) -> str:
    if model.chat_template is None:
        raise InvalidRequest(
            f"The model {model.name!r} has no chat template; use /v1/completions.", "model", "no_chat_template"
        )
    reject_media(request.messages)
    hides_tools = request.tool_choice == "none" and model.card.runtime_config.exclude_tools_when_tool_choice_none
    return model.chat_template.render(
        request.messages,
        None if hides_tools else request.tools,
        add_generation_prompt=request.add_generation_prompt is not False,
        kwargs=request.template_args,
    )


def pack_token_ids(token_ids: bytes) -> msgspec.Raw:
    """Packed u32 LE -> a msgpack array of uint32, without a Python int per token. Ids are below 2^24.

    Every element takes five bytes, 0xce and the id in big-endian; slices move one byte of each id at a time.
    """
    num = len(token_ids) >> 2
    body = bytearray(b"\xce\0\0\0\0") * num
    for byte in range(3):
        body[4 - byte :: 5] = token_ids[byte::4]
    head = (
        bytes((0x90 | num,)) if num < 16 else b"\xdc" + num.to_bytes(2) if num < 1 << 16 else b"\xdd" + num.to_bytes(4)
    )
    return msgspec.Raw(head + body)


def unpack_token_ids(token_ids: bytes) -> list[int]:
    return memoryview(token_ids).cast("I").tolist()


async def _encode(model: Model, text: str, *, add_special_tokens: bool) -> bytes:
    tokenizer = model.tokenizer
    if tokenizer.is_slow and len(text) > LONG_TEXT:
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)
    return tokenizer.encode(text, add_special_tokens)


def _raw_prompt(request: ChatCompletionRequest) -> str:
    """nvext.use_raw_prompt: the content of the only user message is the prompt."""
    contents = [message.get("content") for message in request.messages if message.get("role") == "user"]
    if len(contents) != 1 or not isinstance(contents[0], str):
        raise InvalidRequest(
            "nvext.use_raw_prompt takes exactly one user message whose content is a string.", "nvext.use_raw_prompt"
        )
    return contents[0]


def _packed(ids: list[int], model: Model, param: str) -> bytes:
    if (highest := max(ids)) >= model.vocab_size:
        raise InvalidRequest(f"Token id {highest} is outside the vocabulary of {model.vocab_size} tokens.", param)
    return b"".join([i.to_bytes(4, "little") for i in ids])


def _prepared(model: Model, request: ChatCompletionRequest | CompletionRequest, token_ids: bytes) -> Prepared:
    _check_length(model, request, len(token_ids) >> 2)
    nvext = request.nvext
    return Prepared(
        model=model,
        token_ids=token_ids,
        stop=stop_conditions(request, model.eos_token_ids),
        sampling=sampling_options(request),
        output=output_options(request),
        rules=_stop_rules(model, request),
        annotations=[] if nvext is None else nvext.annotations or [],
        routing=routing(request),
        extra_args=extra_args(request),
        num_choices=request.n or 1,
    )


def _check_length(model: Model, request: ChatCompletionRequest | CompletionRequest, num_tokens: int) -> None:
    if num_tokens == 0:
        raise InvalidRequest("The prompt is empty.", "prompt")
    limit = model.max_context_length
    if limit and num_tokens >= limit:
        raise InvalidRequest(
            f"The prompt has {num_tokens} tokens; {model.name!r} takes {limit} tokens, the answer included.",
            "messages" if isinstance(request, ChatCompletionRequest) else "prompt",
            "context_length_exceeded",
        )


_NO_IDS: frozenset[int] = frozenset()
_id_set = lru_cache(frozenset[int])


def _stop_rules(model: Model, request: ChatCompletionRequest | CompletionRequest) -> StopRules:
    """With ignore_eos nothing but max_tokens stops, as the worker is told too."""
    max_tokens, min_tokens = request.max_output_tokens, request.min_tokens or 0
    if request.ignore_eos:
        return StopRules(max_tokens=max_tokens, min_tokens=min_tokens)
    own, eos = frozenset(request.all_stop_token_ids), _id_set(model.eos_token_ids)
    is_visible = bool(request.include_stop_str_in_output)
    return StopRules(
        hidden_ids=eos if is_visible or not own else eos | own,
        visible_ids=own if is_visible else _NO_IDS,
        strings=tuple(request.stop_strings),
        include_stop_string=is_visible,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
    )
