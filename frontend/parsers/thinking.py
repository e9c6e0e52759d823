"""Whether a request asks the model to think."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS: Mapping[object, bool] = {
    "enabled": True,
    "thinking": True,
    "true": True,
    "disabled": False,
    "chat": False,
    "false": False,
    True: True,
    False: False,
}
_TEMPLATE_SWITCHES = ("thinking", "enable_thinking", "thinking_mode")


def wants_thinking(
    thinking: object = None, reasoning_effort: str | None = None, template_kwargs: Mapping[str, Any] | None = None
) -> bool | None:
    """None where the request leaves it to the model. The field `thinking` counts first (a bool, or an object with a
    `type`), then what is said to the template, then whether any effort is allowed. Values of other types say
    nothing."""
    kind = thinking.get("type") if isinstance(thinking, Mapping) else thinking
    if kind == "adaptive":
        return None
    said = _meaning(kind)
    if template_kwargs:
        for switch in _TEMPLATE_SWITCHES:
            if said is None:
                said = _meaning(template_kwargs.get(switch))
        reasoning_effort = reasoning_effort or template_kwargs.get("reasoning_effort")
    if said is None and reasoning_effort is not None:
        return reasoning_effort != "none"
    return said


def _meaning(value: object) -> bool | None:
    if isinstance(value, str):
        value = value.lower()
    return _WORDS.get(value) if isinstance(value, str | int) else None
