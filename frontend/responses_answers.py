"""Answers of the Responses API: the items of an output, whole and as a stream of events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import Choice, JsonObject, TokenLogprob
from dynamo.frontend.parsers.message import MessagePart, ToolCallDelta, kind_of, text_of
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.responses_requests import ResponsesRequest
from dynamo.frontend.responses_tools import TOOL_SEARCH, OfferedTool, SpecialTools, call_item, custom_input
from dynamo.shared.errors import DynamoError, Overloaded

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}

encode = msgspec.json.Encoder().encode
OnEnd = Callable[[JsonObject, Choice], None]
"""Called with the whole response, and what was generated, before the client is told of its end."""
_NONE: SpecialTools = {}


class ResponseObject:
    """What a request's response says at each stage of its life."""

    def __init__(self, request: ResponsesRequest, record: RequestRecord, created: int, *, is_stored: bool) -> None:
        self._record = record
        self._fields = _echoed(request) | {
            "id": response_id(record),
            "object": "response",
            "created_at": created,
            "model": record.model,
            "store": is_stored,
        }

    def begun(self) -> JsonObject:
        return self._fields | {"status": "in_progress", "output": [], "usage": None}

    def ended(self, output: list[JsonObject], finish_reason: str | None) -> JsonObject:
        reason = _INCOMPLETE.get(finish_reason or "")
        return self._fields | {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "completed_at": None if reason else int(time.time()),
            "output": output,
            "usage": _usage(self._record),
        }

    def failed(self, output: list[JsonObject], error: DynamoError) -> JsonObject:
        code = "rate_limit_exceeded" if isinstance(error, Overloaded) else "server_error"
        return self._fields | {
            "status": "failed",
            "error": {"code": code, "message": error.message},
            "output": output,
            "usage": _usage(self._record),
        }


def response_id(record: RequestRecord) -> str:
    return f"resp_{record.request_id}"


def output_items(record: RequestRecord, choice: Choice, special: SpecialTools) -> list[JsonObject]:
    """Of a whole answer. Only the last item can be incomplete. Logprobs are told with the first text."""
    parts = choice.parts or []
    status = "incomplete" if choice.finish_reason in _INCOMPLETE else "completed"
    logprobs = _logprobs(choice.logprobs)
    items = []
    for index, part in enumerate(parts):
        told = logprobs if isinstance(part, str) else []
        ended = status if part is parts[-1] else "completed"
        tool = _tool(part, special)
        items.append(_item(part, _item_id(record, part, index, tool), ended, told, tool))
        if isinstance(part, str):
            logprobs = []
    return items


