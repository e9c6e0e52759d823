"""OpenAI answers as bytes, in the shapes of 1.6.1: what a choice is made of, unary bodies, model lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from dynamo.frontend.news_fields import NewsFields
from dynamo.frontend.parsers.message import MessagePart, ToolCallDelta
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.worker_news import WorkerNews

REASONING_FIELD = "reasoning_content"

JsonObject: TypeAlias = dict[str, Any]
encode = msgspec.json.Encoder().encode


class Usage(Struct, frozen=True):
    """Token counts of a request; None where nobody counted."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Alternative(Struct):
    """A token that could have been chosen; `bytes` are its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Struct):
    """A token that was chosen, and what else could have been."""

    token: str
    logprob: float | None
    bytes: list[int] | None = None
    top_logprobs: list[Alternative] = []
    token_id: int | UnsetType = UNSET


class Choice(Struct):
    """One finished answer: its `parts` in the order they were generated, calls whole. `parts` is None where nothing
    was to be generated; a chat message then has no text either."""

    index: int = 0
    parts: list[MessagePart] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    news: WorkerNews | None = None

    def add_news(self, news: WorkerNews) -> None:
        if self.news is None:
            self.news = news
        else:
            self.news.add(news)

    @property
    def text(self) -> str | None:
        """Content alone."""
        if self.parts is None:
            return None
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts or () if isinstance(part, Reasoning))

    @property
    def calls(self) -> list[ToolCallDelta]:
        return [part for part in self.parts or () if isinstance(part, ToolCallDelta)]


class Model(Struct, kw_only=True):
    """An entry of the model list; `context_window` in tokens, 0 when unknown."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "nvidia"
    context_window: int = 0


def chat_response(
    id: str,
    model: str,
    created: int,
    choices: Sequence[Choice],
    usage: Usage | None,
    nvext: JsonObject | None = None,
    reasoning_field: str = REASONING_FIELD,
    news: NewsFields | None = None,
) -> bytes:
    """Body of a unary chat completion."""
    return b'{"id":%b,"choices":[%b],"created":%d,"model":%b,"object":"chat.completion"%b%b%b}' % (
        encode(id),
        b",".join(_chat_choice(choice, reasoning_field, news) for choice in choices),
        created,
        encode(model),
        b"" if usage is None else b',"usage":' + chat_usage(usage),
        b"" if news is None else more_fields(news.of_prompt(choices[0])),
        optional_field(b"nvext", nvext),
    )


def completion_response(
    id: str,
    model: str,
    created: int,
    choices: Iterable[Choice],
    usage: Usage | None,
    nvext: JsonObject | None = None,
    news: NewsFields | None = None,
) -> bytes:
    """Body of a unary text completion."""
    body = b'{"id":%b,"choices":[%b],"created":%d,"model":%b,"system_fingerprint":null,"object":"text_completion"'
    return b'%b,"usage":%b%b}' % (
        body % (encode(id), b",".join(_completion_choice(choice, news) for choice in choices), created, encode(model)),
        b"null" if usage is None else completion_usage(usage),
        optional_field(b"nvext", nvext),
    )


def chat_usage(usage: Usage) -> bytes:
    return _usage(usage, b'{"cached_tokens":%d}')


def completion_usage(usage: Usage) -> bytes:
    return _usage(usage, b'{"audio_tokens":null,"cached_tokens":%d}')


class CompletionLogprobs(Struct):
    """Parallel lists; `text_offset` counts characters from the start of the answer."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def completion_logprobs(tokens: Sequence[TokenLogprob], text_offset: int = 0) -> CompletionLogprobs:
    offsets = []
    for token in tokens:
        offsets.append(text_offset)
        text_offset += len(token.token)
    return CompletionLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[_by_token(token) for token in tokens],
        text_offset=offsets,
    )


def _by_token(token: TokenLogprob) -> dict[str, float] | None:
    """The chosen token is always among the alternatives. None where nothing is known, as of a prompt's first token."""
    if token.logprob is None:
        return None
    return {other.token: other.logprob for other in token.top_logprobs} | {token.token: token.logprob}


def model_response(model: Model) -> bytes:
    return encode(model)


def models_response(models: Iterable[Model]) -> bytes:
    return encode({"object": "list", "data": list(models)})


def _chat_choice(choice: Choice, reasoning_field: str, news: NewsFields | None) -> bytes:
    """A message of calls alone has no content."""
    calls, reasoning = choice.calls, choice.reasoning
    message: JsonObject = {"content": (choice.text or None) if calls else choice.text}
    if calls:
        message["tool_calls"] = [call_fields(call) for call in calls]
    message |= {"refusal": None, "role": "assistant"}
    if reasoning:
        message[reasoning_field] = reasoning
    return b'{"index":%d,"message":%b,"finish_reason":%b,"logprobs":%b%b}' % (
        choice.index,
        encode(message),
        encode(choice.finish_reason),
        encode(chat_logprobs(choice.logprobs)),
        b"" if news is None else more_fields(news.of_choice(choice)),
    )


def call_fields(call: ToolCallDelta) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _completion_choice(choice: Choice, news: NewsFields | None) -> bytes:
    return b'{"text":%b,"index":%d%b%b%b}' % (
        encode(choice.text or ""),
        choice.index,
        optional_field(b"logprobs", choice.logprobs and completion_logprobs(choice.logprobs)),
        optional_field(b"finish_reason", choice.finish_reason),
        b"" if news is None else more_fields(news.of_choice(choice) | news.of_prompt(choice)),
    )


def chat_logprobs(tokens: list[TokenLogprob] | None) -> JsonObject | None:
    return None if tokens is None else {"content": tokens, "refusal": None}


def _usage(usage: Usage, prompt_details: bytes) -> bytes:
    cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d%b%b}' % (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        b"" if cached is None else b',"prompt_tokens_details":' + prompt_details % cached,
        b"" if reasoning is None else b',"completion_tokens_details":{"reasoning_tokens":%d}' % reasoning,
    )


def more_fields(fields: JsonObject) -> bytes:
    """To go on with in an object that has some already."""
    return b"," + encode(fields)[1:-1] if fields else b""


def optional_field(name: bytes, value: Any) -> bytes:
    """A field that is left out when its value is None or empty."""
    return b',"%b":%b' % (name, encode(value)) if value else b""
