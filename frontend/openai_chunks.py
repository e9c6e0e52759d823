"""OpenAI streams as bytes, in the shapes of 1.6.1: the chunks of one choice of a chat or text completion.

What stays the same in every chunk is rendered once, so that `delta` only escapes its text; `chunk` is the slower way,
for a chunk that carries more than text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from msgspec import Struct

from dynamo.frontend.openai_answers import (
    REASONING_FIELD,
    JsonObject,
    TokenLogprob,
    Usage,
    call_fields,
    chat_logprobs,
    chat_usage,
    completion_logprobs,
    completion_usage,
    encode,
    more_fields,
    optional_field,
)
from dynamo.frontend.parsers.message import MessagePart, ToolCallDelta
from dynamo.frontend.parsers.parts import Reasoning

DONE = b"data: [DONE]\n\n"


class Extra(Struct, frozen=True):
    """Further fields: of the choice, of its prompt, and the answer's `nvext`. What is empty is left out."""

    of_choice: JsonObject = {}
    of_prompt: JsonObject = {}
    nvext: JsonObject = {}


NO_EXTRA = Extra()


class ChoiceStream(ABC):
    """`about` is what chunks say of the answer after their choices, `usage_of` how they spell its usage. Chunks of
    text are what is made before `_text_head` and after `_text_tail`, which subclasses set."""

    _text_head: bytes
    _text_tail: bytes

    def __init__(self, id: str, about: bytes, usage_of: Callable[[Usage], bytes]) -> None:
        self._id = b'data: {"id":%b,"choices":[' % encode(id)
        self._about = about
        self._usage_of = usage_of

    @abstractmethod
    def first(self, text: str) -> bytes: ...

    def delta(self, text: str) -> bytes:
        return b"".join((self._text_head, encode(text), self._text_tail))

    @abstractmethod
    def part(self, part: MessagePart) -> bytes: ...

    def finish(self, reason: str) -> bytes:
        return self.chunk(finish_reason=reason)

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices that ends a stream with `include_usage`."""
        return b'%b%b,"usage":%b}\n\n' % (self._id, self._about, self._usage_of(usage))

    @abstractmethod
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


class ChatStream(ChoiceStream):
    """Chunks of one choice of a chat completion."""

    def __init__(
        self, id: str, model: str, created: int, index: int = 0, reasoning_field: str = REASONING_FIELD
    ) -> None:
        about = b'],"created":%d,"model":%b,"object":"chat.completion.chunk"' % (created, encode(model))
        super().__init__(id, about, chat_usage)
        self._head = b'%b{"index":%d,"delta":' % (self._id, index)
        self._text_head = self._head + b'{"content":'
        self._text_tail = b'},"finish_reason":null,"logprobs":null}%b}\n\n' % self._about
        self._first_tail = b',"role":"assistant"' + self._text_tail
        self._reasoning_field = reasoning_field
        self._reasoning_head = b"%b{%b:" % (self._head, encode(reasoning_field))

    def first(self, text: str) -> bytes:
        return b"".join((self._text_head, encode(text), self._first_tail))

    def part(self, part: MessagePart) -> bytes:
        if isinstance(part, str):
            return self.delta(part)
        if isinstance(part, Reasoning):
            return b"".join((self._reasoning_head, encode(part.text), self._text_tail))
        return self.chunk(part)

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
        delta: JsonObject = {"content": ""} if is_first and part is not None else {}
        if part:
            delta |= self._fields(part)
        if is_first:
            delta["role"] = "assistant"
        return b'%b%b,"finish_reason":%b,"logprobs":%b%b}%b%b%b%b}\n\n' % (
            self._head,
            encode(delta),
            encode(finish_reason),
            encode(chat_logprobs(logprobs)),
            more_fields(extra.of_choice),
            self._about,
            b"" if usage is None else b',"usage":' + chat_usage(usage),
            more_fields(extra.of_prompt),
            optional_field(b"nvext", extra.nvext),
        )

    def _fields(self, part: MessagePart) -> JsonObject:
        if isinstance(part, str):
            return {"content": part}
        if isinstance(part, Reasoning):
            return {self._reasoning_field: part.text}
        return {"tool_calls": [_call_delta(part)]}


class CompletionStream(ChoiceStream):
    """Chunks of one choice of a text completion."""

    def __init__(self, id: str, model: str, created: int, index: int = 0) -> None:
        about = b'],"created":%d,"model":%b,"system_fingerprint":null,"object":"text_completion"'
        super().__init__(id, about % (created, encode(model)), completion_usage)
        self._index = b',"index":%d' % index
        self._text_head = self._id + b'{"text":'
        self._text_tail = b'%b}%b,"usage":null}\n\n' % (self._index, self._about)
        self._text_offset = 0

    def first(self, text: str) -> bytes:
        return self.delta(text)

    def part(self, part: MessagePart) -> bytes:
        """Completions have no parser, so text is all there is."""
        return self.delta(part) if isinstance(part, str) else b""

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
            encode(part or ""),
            self._index,
            optional_field(b"logprobs", shaped),
            optional_field(b"finish_reason", finish_reason),
            more_fields(extra.of_choice),
            more_fields(extra.of_prompt),
            self._about,
            b"null" if usage is None else completion_usage(usage),
            optional_field(b"nvext", extra.nvext),
        )


def _call_delta(call: ToolCallDelta) -> JsonObject:
    """Of a call that goes on, only the arguments are news."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **call_fields(call)}
