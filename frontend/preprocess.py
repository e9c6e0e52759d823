"""An OpenAI request becomes what a worker is asked: template → text → token ids → `PreprocessedRequest`.

Nothing here waits for anybody, except that a slow tokenizer encodes a long text in a thread.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from dynamo.frontend.chat_template import ChatTemplate, ChatTemplateError
from dynamo.frontend.kept_output import KeptOutput
from dynamo.frontend.message_reader import PROMPT_END, ReaderFactory, reader_of_message
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.model import Model
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest, GenerateRequest, reject_media
from dynamo.frontend.openai_requests import JsonObject, NvExt
from dynamo.frontend.openai_wire import extra_args, output_options, sampling_options, stop_conditions
from dynamo.frontend.postprocess import StopRules
from dynamo.frontend.prepared import Sink
from dynamo.frontend.routing_headers import NO_ROUTING_HEADERS, RoutingHeaders
from dynamo.frontend.routing_wishes import RoutingWishes, routing_wishes
from dynamo.frontend.telling_answer import TellingAnswer
from dynamo.frontend.token_answer import TokenAnswer
from dynamo.frontend.token_logprobs import LogprobReader
from dynamo.shared.errors import InvalidRequest
from dynamo.shared.hashing import hash_seed, pack_tokens, packed_sequence_hashes
from dynamo.shared.protocol import (
    EngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)
from dynamo.shared.request_plane.stream import ENGINE_OUTPUTS, ItemDecoders

LONG_TEXT = 16_384  # characters; above it a slow tokenizer leaves the event loop

Prompt = str | list[int]
"""One prompt of a completion request, or a chat already rendered."""


class TokenPrompt(Struct):
    """One prompt, ready to be placed and sent. `token_ids` are packed u32 LE."""

    model: Model
    token_ids: bytes
    stop: StopConditions
    sampling: SamplingOptions
    output: OutputOptions
    rules: StopRules
    annotations: list[str]
    wishes: RoutingWishes
    extra_args: dict[str, Any] | None
    num_choices: int
    media_io_kwargs: JsonObject | UnsetType = UNSET
    mm_processor_kwargs: JsonObject | UnsetType = UNSET
    num_tops: int | None = None  # alternatives shown of each token; None where no logprobs are wanted
    wants_news: bool = False  # of what the worker tells besides text
    formatted_prompt: str = ""  # kept for an answer that tells it
    tells_prompt: bool = False  # the answer names the prompt's token ids
    echo: str | None = None  # what the answer begins with
    echoes_tokens: bool = False  # the echo is the prompt
    reader_of_message: ReaderFactory | None = None  # None where the answer is nothing but text
    block_hashes: bytes = b""  # empty unless the router wants them

    def choices(self) -> list[TokenPrompt]:
        """One request per choice, each with a seed of its own if one was given."""
        if self.num_choices == 1:
            return [self]
        seed = self.sampling.seed
        seeds = [None if seed is None else seed + i for i in range(self.num_choices)]
        return [replace(self, num_choices=1, sampling=replace(self.sampling, n=None, seed=seed)) for seed in seeds]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) >> 2

    @property
    def unpacked(self) -> list[int]:
        return unpack_token_ids(self.token_ids)

    @property
    def is_guided(self) -> bool:
        return self.sampling.guided_decoding is not None

    @property
    def items(self) -> ItemDecoders[EngineOutput]:
        return ENGINE_OUTPUTS

    @property
    def output_limit(self) -> int | None:
        """Tokens after which the answer is over, whatever they are; None if nobody knows."""
        limits = [limit for limit in (self.stop.max_tokens, self._room_in_context) if limit is not None]
        return min(limits, default=None)

    @property
    def _room_in_context(self) -> int | None:
        length = self.model.max_context_length
        return length - self.num_tokens if length else None

    def hash_blocks(self, block_size: int) -> None:
        """Fill in `block_hashes`, as the workers' KV events name them: packed sequence hashes of the full blocks."""
        card = self.model.card
        seed = hash_seed(self.wishes.routing.lora_name, self.wishes.cache_salt)
        is_eagle = card.runtime_config.enable_eagle
        self.block_hashes = packed_sequence_hashes(self.token_ids, block_size, seed, is_eagle=is_eagle)

    def continued(self, output: bytes) -> TokenPrompt:
        """What is left to ask for once `output`, packed too, was generated."""
        num_output, stop = len(output) >> 2, self.stop
        return replace(
            self,
            token_ids=self.token_ids + output,
            stop=replace(
                stop,
                max_tokens=None if stop.max_tokens is None else stop.max_tokens - num_output,
                min_tokens=None if stop.min_tokens is None else max(0, stop.min_tokens - num_output),
            ),
            block_hashes=b"",
        )

    def answer(self, index: int, record: RequestRecord, sink: Sink, kept: KeptOutput) -> TokenAnswer:
        if self.wants_news or self.echo is not None:
            return TellingAnswer(self, index, record, sink, kept)
        return TokenAnswer(self, index, record, sink, kept)

    def logprob_reader(self) -> LogprobReader | None:
        if self.num_tops is None:
            return None
        names_ids = bool(self.output.return_tokens_as_token_ids)
        return LogprobReader(self.model.vocabulary, self.num_tops, names_ids=names_ids)

    def wire_request(self, codec: str, dp_rank: int | None = None) -> PreprocessedRequest:
        """The body for a worker that speaks `codec`, and for the rank that it was placed on."""
        wishes = self.wishes
        routing = wishes.routing
        if dp_rank is not None and dp_rank != routing.dp_rank:
            routing = replace(routing, dp_rank=dp_rank)
        return PreprocessedRequest(
            model=self.model.name,
            token_ids=pack_token_ids(self.token_ids) if codec == "msgpack" else unpack_token_ids(self.token_ids),
            stop_conditions=self.stop,
            sampling_options=self.sampling,
            output_options=self.output,
            eos_token_ids=[] if self.stop.ignore_eos else list(self.model.eos_token_ids),
            mdc_sum=self.model.mdcsum,
            annotations=self.annotations,
            routing=routing,
            router_config_override=wishes.router_config,
            extra_args=UNSET if self.extra_args is None else self.extra_args,
            agent_context=UNSET if wishes.agent_context is None else wishes.agent_context,
            image_cache_scope=UNSET if wishes.agent_context is None else wishes.agent_context.session_id,
            router=UNSET if wishes.latency_targets is None else wishes.latency_targets,
            request_timestamp_ms=UNSET if wishes.timestamp_ms is None else wishes.timestamp_ms,
            media_io_kwargs=self.media_io_kwargs,
            mm_processor_kwargs=self.mm_processor_kwargs,
        )


