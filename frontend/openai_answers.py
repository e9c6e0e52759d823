"""OpenAI answers as bytes, in the shapes of 1.6.1: server-sent chunks, unary bodies, model lists.

`ChatStream` and `CompletionStream` render one choice of one request. What stays the same in every chunk is rendered
once, so that `delta` only escapes its text; `chunk` is the slower way, for a chunk that carries more than text.
"""

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
DONE = b"data: [DONE]\n\n"

JsonObject: TypeAlias = dict[str, Any]
_encode = msgspec.json.Encoder().encode


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


class Extra(Struct, frozen=True):
    """Further fields: of the choice, of its prompt, and the answer's `nvext`. What is empty is left out."""

    of_choice: JsonObject = {}
    of_prompt: JsonObject = {}
    nvext: JsonObject = {}


NO_EXTRA = Extra()


class Model(Struct, kw_only=True):
    """An entry of the model list; `context_window` in tokens, 0 when unknown."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "nvidia"
    context_window: int = 0


class ChatStream:
    """Chunks of one choice of a chat completion."""

    def __init__(
        self, id: str, model: str, created: int, index: int = 0, reasoning_field: str = REASONING_FIELD
    ) -> None:
        self._id = b'data: {"id":%b,"choices":[' % _encode(id)
        self._head = b'%b{"index":%d,"delta":' % (self._id, index)
        self._about = b'],"created":%d,"model":%b,"object":"chat.completion.chunk"' % (created, _encode(model))
        self._text_head = self._head + b'{"content":'
        self._text_tail = b'},"finish_reason":null,"logprobs":null}%b}\n\n' % self._about
        self._first_tail = b',"role":"assistant"' + self._text_tail
        self._reasoning_field = reasoning_field
        self._reasoning_head = b"%b{%b:" % (self._head, _encode(reasoning_field))

    def first(self, text: str) -> bytes:
        return b"".join((self._text_head, _encode(text), self._first_tail))

    def delta(self, text: str) -> bytes:
        return b"".join((self._text_head, _encode(text), self._text_tail))

    def part(self, part: MessagePart) -> bytes:
        if isinstance(part, str):
            return self.delta(part)
        if isinstance(part, Reasoning):
            return b"".join((self._reasoning_head, _encode(part.text), self._text_tail))
        return self.chunk(part)

    def finish(self, reason: str) -> bytes:
        return self.chunk(finish_reason=reason)

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices that ends a stream with `include_usage`."""
        return b'%b%b,"usage":%b}\n\n' % (self._id, self._about, chat_usage(usage))

    def chunk(
        self,
        part: MessagePart | None = "",
        *,
        is_first: bool = False,
        finish_reason: str | None = None,
        logprobs: list[TokenLogprob] | None = None,
        usage: Usage | None = None,
        extra: Extra = NO_EXTRA,
    ) -> bytes:
        """`usage` is the count so far. `part` None says that there never will be any."""
        delta: JsonObject = {"content": ""} if is_first and part is not None else {}
        if part:
            delta |= self._fields(part)
        if is_first:
            delta["role"] = "assistant"
        return b'%b%b,"finish_reason":%b,"logprobs":%b%b}%b%b%b%b}\n\n' % (
            self._head,
            _encode(delta),
            _encode(finish_reason),
            _encode(_chat_logprobs(logprobs)),
            _fields(extra.of_choice),
            self._about,
            b"" if usage is None else b',"usage":' + chat_usage(usage),
            _fields(extra.of_prompt),
            _optional(b"nvext", extra.nvext),
        )

    def _fields(self, part: MessagePart) -> JsonObject:
        if isinstance(part, str):
            return {"content": part}
        if isinstance(part, Reasoning):
            return {self._reasoning_field: part.text}
        return {"tool_calls": [_call_delta(part)]}


