"""What a request says of thinking, as the real Dynamo takes it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.parsers.thinking import wants_thinking

ENABLED, DISABLED, ADAPTIVE = ({"type": name} for name in ("enabled", "disabled", "adaptive"))


def arguments(**values: Any) -> dict[str, Any]:
    return {"chat_template_kwargs": values}


SAID: list[tuple[dict[str, Any], bool | None]] = [
    ({}, None),
    ({"thinking": True}, True),
    ({"thinking": False}, False),
    ({"thinking": ENABLED}, True),
    ({"thinking": DISABLED}, False),
    ({"thinking": ADAPTIVE}, None),
    ({"thinking": ADAPTIVE, "reasoning_effort": "none"}, None),
    ({"thinking": DISABLED, "reasoning_effort": "high"}, False),
    ({"thinking": ENABLED, "reasoning_effort": "none"}, True),
    ({"thinking": ENABLED, **arguments(thinking=False)}, True),
    ({"thinking": DISABLED, **arguments(enable_thinking=True)}, False),
    ({"reasoning_effort": "none"}, False),
    ({"reasoning_effort": "minimal"}, True),
    ({"reasoning_effort": "high"}, True),
    ({"reasoning_effort": "high", **arguments(enable_thinking=False)}, False),
    ({"reasoning_effort": "none", **arguments(enable_thinking=True)}, True),
    (arguments(thinking=True), True),
    (arguments(thinking=False, enable_thinking=True), False),
    (arguments(thinking=True, enable_thinking=False), True),
    (arguments(enable_thinking="False"), False),
    (arguments(enable_thinking=0), False),
    (arguments(enable_thinking=None), None),
    (arguments(enable_thinking=["no"]), None),
    (arguments(thinking="disabled"), False),
    (arguments(thinking_mode="disabled"), False),
    (arguments(thinking_mode="chat"), False),
    (arguments(reasoning_effort="none"), False),
    (arguments(style="brief"), None),
]


@pytest.mark.parametrize(("fields", "wanted"), SAID, ids=str)
def test_a_request_says_whether_to_think(fields: dict[str, Any], wanted: bool | None) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields}
    request = msgspec.convert(body, ChatCompletionRequest)
    assert wants_thinking(request.template_args) is wanted