async def prepare_chat(
    model: Model, request: ChatCompletionRequest, headers: RoutingHeaders = NO_ROUTING_HEADERS
) -> TokenPrompt:
    """Raises InvalidRequest: the template refuses the messages, or the prompt does not fit the context."""
    nvext, text = request.nvext, ""
    if nvext is not None and nvext.token_data:
        token_ids = _packed(nvext.token_data, model, "nvext.token_data")
    else:
        text = _raw_prompt(request) if nvext is not None and nvext.use_raw_prompt else render_chat(model, request)
        token_ids = await encode_text(model, text, bool(request.add_special_tokens))
    prepared = _prepared(model, request, token_ids, headers)
    if request.media_io_kwargs is not None:
        prepared.media_io_kwargs = request.media_io_kwargs
    if request.mm_processor_kwargs is not None:
        prepared.mm_processor_kwargs = request.mm_processor_kwargs
    if request.echo:
        prepared.echo = _last_words(request)
    if nvext is not None and _tells_prompt(nvext):
        prepared.formatted_prompt = text
    if model.reads_special_tokens:
        prepared.output.skip_special_tokens = False
    must_be_json = "json" in (prepared.sampling.guided_decoding or ())
    prepared.reader_of_message = reader_of_message(model, request, text[-PROMPT_END:], must_be_json=must_be_json)
    return prepared


async def count_chat_tokens(model: Model, request: ChatCompletionRequest) -> int:
    """Raises InvalidRequest where the template refuses the messages."""
    return len(await encode_text(model, render_chat(model, request), False)) >> 2


async def prepare_completion(
    model: Model, request: CompletionRequest, prompt: Prompt, headers: RoutingHeaders = NO_ROUTING_HEADERS
) -> TokenPrompt:
    nvext, text = request.nvext, None
    if nvext is not None and nvext.token_data:
        token_ids = _packed(nvext.token_data, model, "nvext.token_data")
    elif isinstance(prompt, str):
        text = prompt
        token_ids = await encode_text(model, prompt, request.add_special_tokens is not False)
    else:
        token_ids = _packed(prompt, model, "prompt")
    prepared = _prepared(model, request, token_ids, headers)
    if request.echo:
        prepared.echo = _decoded(model, prepared.token_ids) if text is None else text
        prepared.echoes_tokens = True
    return prepared


def _decoded(model: Model, token_ids: bytes) -> str:
    detokenizer = model.detokenizer()
    return detokenizer.push(unpack_token_ids(token_ids)) + detokenizer.flush()


def render_chat(model: Model, request: ChatCompletionRequest) -> str:
    template = model.chat_template if request.chat_template is None else _own_template(model, request.chat_template)
    if template is None:
        raise InvalidRequest(
            f"The model {model.name!r} has no chat template; use /v1/completions.", "model", "no_chat_template"
        )
    reject_media(request.messages)
    hides_tools = request.tool_choice == "none" and model.card.runtime_config.exclude_tools_when_tool_choice_none
    return template.render(
        request.messages,
        None if hides_tools else request.tools,
        add_generation_prompt=request.add_generation_prompt is not False,
        kwargs=request.template_args,
        continue_final_message=bool(request.continue_final_message),
    )


