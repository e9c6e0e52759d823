from __future__ import annotations

import pytest

from dynamo.frontend.parsers.parts import CallArguments, CallStart
from dynamo.frontend.parsers.tools.gemma4 import Gemma4Parser
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS


def call(function: str, arguments: str = "") -> str:
    """Strings in `arguments` are in plain quotes."""
    return f"<|tool_call>call:{function}{{{quoted(arguments)}}}<tool_call|>"


def quoted(text: str) -> str:
    return text.replace('"', '<|"|>')


GOLDENS = [
    golden("no call", "a <|tool <tool_call|> call:x{} <|tool_call>x", "a <|tool <tool_call|> call:x{} x"),
    golden(
        "content and calls",
        "Look.\n" + call("get_weather", 'city:"Paris",days:3') + "\n" + call("ping") + " B",
        "Look.\n B",
        Call("get_weather", {"city": "Paris", "days": 3}),
        Call("ping", {}),
    ),
    golden(
        "values in values",
        call("run", 'options:{a:-1,b:[true,null,"x",[],{}],c:{},d:[1.5e3,[2]]}'),
        "",
        Call("run", '{"options": {"a": -1, "b": [true, null, "x", [], {}], "c": {}, "d": [1.5e3, [2]]}}'),
    ),
    golden(
        "space",
        call("get_weather", ' city : "Paris" , days : 3 '),
        "",
        Call("get_weather", {"city": "Paris", "days": 3}),
    ),
    golden(
        "text is kept",
        call("run", 'code:" a } , : é \\\n<tool_call|><|"'),
        "",
        Call("run", {"code": " a } , : é \\\n<tool_call|><|"}),
    ),
    golden(
        "bare words",
        call("search", "a:abc,b:True,c:none,d:,e:x y,f:[,a,]"),
        "",
        Call("search", {"a": "abc", "b": True, "c": None, "d": "", "e": "x y", "f": ["a"]}),
    ),
    golden(
        "quoted keys",
        call("search", '"query":"x"').replace("{", '{"limit":3,'),
        "",
        Call("search", {"limit": 3, "query": "x"}),
    ),
    golden("no key", call("search", '"x",:3,limit:3,y'), "", Call("search", {"limit": 3})),
    golden(
        "missing brackets", call("run", 'options:{a:[1,{b:"x"'), "", Call("run", {"options": {"a": [1, {"b": "x"}]}})
    ),
    golden("an object ends an array", call("search", "tags:[1,2"), "", Call("search", {"tags": [1, 2]})),
    golden(
        "brackets too many", call("search", "limit:3],exact:true}"), "}", Call("search", {"limit": 3, "exact": True})
    ),
    golden("text after a value", call("search", 'query:"x"y,limit:3'), "", Call("search", {"query": "x", "limit": 3})),
    golden("no name", "<|tool_call>call: ping{}<tool_call|>", "call: ping{}"),
    golden("no arguments", "<|tool_call>call:ping<tool_call|>", "call:ping"),
    golden("a name without an end", "<|tool_call>call:" + "x" * 600, "call:" + "x" * 600),
    golden("the end in a name", "A <|tool_call>call:get", "A "),
    golden("the end in a key", quoted('<|tool_call>call:search{query:"x",li'), "", Call("search", '{"query": "x"')),
    golden("the end after a key", "<|tool_call>call:search{query:", "", Call("search", '{"query": ')),
    golden(
        "the end in a string",
        quoted('<|tool_call>call:run{options:{a:["x<|'),
        "",
        Call("run", '{"options": {"a": ["x'),
    ),
    golden("the end in a number", "<|tool_call>call:search{limit:12", "", Call("search", '{"limit": ')),
    golden(
        "the end before the last bracket",
        quoted('<|tool_call>call:search{query:"x"'),
        "",
        Call("search", '{"query": "x"'),
    ),
    golden("the end after the last bracket", "<|tool_call>call:ping{}", "", Call("ping", {})),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: Gemma4Parser(FUNCTIONS), case)


def test_strings_come_as_they_are_written() -> None:
    parser = Gemma4Parser(FUNCTIONS)
    pieces = ["<|tool_call>", "call:run{", "code:", '<|"|>', "a\n", "b<", '|"|>', "}<tool_call|>"]
    assert [parser.push(piece) for piece in pieces] == [
        [],
        [CallStart("run")],
        [CallArguments('{"code": ')],
        [CallArguments('"')],
        [CallArguments("a\\n")],
        [CallArguments("b")],
        [CallArguments('"')],
        [CallArguments("}")],
    ]
