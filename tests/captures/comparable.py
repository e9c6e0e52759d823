"""Answers with what must differ between two servers replaced by its type, so that the rest can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

HEADERS = frozenset({"allow", "cache-control", "content-type", "x-request-id"})

# Made up by the model or the server, counted over earlier requests, or worded by each server in its own way.
VARYING = frozenset(
    {
        "cached_tokens",
        "content",
        "context_window",
        "created",
        "created_at",
        "decode_worker_id",
        "endpoint",
        "endpoints",
        "error",
        "id",
        "index",
        "instance_id",
        "message",
        "prefill_worker_id",
        "tcp",
        "text",
        "token_ids",
    }
)
SO_FAR = ("completion_tokens", "total_tokens")  # in the midst of a stream; how many tokens a chunk has is left open


def comparable_answer(headers: Iterable[tuple[str, str]], body: str) -> dict[str, Any]:
    told = {name.lower(): _in_order(value) for name, value in headers if name.lower() in HEADERS}
    of_headers = {f"header {name}": value for name, value in told.items()}
    return of_headers | {"body": _comparable_body(told.get("content-type", ""), body)}


def facts(comparable: Any, path: str = "") -> Iterator[str]:
    """A line for each leaf; that of a list's entries does not say which entry it is of."""
    match comparable:
        case dict() if comparable:
            for name, value in comparable.items():
                yield from facts(value, f"{path}.{name}" if path else name)
        case list() if comparable:
            for value in comparable:
                yield from facts(value, f"{path}[]")
        case _:
            yield f"{path} = {json.dumps(comparable, ensure_ascii=False)}"


def _in_order(value: str) -> str:
    """Lists in headers may have spaces, and these any order."""
    return ", ".join(sorted(entry.strip() for entry in value.split(",")))


def _comparable_body(content_type: str, body: str) -> Any:
    """None where the body is neither JSON nor a stream of it. A stream is a list of the distinct sequences of events
    that its choices have, repeated events told once."""
    if content_type.startswith("text/event-stream"):
        return _stream([_event(lines) for lines in body.strip().split("\n\n")])
    if content_type.startswith("application/json") and body.startswith("{"):
        return _without_varying(json.loads(body))
    return None


def _without_varying(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_varying(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [entry for entry, _ in groupby(_without_varying(entry, name) for entry in value)]
    return f"<{type(value).__name__}>" if name in VARYING and value is not None else value


def _event(lines: str) -> dict[str, Any]:
    fields = [line.partition(": ") for line in lines.split("\n")]
    return {name or "comment": _FIELDS.get(name, str)(value) for name, _, value in fields}


def _chunk(data: str) -> Any:
    if data == "[DONE]":
        return data
    chunk = json.loads(data)
    if chunk.get("choices") and chunk.get("usage"):
        chunk["usage"] |= dict.fromkeys(SO_FAR, "<so far>")
    return chunk


def _lines(comment: str) -> list[str]:
    """Of a JSON string, which is how comments tell what an event is about."""
    return str(json.loads(comment)).split("\n")


_FIELDS: dict[str, Callable[[str], Any]] = {"data": _chunk, "": _lines}


def _stream(events: list[dict[str, Any]]) -> list[list[Any]]:
    indices = {_choice_index(event) for event in events} - {None} or {None}
    sequences: list[list[Any]] = []
    for index in sorted(indices, key=str):
        of_choice = [_without_varying(event) for event in events if _choice_index(event) in (index, None)]
        sequence = [event for event, _ in groupby(of_choice)]
        if sequence not in sequences:
            sequences.append(sequence)
    return sequences


def _choice_index(event: dict[str, Any]) -> int | None:
    data = event.get("data")
    choices = data.get("choices") if isinstance(data, dict) else None
    return choices[0]["index"] if choices else None
