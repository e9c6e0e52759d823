"""The text-echo engine, for frontends that leave templates and tokenizers to the worker: it gets the bodies of OpenAI's
API, and its answer is the last message or the prompt, word by word."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.exceptions import InvalidArgument

_WORD = re.compile(r"\s*\S+")


class TextEchoEngine:
    """`generate` is the handler to serve; it waits `delay_s` before each word. A word counts as a token."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s

    async def generate(self, body: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """Chunks. Ends with `length` where max_tokens cuts the text short, else with `stop`."""
        words = _WORD.findall(_text_of(body))
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(words)
        about = {"id": context.id(), "created": int(time.time()), "model": body.get("model")}
        stopped = context.async_killed_or_stopped()
        try:
            for word in words[:limit]:
                if self._delay_s:
                    await asyncio.wait((stopped,), timeout=self._delay_s)
                if context.is_stopped():
                    return
                yield about | _chunk(body, word)
            yield about | _chunk(body, "", "length" if limit < len(words) else "stop") | _usage(body, words, limit)
        finally:
            stopped.cancel()


def _text_of(body: dict[str, Any]) -> str:
    match body:
        case {"messages": [*_, {"content": str(text)}]}:
            return text
        case {"messages": [*_, {"content": list(parts)}]}:
            return " ".join(part["text"] for part in parts if part.get("type") == "text")
        case {"prompt": str(text)}:
            return text
    raise InvalidArgument("neither a last message nor a prompt in words")


def _chunk(body: dict[str, Any], text: str, finish_reason: str | None = None) -> dict[str, Any]:
    is_chat = "messages" in body
    news: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text, "logprobs": None}
    return {
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "choices": [{"index": 0, **news, "finish_reason": finish_reason}],
    }


def _usage(body: dict[str, Any], words: list[str], limit: int) -> dict[str, Any]:
    num_prompt = sum(len(_WORD.findall(str(message.get("content")))) for message in body.get("messages", ()))
    num_prompt, num_output = num_prompt or len(words), min(limit, len(words))
    counts = {"prompt_tokens": num_prompt, "completion_tokens": num_output, "total_tokens": num_prompt + num_output}
    return {"usage": counts}
