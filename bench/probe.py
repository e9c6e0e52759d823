"""Whether a frontend says exactly what the worker said: the load generator itself only counts."""

from __future__ import annotations

import json
import re
from typing import Any

from bench.cases import Case
from bench.load import Client, WrongAnswer, check
from bench.prompts import Bodies, Prompts

CHUNK = re.compile(rb"\r\n[0-9A-Fa-f]+\r\n(.*?)(?=\r\n[0-9A-Fa-f]+\r\n)", re.DOTALL)
EVENT = re.compile(r"^data: (\{.*\})$", re.MULTILINE)


async def check_text(client: Client, prompts: Prompts, mode: str, expected: str) -> None:
    """`expected` is one word per token, as the worker replays them; asked for streamed and whole."""
    for is_streamed in (True, False):
        case = Case(name="probe", mode=mode, tokens_in=200, tokens_out=expected.count(" "), is_streamed=is_streamed)
        answer = await client.ask(next(Bodies(prompts, case)))
        check(answer, case.tokens_out)
        text = _streamed_text(_body(answer)) if is_streamed else _whole_text(_body(answer))
        if text != expected:
            raise WrongAnswer(f"expected the text {expected!r}, got {text!r}")


def _body(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    is_chunked = re.search(rb"transfer-encoding: *chunked", head, re.IGNORECASE)
    return (b"".join(CHUNK.findall(b"\r\n" + body)) if is_chunked else body).decode()


def _streamed_text(body: str) -> str:
    events: list[dict[str, Any]] = [json.loads(event) for event in EVENT.findall(body)]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def _whole_text(body: str) -> str:
    text: str = json.loads(body)["choices"][0]["message"]["content"]
    return text
