"""Whether a request asks the model to think."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SWITCHES = ("thinking", "enable_thinking", "thinking_mode")
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


def wants_thinking(template_args: Mapping[str, Any]) -> bool | None:
    """None where it is left to the model. `template_args` are the variables of the chat template, among which is all
    that a request says of thinking: switches by any name, then whether it allows any effort. Other values say nothing.
    """
    if template_args.get("thinking_mode") == "adaptive":
        return None
    for switch in _SWITCHES:
        if (said := _meaning(template_args.get(switch))) is not None:
            return said
    effort = template_args.get("reasoning_effort")
    return None if effort is None else effort != "none"


def _meaning(value: object) -> bool | None:
    if isinstance(value, str):
        value = value.lower()
    return _WORDS.get(value) if isinstance(value, str | int) else None