def _own_template(model: Model, source: str) -> ChatTemplate:
    """The request's, where requests may bring one."""
    try:
        if model.chat_template is None:
            return ChatTemplate({"default": source})
        return model.chat_template.with_source(source)
    except ChatTemplateError as error:
        raise InvalidRequest(f"chat_template does not compile: {error}", "chat_template") from None


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


async def encode_text(model: Model, text: str, add_special_tokens: bool) -> bytes:
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
    return pack_tokens(ids)


def _prepared(
    model: Model, request: ChatCompletionRequest | CompletionRequest, token_ids: bytes, headers: RoutingHeaders
) -> TokenPrompt:
    if request.truncate_prompt_tokens is not None:
        token_ids = _truncated(model, request, token_ids)
    _check_length(model, request, len(token_ids) >> 2)
    nvext = request.nvext
    wishes = routing_wishes(request, headers, model.lora_name)
    return TokenPrompt(
        model=model,
        token_ids=token_ids,
        stop=stop_conditions(request, model.eos_token_ids),
        sampling=sampling_options(request, model.structural_tags),
        output=output_options(request),
        rules=_stop_rules(model, request),
        annotations=[] if nvext is None else nvext.annotations or [],
        wishes=wishes,
        extra_args=extra_args(request, wishes.cache_salt, _bad_words(model, request.bad_words)),
        num_choices=request.n or 1,
        num_tops=request.num_tops,
        wants_news=_wants_news(request),
        tells_prompt=bool(request.return_token_ids),
    )


def _truncated(model: Model, request: GenerateRequest, token_ids: bytes) -> bytes:
    """The end of a prompt. -1 keeps what leaves room for the answer, or for one token where nobody says how long that
    may be."""
    num = request.truncate_prompt_tokens
    if num == -1:
        num = max(1, model.max_context_length - (request.max_output_tokens or 1))
        if not model.max_context_length:
            return token_ids
    assert num is not None
    return token_ids[-4 * num :]


_NEWS = frozenset(("completion_token_ids", "engine_data", "routed_experts", "prompt_logprobs"))


def _wants_news(request: GenerateRequest) -> bool:
    if request.return_token_ids or request.prompt_logprobs is not None:
        return True
    nvext = request.nvext
    return nvext is not None and nvext.extra_fields is not None and not _NEWS.isdisjoint(nvext.extra_fields)


def _tells_prompt(nvext: NvExt) -> bool:
    return "formatted_prompt" in (*(nvext.annotations or ()), *(nvext.extra_fields or ()))


def _last_words(request: ChatCompletionRequest) -> str:
    """Of the assistant, for an echo: what its answer goes on with."""
    message = request.messages[-1]
    content = message.get("content") if message["role"] == "assistant" else None
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


def _bad_words(model: Model, words: list[str] | None) -> list[list[int]]:
    """A word has other tokens after a space than at the start of a text."""
    found: list[list[int]] = []
    for word in words or ():
        for text in (word, f" {word.lstrip()}"):
            token_ids = unpack_token_ids(model.tokenizer.encode(text, False))
            if token_ids and token_ids not in found:
                found.append(token_ids)
    return found


def _check_length(model: Model, request: ChatCompletionRequest | CompletionRequest, num_tokens: int) -> None:
    if num_tokens == 0:
        raise InvalidRequest("The prompt is empty.", "prompt")
    limit = model.max_context_length
    if limit and num_tokens >= limit:
        raise InvalidRequest(
            f"The prompt is too long: it has {num_tokens} tokens, and {context_limit(limit)}, the answer included.",
            "messages" if isinstance(request, ChatCompletionRequest) else "prompt",
            "context_length_exceeded",
        )


def context_limit(num_tokens: int) -> str:
    """Clients and proxies tell this error by these very words, and shorten the prompt or turn to a larger model."""
    return f"this model's maximum context length is {num_tokens} tokens"


_NO_IDS: frozenset[int] = frozenset()
_id_set = lru_cache(frozenset[int])


def _stop_rules(model: Model, request: ChatCompletionRequest | CompletionRequest) -> StopRules:
    """With ignore_eos nothing but max_tokens stops, as the worker is told too."""
    max_tokens, min_tokens = request.max_output_tokens, request.min_tokens or 0
    if request.ignore_eos:
        return StopRules(max_tokens=max_tokens, min_tokens=min_tokens)
    named, eos = frozenset(request.all_stop_token_ids), _id_set(model.eos_token_ids)
    own = named
    if not isinstance(request, ChatCompletionRequest) and request.no_stop_trim:
        own, eos, is_visible = own | eos, _NO_IDS, True
    else:
        is_visible = bool(request.include_stop_str_in_output)
    return StopRules(
        hidden_ids=eos if is_visible or not own else eos | own,
        visible_ids=own if is_visible else _NO_IDS,
        named_ids=named,
        strings=tuple(request.stop_strings),
        include_stop_string=is_visible,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
    )
