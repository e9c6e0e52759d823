from __future__ import annotations

import pytest

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.parts import Parser
from dynamo.frontend.parsers.reasoning import REASONING_PARSERS
from dynamo.frontend.parsers.tools.inkling import Inkling
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS

CALL, END = "<|content_invoke_tool_json|>", "<|end_message|>"


def call(function: str, arguments: str = "{}") -> str:
    return f'<|message_model|>{function}{CALL}{{"name": "{function}", "args": {arguments}}}{END}'


GOLDENS = [
    golden("no call", "a <|b|> <|message", "a <|b|> <|message"),
    golden(
        "messages and calls",
        f"<|message_model|><|content_text|>Look.{END}"
        + call("get_weather", '{"city": "Paris"}')
        + call("ping")
        + "<|content_model_end_sampling|>",
        "Look.",
        Call("get_weather", {"city": "Paris"}),
        Call("ping", {}),
    ),
    golden(
        "thought",
        f"<|content_thinking|>Hm <|b{END}<|message_model|><|content_text|>Yes{END}",
        "Yes",
        reasoning="Hm <|b",
    ),
    golden("arguments before the name", f'{CALL} {{"args": {{"a": 1}}, "name": "ping"}}', "", Call("ping", {"a": 1})),
    golden("no arguments", f'{CALL}{{"name": "ping"}}{END}', "", Call("ping", {})),
    golden("markers in strings", call("run", f'{{"code": "{END}"}}'), "", Call("run", {"code": END})),
    golden("text after a call", f"{call('ping')} B", " B", Call("ping", {})),
    golden("no JSON", f"A {CALL}hello{END} B", "A hello B"),
    golden("the end in a header", "A <|message_model|>get_we", "A "),
    golden("the end in a string", f'{CALL}{{"name": "run", "args": {{"code": "x', "", Call("run", '{"code": "x')),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: Inkling(FUNCTIONS), case)


@pytest.mark.parametrize(
    ("prompt_end", "text"),
    [
        ("", f"<|content_thinking|>Hm{END}<|message_model|><|content_text|>Yes{END}{call('ping')}"),
        ("<|message_model|>", f"<|content_thinking|>Hm{END}<|content_text|>Yes{END}{call('ping')}"),
        ("<|message_model|>", call("ping").removeprefix("<|message_model|>")),
    ],
)
def test_headers_are_left_out_before_calls_are_read(prompt_end: str, text: str) -> None:
    def reasoning() -> Parser:
        return REASONING_PARSERS["inkling"](ReasoningContext(prompt_end))

    passed_on = f'{CALL}{{"name": "ping", "args": {{}}}}{END}'
    said = ("Yes", "Hm") if "Yes" in text else ("", "")
    check_golden(reasoning, golden("", text, said[0] + passed_on, reasoning=said[1]))
