"""Tool calls in JSON and Python, read by the real frontend and by ours: what is well formed means the same to both, and
where they differ is what the parsers say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.registry import tool_parser
from tests.frontend.parsers import test_json_calls, test_kimi_k3, test_named_calls, test_pythonic
from tests.frontend.parsers.golden import Call, Golden, Message, parse
from tests.interop.parser_oracle import TOOLS, Case, ParserOracle

COMMON_TO_JSON = [
    "one call",
    "two calls",
    "text before",
    "space before",
    "text after",
    "text between",
    "parameters",
    "arguments first",
    "a name that was not offered",
    "nested, escapes and unicode",
]
GOLDENS: dict[str, list[Golden]] = {
    **{family: test_json_calls.calls_of(wrap) for family, wrap in test_json_calls.FAMILIES.items()},
    "deepseek_v3": test_named_calls.DEEPSEEK,
    "deepseek_v3_1": test_named_calls.DEEPSEEK,
    "kimi_k2": test_named_calls.KIMI,
    "kimi_k25": test_named_calls.KIMI,
    "kimi_k3": test_kimi_k3.GOLDENS,
    "kimi-k3": test_kimi_k3.GOLDENS,
    "pythonic": test_pythonic.GOLDENS,
}
K3_NAMES = ["one call", "a whole answer", "a section without end", "space in tags", "all as JSON", "escapes", "kinds"]
SAME = {
    "hermes": COMMON_TO_JSON,
    "qwen25": COMMON_TO_JSON,
    "jamba": COMMON_TO_JSON,
    "nemotron_deci": COMMON_TO_JSON,
    "phi4": COMMON_TO_JSON,
    "llama3_json": COMMON_TO_JSON,
    "mistral": COMMON_TO_JSON,
    "deepseek_v3": ["one of V3"],
    "deepseek_v3_1": ["one of V3.1", "a section without end", "a function of that name"],
    "kimi_k2": ["one", "two", "the other section", "no section", "space", "odd arguments"],
    "kimi_k3": K3_NAMES,
    "kimi-k3": K3_NAMES,
    "pythonic": ["one call", "two calls", "text around", "two lists", "a list", "not in a list", "nothing"],
}
PING = '{"name": "ping", "arguments": {}}'
KIMI_PING = test_named_calls.kimi("functions.ping:0", "{}")
UNFINISHED = test_named_calls.section(test_named_calls.v3_1("ping", "{}")).partition("{}")[0] + "{}"
DIFFERENT = {
    ("hermes", f"Such as {PING}"): ("Such as", [("ping", {})]),
    ("hermes", '<tool_call>{"name": "run", "arguments": {"a": 1'): ("", [("run", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "ping", "arguments": null}</tool_call>'): ("", [("ping", None)]),
    ("hermes", '<tool_call>{"name": "ping", "arguments": "{}"}</tool_call>'): ("", [("ping", "{}")]),
    ("hermes", '<tool_call>{"name": "run", "arguments": {"a": "\n"}}</tool_call>'): ("", []),
    ("hermes", '<tool_call>{"a": 1}</tool_call>'): ("", []),
    ("hermes", '<tool_call>{"name": "run", "arguments": {"a": "</tool_call>"}}</tool_call>'): ('"}}</tool_call>', []),
    ("jamba", '<tool_calls>[{"name": "ping"}]</tool_calls>'): ("", []),
    ("default", f"<tool_call>{PING}</tool_call>"): ("<tool_call></tool_call>", [("ping", {})]),
    ("mistral", "[TOOL_CALLS]ping[ARGS]{}"): ("", []),
    ("qwen3", f"<tool_call>{PING}</tool_call>"): (f"<tool_call>{PING}</tool_call>", []),
    ("kimi_k25", KIMI_PING): (KIMI_PING, []),
    ("deepseek_v3_1", UNFINISHED): ("", []),
    ("kimi_k2", test_named_calls.kimi("ping", "{}")): ("", []),
    ("kimi_k3", test_kimi_k3.tag('call tool="ping"')): ("", []),
    ("pythonic", "[run(a=-1, b=c, d=2)]"): ("", [("run", {"d": 2})]),
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[ParserOracle]:
    with ParserOracle((family, None) for family in GOLDENS) as oracle:
        yield oracle


@pytest.mark.parametrize("family", SAME)
def test_what_is_well_formed_means_the_same(oracle: ParserOracle, family: str) -> None:
    for case in GOLDENS[family]:
        if case.name in SAME[family]:
            assert said_by_real(oracle, family, case.text) == said_by_ours(family, case.text), case.name


@pytest.mark.parametrize(("family", "text"), DIFFERENT)
def test_differences(oracle: ParserOracle, family: str, text: str) -> None:
    real = said_by_real(oracle, family, text)
    assert real == DIFFERENT[family, text]
    assert real != said_by_ours(family, text)


def said_by_real(oracle: ParserOracle, family: str, text: str) -> tuple[str, list[tuple[str, Any]]]:
    answer = oracle.ask(Case(text, family))
    assert answer.unary is not None
    calls = [Call(name, arguments) for name, arguments in answer.unary.calls]
    return _comparable(Message(answer.unary.content, calls=calls))


def said_by_ours(family: str, text: str) -> tuple[str, list[tuple[str, Any]]]:
    return _comparable(parse(tool_parser(family)(Functions(TOOLS)), [text]))


def _comparable(message: Message) -> tuple[str, list[tuple[str, Any]]]:
    """Any space in content is the same, since theirs depends on how the text is cut."""
    return " ".join(message.content.split()), [(call.name, _value(call.arguments)) for call in message.calls]


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
