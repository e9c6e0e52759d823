"""Parsers by the names that model cards give, plug-ins included.

A package adds its own as entry points of the groups `dynamo_frontend.tool_parsers` and
`dynamo_frontend.reasoning_parsers`: each names a factory, `ToolParserFactory` or `ReasoningParserFactory`. A plug-in
goes before a built-in of the same name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from dynamo.frontend.parsers.context import ReasoningParserFactory, ToolParserFactory
from dynamo.frontend.parsers.plug_in import checked
from dynamo.frontend.parsers.reasoning import REASONING_PARSERS
from dynamo.frontend.parsers.tools import TOOL_PARSERS

TOOL_PLUG_INS = "dynamo_frontend.tool_parsers"
REASONING_PLUG_INS = "dynamo_frontend.reasoning_parsers"

# Formats whose markers are special tokens: workers must not leave these out of text. Source: what 1.6.1 sends.
_OF_SPECIAL_TOKENS = frozenset(
    {
        "deepseek_v41",
        "gemma4",
        "gpt_oss",
        "harmony",
        "inkling",
        "kimi_k2",
        "kimi_k25",
        "kimi_k3",
        "minimax_m3",
        "minimax_m3_nom",
        "mistral",
        "muse",
        "muse_glimmer",
    }
)

F = TypeVar("F")


class UnknownParser(Exception):
    """No parser of this name, or a plug-in that cannot be loaded; the message says which."""


@cache
def tool_parser(name: str) -> ToolParserFactory:
    """Raises UnknownParser."""
    return _find("tool-call parser", name, TOOL_PARSERS, TOOL_PLUG_INS)


@cache
def reasoning_parser(name: str) -> ReasoningParserFactory:
    """Raises UnknownParser."""
    return _find("reasoning parser", name, REASONING_PARSERS, REASONING_PLUG_INS)


def reads_special_tokens(name: str) -> bool:
    """Whether the parser of this name needs special tokens to be part of the text."""
    name = name.replace("-", "_")
    return name in _OF_SPECIAL_TOKENS or name == "gemma_4"


def _find(kind: str, name: str, built_in: Mapping[str, F], group: str) -> F:
    plug_ins = {each.name: each for each in entry_points(group=group)}
    if (plug_in := plug_ins.get(name)) is not None:
        factory: F = _load(kind, plug_in)
        return factory
    if name not in built_in:
        raise UnknownParser(f"there is no {kind} {name!r}{_hint(name, [*built_in, *plug_ins])}")
    return built_in[name]


def _load(kind: str, plug_in: Any) -> Any:
    try:
        factory = plug_in.load()
    except Exception as error:  # whatever a package of somebody else raises when it is imported
        raise UnknownParser(f"the {kind} {plug_in.name!r} ({plug_in.value}) cannot be loaded: {error}") from error
    if not callable(factory):
        raise UnknownParser(f"the {kind} {plug_in.name!r} ({plug_in.value}) is not a factory of parsers")
    return checked(factory)


def _hint(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
