from __future__ import annotations

import pytest

from dynamo.frontend.parsers.tools.minimax_m2 import minimax_m2
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS


def block(*calls: str) -> str:
    return "<minimax:tool_call>\n" + "\n".join(calls) + "\n</minimax:tool_call>"


def call(function: str, **parameters: str) -> str:
    written = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in parameters.items())
    return f'<invoke name="{function}">\n{written}</invoke>'


GOLDENS = [
    golden("no call", "a <minimax and </invoke> <invoked>", "a <minimax and </invoke> <invoked>"),
    golden(
        "content and calls",
        f"Let me look.\n{block(call('get_weather', city='Paris', days='3'), call('ping'))} B",
        "Let me look.\n B",
        Call("get_weather", {"city": "Paris", "days": 3}),
        Call("ping", {}),
    ),
    golden("blocks", f"{block(call('ping'))}\n{block(call('ping'))}", "", Call("ping", {}), Call("ping", {})),
    golden("no block", f"A {call('ping')} B", "A  B", Call("ping", {})),
    golden(
        "other quotes",
        "<invoke name='ping'></invoke><invoke  name = ping></invoke>",
        "",
        Call("ping", {}),
        Call("ping", {}),
    ),
    golden("no name", '<invoke name=""></invoke>', '<invoke name=""></invoke>'),
    golden(
        "types",
        block(call("search", query="12", limit="3", exact="TRUE", tags='["a"]', score="1e3", other="[1]")),
        "",
        Call("search", {"query": "12", "limit": 3, "exact": True, "tags": ["a"], "score": 1000.0, "other": "[1]"}),
    ),
    golden("null", block(call("run", code="null", options="null")), "", Call("run", {"code": None, "options": None})),
    golden("text is kept", block(call("run", code="  é </p> &lt; \n")), "", Call("run", {"code": "  é </p> &lt; "})),
    golden("a parameter without a name", "<invoke name=ping><parameter>x</parameter></invoke>", "", Call("ping", {})),
    golden("the end in a value", '<invoke name="run"><parameter name="code">x</par', "", Call("run", '{"code": "x')),
    golden("the end in a name", 'A <minimax:tool_call>\n<invoke name="pi', "A "),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: minimax_m2(FUNCTIONS), case)
