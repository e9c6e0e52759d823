from __future__ import annotations

import pytest

from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part
from dynamo.frontend.parsers.tools.qwen3_coder import qwen3_coder
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS


def block(function: str, **parameters: str) -> str:
    return f"<tool_call>\n{call(function, **parameters)}\n</tool_call>"


def call(function: str, **parameters: str) -> str:
    written = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<function={function}>\n{written}</function>"


GOLDENS = [
    golden("no call", "a < b, <tool and </tool_call>\n", "a < b, <tool and </tool_call>\n"),
    golden(
        "content before",
        "Let me look.\n" + block("get_weather", city="Paris", days="3"),
        "Let me look.\n",
        Call("get_weather", {"city": "Paris", "days": 3}),
    ),
    golden(
        "several calls and content between",
        f"A {block('ping')}\n{block('get_weather', city='東京 🗼')} B {block('ping')}\n",
        "A  B ",
        Call("ping", {}),
        Call("get_weather", {"city": "東京 🗼"}),
        Call("ping", {}),
    ),
    golden(
        "several calls in a block",
        f"<tool_call>{call('ping')}{call('ping')}</tool_call>",
        "",
        Call("ping", "{}"),
        Call("ping", "{}"),
    ),
    golden("no block", f"A {call('ping')} B", "A  B", Call("ping", {})),
    golden("blocks begun twice", f"<tool_call><tool_call>{call('ping')}</tool_call>", "", Call("ping", {})),
    golden("quoted name", '<function="ping"></function>', "", Call("ping", {})),
    golden(
        "types",
        block("search", query="12", limit="-3", exact="True", tags='["a", 1]', score="1.50"),
        "",
        Call("search", '{"query": "12", "limit": -3, "exact": true, "tags": ["a", 1], "score": 1.50}'),
    ),
    golden(
        "values of other types stay strings",
        block("search", limit="three", exact="yes", tags="a, b", score=".5e"),
        "",
        Call("search", {"limit": "three", "exact": "yes", "tags": "a, b", "score": ".5e"}),
    ),
    golden(
        "Python's literals",
        block("run", options="{'a': True, 'b': None}"),
        "",
        Call("run", {"options": {"a": True, "b": None}}),
    ),
    golden("null", block("run", code="null", options="NULL"), "", Call("run", {"code": None, "options": None})),
    golden("nearly null", block("run", code="nullable"), "", Call("run", {"code": "nullable"})),
    golden("unions", block("either", value="7", note="7"), "", Call("either", {"value": 7, "note": "7"})),
    golden("unknown parameters", block("ping", a="12", b="[1]"), "", Call("ping", {"a": "12", "b": "[1]"})),
    golden("unknown function", block("nowhere", a="12"), "", Call("nowhere", {"a": "12"})),
    golden(
        "white space and entities are kept",
        block("run", code='\n  if a:\n\treturn "\\&lt;"\n\n'),
        "",
        Call("run", {"code": '\n  if a:\n\treturn "\\&lt;"\n\n'}),
    ),
    golden("on one line", "<function=run><parameter=code> x </parameter></function>", "", Call("run", {"code": " x "})),
    golden("empty value", block("run", code=""), "", Call("run", {"code": ""})),
    golden(
        "markers in values",
        block("run", code="<tool_call> <function=x> <parameter=y> </param </tool_call>"),
        "",
        Call("run", {"code": "<tool_call> <function=x> <parameter=y> </param </tool_call>"}),
    ),
    golden("a value without an end", "<function=run><parameter=code>x</function>y", "y", Call("run", {"code": "x"})),
    golden("a call without an end", "<tool_call><function=ping></tool_call> B", " B", Call("ping", {})),
    golden("a call in a call", f"<tool_call><function=ping>{block('ping')}", "", Call("ping", {}), Call("ping", {})),
    golden(
        "text in a call", "<function=run> a <parameter=code>x</parameter> b </function>", "", Call("run", {"code": "x"})
    ),
    golden("text in a block", f"<tool_call>{call('ping')} a </tool_call> b", " a  b", Call("ping", {})),
    golden("no call in a block", "A <tool_call> hello</tool_call> B", "A  hello B"),
    golden("a call without a name", "<tool_call><function=>\n</function>", "<function=>\n"),
    golden("a tag without an end", "<function=" + "x" * 2000, "<function=" + "x" * 2000),
    golden("the end after a block begins", "A <tool_call>\n<fun", "A "),
    golden("the end in a name", "A <tool_call>\n<function=get_we", "A "),
    golden("the end in a call", "<function=ping>\n", "", Call("ping", {})),
    golden("the end in a parameter's name", "<function=run><parameter=co", "", Call("run", "")),
    golden("the end in a string", "<function=run><parameter=code>\na\nb\n</para", "", Call("run", '{"code": "a\\nb')),
    golden("the end in a number", "<function=get_weather><parameter=days>\n1", "", Call("get_weather", '{"days": ')),
    golden("the end after a value", call("run", code="x")[:-4], "", Call("run", {"code": "x"})),
    golden("the end after a call", f"<tool_call>\n{call('ping')}\n", "", Call("ping", {})),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: qwen3_coder(FUNCTIONS), case)


def test_arguments_come_as_they_are_written() -> None:
    parser = qwen3_coder(FUNCTIONS)
    pieces = [
        "Hi ",
        "<tool",
        "_call>\n<function=get_weather",
        ">",
        "\n<parameter=city>\n",
        "Pa",
        "ris\n",
        "</",
        "parameter>",
    ]
    assert [parser.push(piece) for piece in pieces] == [
        ["Hi "],
        [],
        [],
        [CallStart("get_weather")],
        [CallArguments('{"city": ')],
        [CallArguments('"Pa')],
        [CallArguments("ris")],
        [],
        [CallArguments('"')],
    ]
    numbers: list[Part] = parser.push("<parameter=days>3")
    assert numbers == [CallArguments(', "days": ')]
    assert parser.push("0</parameter></function>") == [CallArguments("30"), CallArguments("}")]