class ResponseRenderer:
    """Events of one response. An item ends when a part of another kind, or another call, begins."""

    def __init__(
        self, response: ResponseObject, record: RequestRecord, on_end: OnEnd, special: SpecialTools = _NONE
    ) -> None:
        self._response = response
        self._record = record
        self._on_end = on_end
        self._special = special
        self._sequence_number = -1
        self._choice = Choice(0, [])
        self._output: list[JsonObject] = []
        self._item: _OpenItem | None = None
        self._untold: list[JsonObject] = []  # logprobs that wait for text, as tokens do that are held back

    def of(self, delta: Delta) -> bytes:
        events = [] if self._sequence_number >= 0 else [self._begin()]
        if delta.finish_reason is not None:
            self._choice.finish_reason = delta.finish_reason
        if delta.logprobs:
            self._untold += _logprobs(delta.logprobs)
        for part in delta.parts or ((delta.text,) if delta.text else ()):
            if self._item is None or self._item.kind != kind_of(part):
                events.append(self._close() + self._open(part))
            if text := text_of(part):
                events.append(self._go_on(text, self._take_logprobs() if isinstance(part, str) else []))
        return b"".join(events)

    def last(self) -> bytes:
        begin = b"" if self._sequence_number >= 0 else self._begin()
        events = begin + self._close()
        response = self._response.ended(self._output, self._choice.finish_reason)
        self._on_end(response, self._choice)
        return events + self._event(f"response.{response['status']}", {"response": response})

    def failed(self, error: DynamoError) -> bytes:
        """OpenAI sends both of these, and clients look for either."""
        told = {"code": error.code, "message": error.message, "param": error.param}
        response = self._response.failed(self._output, error)
        return self._event("error", told) + self._event("response.failed", {"response": response})

    def unanswered(self, nvext: JsonObject) -> bytes:
        response = self._response.ended([], None) | {"nvext": nvext}
        return self._begin() + self._event("response.completed", {"response": response})

    def _begin(self) -> bytes:
        response = {"response": self._response.begun()}
        return self._event("response.created", response) + self._event("response.in_progress", response)

    def _open(self, part: MessagePart) -> bytes:
        assert self._choice.parts is not None
        index = len(self._output)
        tool = _tool(part, self._special)
        id = _item_id(self._record, part, index, tool)
        item = self._item = _OpenItem(part, id, index) if tool is None else _OpenSpecialCall(part, id, index, tool)
        added = self._event("response.output_item.added", {"output_index": index, "item": item.empty()})
        if (content := item.empty_content()) is None:
            return added
        return added + self._event("response.content_part.added", item.place | {"part": content})

    def _go_on(self, text: str, logprobs: list[JsonObject]) -> bytes:
        item = self._item
        assert item is not None
        item.add(text, logprobs)
        if not item.streams:
            return b""
        self._sequence_number += 1
        told = b',"logprobs":' + encode(logprobs) if item.kind is str else b""
        return b'%b%b%b,"sequence_number":%d}\n\n' % (item.delta_head, encode(text), told, self._sequence_number)

    def _close(self) -> bytes:
        item, self._item = self._item, None
        if item is None:
            return b""
        assert self._choice.parts is not None
        is_cut = self._choice.finish_reason in _INCOMPLETE
        if item.kind is str:
            item.logprobs += self._take_logprobs()
        whole = item.whole()
        body = _item(whole, item.id, "incomplete" if is_cut else "completed", item.logprobs, item.tool)
        self._output.append(body)
        self._choice.parts.append(whole)
        events = b"".join(self._event(f"{item.name}.{stage}", item.place | fields) for stage, fields in item.ending())
        if item.empty_content() is not None:
            events += self._event("response.content_part.done", item.place | {"part": body["content"][0]})
        return events + self._event("response.output_item.done", {"output_index": item.index, "item": body})

    def _take_logprobs(self) -> list[JsonObject]:
        logprobs, self._untold = self._untold, []
        return logprobs

    def _event(self, name: str, fields: JsonObject) -> bytes:
        self._sequence_number += 1
        data = {"type": name, **fields, "sequence_number": self._sequence_number}
        return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


class _OpenItem:
    """The item that is being generated. `place` says where it is, in every event about it. Of an item that `streams`
    not, the client hears when it is whole."""

    streams = True
    tool: OfferedTool | None = None

    def __init__(self, part: MessagePart, id: str, index: int) -> None:
        self.kind = kind_of(part)
        self.id = id
        self.index = index
        self.name = _EVENTS[type(part)]
        self.logprobs: list[JsonObject] = []
        self.place: JsonObject = {"item_id": id, "output_index": index}
        self._part = part
        self._texts: list[str] = []
        if not isinstance(part, ToolCallDelta):
            self.place["content_index"] = 0
        name = f"{self.name}.delta"
        place = encode(self.place)[1:-1]
        self.delta_head = b'event: %b\ndata: {"type":"%b",%b,"delta":' % (name.encode(), name.encode(), place)

    def add(self, text: str, logprobs: list[JsonObject]) -> None:
        self._texts.append(text)
        self.logprobs += logprobs

    def whole(self) -> MessagePart:
        text, part = "".join(self._texts), self._part
        if isinstance(part, ToolCallDelta):
            return ToolCallDelta(part.index, part.id, part.name, text)
        return Reasoning(text) if isinstance(part, Reasoning) else text

    def ending(self) -> list[tuple[str, JsonObject]]:
        """Events between the last delta and the whole item: what follows their name, and their fields."""
        text = "".join(self._texts)
        if isinstance(self._part, ToolCallDelta):
            return [("done", {"name": self._part.name, "arguments": text})]
        return [("done", {"text": text, "logprobs": self.logprobs} if isinstance(self._part, str) else {"text": text})]

    def empty(self) -> JsonObject:
        if isinstance(self._part, ToolCallDelta):
            begun = ToolCallDelta(0, self._part.id, self._part.name)
            return _item(begun, self.id, "in_progress", [], self.tool)
        return _item(type(self._part)(""), self.id, "in_progress", []) | {"content": []}

    def empty_content(self) -> JsonObject | None:
        return None if isinstance(self._part, ToolCallDelta) else _content(type(self._part)(""), [])


