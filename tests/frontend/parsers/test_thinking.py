"""What a request says of thinking, as the real Dynamo takes it."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo.frontend.parsers.thinking import wants_thinking

SAID: list[tuple[dict[str, Any], bool | None]] = [
    ({}, None),
    ({"thinking": True}, True),
    ({"thinking": False}, False),
    ({"thinking": {"type": "enabled"}}, True),
    ({"thinking": {"type": "disabled"}}, False),
    ({"thinking": {"type": "adaptive"}}, None),
    ({"thinking": {"type": "adaptive"}, "reasoning_effort": "none"}, None),
    ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, False),
    ({"thinking": {"type": "enabled"}, "template_kwargs": {"enable_thinking": False}}, True),
    ({"thinking": {"budget": 5}}, None),
    ({"thinking": {"type": ["enabled"]}}, None),
    ({"thinking": 5}, None),
    ({"reasoning_effort": "none"}, False),
    ({"reasoning_effort": "minimal"}, True),
    ({"reasoning_effort": "high"}, True),
    ({"template_kwargs": {"thinking": True}}, True),
    ({"template_kwargs": {"thinking": False, "enable_thinking": True}}, False),
    ({"template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
    ({"template_kwargs": {"enable_thinking": "False"}}, False),
    ({"template_kwargs": {"enable_thinking": 0}}, False),
    ({"template_kwargs": {"enable_thinking": None}}, None),
    ({"template_kwargs": {"thinking_mode": "disabled"}}, False),
    ({"template_kwargs": {"thinking_mode": "chat"}}, False),
    ({"template_kwargs": {"reasoning_effort": "none"}}, False),
    ({"template_kwargs": {"temperature": 1}}, None),
]


@pytest.mark.parametrize(("request_fields", "wanted"), SAID, ids=str)
def test_a_request_says_whether_to_think(request_fields: dict[str, Any], wanted: bool | None) -> None:
    assert wants_thinking(**request_fields) is wanted