class CompletionStream:
    """Chunks of one choice of a text completion."""

    def __init__(self, id: str, model: str, created: int, index: int = 0) -> None:
        self._id = b'data: {"id":%b,"choices":[' % _encode(id)
        self._index = b',"index":%d' % index
        self._about = b'],"created":%d,"model":%b,"system_fingerprint":null,"object":"text_completion"' % (
            created,
            _encode(model),
        )
        self._text_head = self._id + b'{"text":'
        self._text_tail = b'%b}%b,"usage":null}\n\n' % (self._index, self._about)
        self._text_offset = 0

    def first(self, text: str) -> bytes:
        return self.delta(text)

    def delta(self, text: str) -> bytes:
        return b"".join((self._text_head, _encode(text), self._text_tail))

    def part(self, part: MessagePart) -> bytes:
        """Completions have no parser, so text is all there is."""
        return self.delta(part) if isinstance(part, str) else b""

    def finish(self, reason: str) -> bytes:
        return self.chunk(finish_reason=reason)

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices that ends a stream with `include_usage`."""
        return b'%b%b,"usage":%b}\n\n' % (self._id, self._about, completion_usage(usage))

    def chunk(
        self,
        part: MessagePart | None = "",
        *,
        is_first: bool = False,
        finish_reason: str | None = None,
        logprobs: list[TokenLogprob] | None = None,
        usage: Usage | None = None,
        extra: Extra = NO_EXTRA,
    ) -> bytes:
        """Every chunk looks alike, the first too. Offsets of `logprobs` continue those of the chunk before."""
        shaped = completion_logprobs(logprobs, self._text_offset) if logprobs else None
        self._text_offset += sum(len(token.token) for token in logprobs or ())
        return b'%b%b%b%b%b%b%b}%b,"usage":%b%b}\n\n' % (
            self._text_head,
            _encode(part or ""),
            self._index,
            _optional(b"logprobs", shaped),
            _optional(b"finish_reason", finish_reason),
            _fields(extra.of_choice),
            _fields(extra.of_prompt),
            self._about,
            b"null" if usage is None else completion_usage(usage),
            _optional(b"nvext", extra.nvext),
        )


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
        _encode(id),
        b",".join(_chat_choice(choice, reasoning_field, news) for choice in choices),
        created,
        _encode(model),
        b"" if usage is None else b',"usage":' + chat_usage(usage),
        b"" if news is None else _fields(news.of_prompt(choices[0])),
        _optional(b"nvext", nvext),
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
        body
        % (_encode(id), b",".join(_completion_choice(choice, news) for choice in choices), created, _encode(model)),
        b"null" if usage is None else completion_usage(usage),
        _optional(b"nvext", nvext),
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
    return _encode(model)


def models_response(models: Iterable[Model]) -> bytes:
    return _encode({"object": "list", "data": list(models)})


def _chat_choice(choice: Choice, reasoning_field: str, news: NewsFields | None) -> bytes:
    """A message of calls alone has no content."""
    calls, reasoning = choice.calls, choice.reasoning
    message: JsonObject = {"content": (choice.text or None) if calls else choice.text}
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    message |= {"refusal": None, "role": "assistant"}
    if reasoning:
        message[reasoning_field] = reasoning
    return b'{"index":%d,"message":%b,"finish_reason":%b,"logprobs":%b%b}' % (
        choice.index,
        _encode(message),
        _encode(choice.finish_reason),
        _encode(_chat_logprobs(choice.logprobs)),
        b"" if news is None else _fields(news.of_choice(choice)),
    )


def _call(call: ToolCallDelta) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_delta(call: ToolCallDelta) -> JsonObject:
    """Of a call that goes on, only the arguments are news."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **_call(call)}


def _completion_choice(choice: Choice, news: NewsFields | None) -> bytes:
    return b'{"text":%b,"index":%d%b%b%b}' % (
        _encode(choice.text or ""),
        choice.index,
        _optional(b"logprobs", choice.logprobs and completion_logprobs(choice.logprobs)),
        _optional(b"finish_reason", choice.finish_reason),
        b"" if news is None else _fields(news.of_choice(choice) | news.of_prompt(choice)),
    )


def _chat_logprobs(tokens: list[TokenLogprob] | None) -> JsonObject | None:
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


def _fields(fields: JsonObject) -> bytes:
    """To go on with in an object that has some already."""
    return b"," + _encode(fields)[1:-1] if fields else b""


def _optional(name: bytes, value: Any) -> bytes:
    """A field that is left out when its value is None or empty."""
    return b',"%b":%b' % (name, _encode(value)) if value else b""