class _OpenSpecialCall(_OpenItem):
    """A call of a tool that is a function for the model alone."""

    def __init__(self, part: MessagePart, id: str, index: int, tool: OfferedTool) -> None:
        super().__init__(part, id, index)
        self.tool = tool
        self.streams = tool.type == "function"
        if tool.type == "custom":
            self.name = "response.custom_tool_call_input"

    def ending(self) -> list[tuple[str, JsonObject]]:
        assert self.tool is not None
        text = "".join(self._texts)
        if self.tool.type == TOOL_SEARCH:
            return []
        if self.tool.type == "function":
            return [("done", {"name": self.tool.name, "arguments": text})]
        told = custom_input(text)
        return [("delta", {"delta": told}), ("done", {"input": told})]


_EVENTS = {
    str: "response.output_text",
    Reasoning: "response.reasoning_text",
    ToolCallDelta: "response.function_call_arguments",
}
_ID_PREFIXES = {str: "msg", Reasoning: "rs", ToolCallDelta: "fc"}


_SPECIAL_ID_PREFIXES = {"function": "fc", "custom": "ctc", TOOL_SEARCH: "tsc"}


def _tool(part: MessagePart, special: SpecialTools) -> OfferedTool | None:
    return special.get(part.name or "") if special and isinstance(part, ToolCallDelta) else None


def _item_id(record: RequestRecord, part: MessagePart, index: int, tool: OfferedTool | None) -> str:
    prefix = _ID_PREFIXES[type(part)] if tool is None else _SPECIAL_ID_PREFIXES[tool.type]
    return f"{prefix}_{record.request_id}_{index}"


def _item(
    part: MessagePart, id: str, status: str, logprobs: list[JsonObject], tool: OfferedTool | None = None
) -> JsonObject:
    if isinstance(part, ToolCallDelta):
        return call_item(part, tool, id, status)
    content = [_content(part, logprobs)]
    if isinstance(part, Reasoning):
        return {"type": "reasoning", "id": id, "summary": [], "content": content, "status": status}
    return {"type": "message", "id": id, "role": "assistant", "status": status, "content": content}


def _content(part: str | Reasoning, logprobs: list[JsonObject]) -> JsonObject:
    if isinstance(part, Reasoning):
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": part}


def _logprobs(tokens: list[TokenLogprob] | None) -> list[JsonObject]:
    told: list[JsonObject] = msgspec.to_builtins(tokens or [])
    return told


def _usage(record: RequestRecord) -> JsonObject:
    return {
        "input_tokens": record.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": record.num_cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": record.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": record.num_reasoning_tokens or 0},
        "total_tokens": record.num_prompt_tokens + record.num_output_tokens,
    }


def _echoed(request: ResponsesRequest) -> JsonObject:
    """The request as it was understood; clients read these fields without asking whether they are there."""
    text, reasoning = request.text, request.reasoning
    format: Any = {"type": "text"} if text is None or text.format is None else _given(text.format)
    return {
        "background": False,
        "billing": None,
        "completed_at": None,
        "conversation": None,
        "error": None,
        "frequency_penalty": 0.0,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "presence_penalty": 0.0,
        "previous_response_id": request.previous_response_id,
        "prompt": None,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": None if reasoning is None else {"effort": reasoning.effort, "summary": reasoning.summary},
        "safety_identifier": request.safety_identifier,
        "service_tier": request.service_tier or "auto",
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": format},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }


def _given(value: Any) -> JsonObject:
    return {name: field for name, field in msgspec.to_builtins(value).items() if field is not None}
