from __future__ import annotations

import pytest

from dynamo.frontend.parsers.tools.glm import glm
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS


def call(function: str, between: str = "", **parameters: str) -> str:
    written = "".join(
        f"<arg_key>{key}</arg_key>{between}<arg_value>{value}</arg_value>{between}" for key, value in parameters.items()
    )
    return f"<tool_call>{function}{between}{written}</tool_call>"


GOLDENS = [
    golden("no call", "a <tool </tool_call> <arg_key>", "a <tool </tool_call> <arg_key>"),
    golden(
        "line by line",
        "Let me look.\n" + call("get_weather", "\n", city="Paris", days="3") + "\n" + call("ping", "\n"),
        "Let me look.\n",
        Call("get_weather", {"city": "Paris", "days": 3}),
        Call("ping", {}),
    ),
    golden(
        "on one line",
        f"A {call('get_weather', city='Zürich')} B {call('ping')}",
        "A  B ",
        Call("get_weather", {"city": "Zürich"}),
        Call("ping", {}),
    ),
    golden(
        "types",
        call("search", query="12", limit="3", exact="True", tags='["a"]', score="1.5"),
        "",
        Call("search", {"query": "12", "limit": 3, "exact": True, "tags": ["a"], "score": 1.5}),
    ),
    golden(
        "unknown parameters",
        call("nowhere", a="12", b="[1]", c="true", d=" x "),
        "",
        Call("nowhere", {"a": "12", "b": [1], "c": "true", "d": " x "}),
    ),
    golden(
        "null is a string's text",
        call("run", code="null", options="null"),
        "",
        Call("run", {"code": "null", "options": None}),
    ),
    golden("text is kept", call("run", code="  a:\n\t&lt;\n\n"), "", Call("run", {"code": "  a:\n\t&lt;\n\n"})),
    golden(
        "markers in values",
        call("run", code="<tool_call> <arg_key> </arg_key> </arg"),
        "",
        Call("run", {"code": "<tool_call> <arg_key> </arg_key> </arg"}),
    ),
    golden(
        "a value without an end",
        "<tool_call>run<arg_key>code</arg_key><arg_value>x</tool_call> B",
        " B",
        Call("run", {"code": "x"}),
    ),
    golden("a key without a value", "<tool_call>ping<arg_key>a</arg_key></tool_call> B", " B", Call("ping", {})),
    golden(
        "no name",
        "<tool_call></tool_call> <tool_call>two words</tool_call> <tool_call><b></tool_call>",
        " two words <b>",
    ),
    golden("a name without an end", "A <tool_call>" + "x" * 600, "A " + "x" * 600),
    golden("the end in a name", "A <tool_call>get_we", "A "),
    golden(
        "the end in a value", "<tool_call>run<arg_key>code</arg_key>\n<arg_value>x</a", "", Call("run", '{"code": "x')
    ),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: glm(FUNCTIONS), case)
