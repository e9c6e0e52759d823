"""`tool_choice` of type allowed_tools offers the model fewer functions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dynamo.frontend.openai import decode_chat
from dynamo.shared.errors import InvalidRequest


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def body_with(allowed: Any) -> bytes:
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps(
        {"model": "m", "messages": messages, "tools": [named("a"), named("b")], "tool_choice": choice}
    ).encode()


@pytest.mark.parametrize(("mode", "choice"), [("auto", "auto"), ("required", "required"), (None, "auto")])
def test_only_allowed_tools_are_offered(mode: str | None, choice: str) -> None:
    request = decode_chat(body_with({"tools": [named("b")]} | ({"mode": mode} if mode else {})))
    assert (request.tools, request.tool_choice) == ([named("b")], choice)


@pytest.mark.parametrize(
    ("allowed", "param"),
    [
        (None, "tool_choice.allowed_tools"),
        ({"tools": "b"}, "tool_choice.allowed_tools"),
        ({"mode": ["auto"], "tools": [named("b")]}, "tool_choice.allowed_tools.mode"),
        ({"tools": [named("c"), 5, {"function": {"name": {}}}]}, "tool_choice.allowed_tools.tools"),
    ],
)
def test_what_allows_nothing_is_refused(allowed: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_chat(body_with(allowed))
    assert refused.value.param == param
