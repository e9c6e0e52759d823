"""A streamed answer as events: what every API's stream is made by, and that of chat and text completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from dynamo.frontend.answer_extras import AnswerExtras
from dynamo.frontend.error_formats import ErrorFormat
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.news_fields import news_fields
from dynamo.frontend.openai_answers import JsonObject, Usage
from dynamo.frontend.openai_chunks import DONE, ChoiceStream, Extra
from dynamo.frontend.openai_requests import GenerateRequest
from dynamo.frontend.parsers.message import MessagePart
from dynamo.frontend.postprocess import Delta
from dynamo.shared.errors import DynamoError


class Renderer(Protocol):
    """Makes the events of one answer, all its choices together."""

    def of(self, delta: Delta) -> bytes: ...

    def last(self) -> bytes:
        """What ends a stream that has told everything."""

    def failed(self, error: DynamoError) -> bytes:
        """What ends a stream that cannot go on; the client has got its 200 already."""

    def unanswered(self, nvext: JsonObject) -> bytes:
        """The whole stream, where nothing is generated."""


StreamOf: TypeAlias = Callable[[int], ChoiceStream]
"""The stream of the choice with this index."""


class ChunkRenderer:
    """Deltas to chunks: the first of a choice names the role, the last its finish reason."""

    def __init__(
        self,
        stream_of: StreamOf,
        request: GenerateRequest,
        record: RequestRecord,
        extras: AnswerExtras | None,
        errors: ErrorFormat,
    ) -> None:
        self._stream_of = stream_of
        self._errors = errors
        self._record = record
        self._wants_usage = request.include_usage
        self._wants_running_usage = request.continuous_usage_stats
        self._extras = extras
        self._news = news_fields(request)
        self._is_plain = extras is None and self._news is None and not self._wants_running_usage
        self._choices: dict[int, ChoiceStream] = {}

    def of(self, delta: Delta) -> bytes:
        choice = self._choices.get(delta.index)
        is_first = choice is None
        if choice is None:
            choice = self._choices[delta.index] = self._stream_of(delta.index)
        if delta.logprobs is not None or not self._is_plain:
            return self._in_full(choice, delta, is_first)
        events = b""
        if delta.parts is not None:
            events = _in_parts(choice, delta.parts, is_first)
        elif is_first:
            events = choice.first(delta.text)
        elif delta.text:
            events = choice.delta(delta.text)
        return events + choice.finish(delta.finish_reason) if delta.finish_reason else events

    def last(self) -> bytes:
        """The usage chunk and what came of the router's expectation, if they were asked for."""
        route = b"" if self._extras is None else self._extras.comment(self._record)
        if not self._wants_usage:
            return route + DONE
        choice = next(iter(self._choices.values()), None) or self._stream_of(0)
        return choice.usage(usage_of(self._record)) + route + DONE

    def failed(self, error: DynamoError) -> bytes:
        return self._errors.event(error, self._record.shown_id)

    def unanswered(self, nvext: JsonObject) -> bytes:
        return self._stream_of(0).chunk(None, is_first=True, extra=Extra(nvext=nvext)) + DONE

    def _in_full(self, choice: ChoiceStream, delta: Delta, is_first: bool) -> bytes:
        """With all that a chunk can carry; the last part takes it."""
        record, extras = self._record, self._extras
        usage = usage_of(record) if self._wants_running_usage else None
        is_very_first = is_first and len(self._choices) == 1
        events = extras.events(record) if is_very_first and extras is not None else b""
        if is_first or not delta.is_empty:
            *parts, last = delta.parts or [delta.text]
            if parts:
                events += _in_parts(choice, parts, is_first)
            extra = self._extra(delta, is_very_first)
            events += choice.chunk(
                last, is_first=is_first and not parts, logprobs=delta.logprobs, usage=usage, extra=extra
            )
        if is_very_first and extras is not None:
            events += extras.comment(record)
        if delta.finish_reason:
            events += choice.chunk(finish_reason=delta.finish_reason, usage=usage, extra=self._last_extra(delta))
        return events

    def _extra(self, delta: Delta, is_very_first: bool) -> Extra:
        """What the worker tells is told once, so the delta's end does not find it any more."""
        extras, news = self._extras, self._news
        nvext: JsonObject = {}
        if extras is not None:
            nvext = extras.of_start(self._record) if is_very_first else nvext
            nvext = nvext | extras.of_chunk(self._record, delta)
        extra = Extra(nvext=nvext) if news is None else Extra(news.of_chunk(delta), news.of_prompt(delta), nvext)
        delta.news = None
        return extra

    def _last_extra(self, delta: Delta) -> Extra:
        nvext = {} if self._extras is None else self._extras.of_end(self._record, delta)
        if self._news is None:
            return Extra(nvext=nvext)
        return Extra(self._news.of_choice(delta), self._news.of_prompt(delta), nvext)


def _in_parts(choice: ChoiceStream, parts: list[MessagePart], is_first: bool) -> bytes:
    head = choice.chunk(parts[0], is_first=True) if is_first else choice.part(parts[0])
    return head + b"".join(map(choice.part, parts[1:]))


def usage_of(record: RequestRecord) -> Usage:
    """Tokens so far."""
    return Usage(
        record.num_prompt_tokens, record.num_output_tokens, record.num_cached_tokens or 0, record.num_reasoning_tokens
    )
