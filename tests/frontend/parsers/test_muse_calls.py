from __future__ import annotations

import pytest

from dynamo.frontend.parsers.tools.muse import MuseCalls
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS

TO_TOOLS = " to=functions<|message|>"


def block(*calls: str) -> str:
    return "<atem:function_calls>\n" + "\n".join(calls) + "\n</atem:function_calls>"


def call(function: str, **parameters: str) -> str:
    written = "".join(f'<atem:parameter name="{key}">{value}</atem:parameter>\n' for key, value in parameters.items())
    return f'<atem:invoke name="{function}">\n{written}</atem:invoke>'


GOLDENS = [
    golden("no call", "a <atem:b> </atem:invoke>", "a <atem:b> </atem:invoke>"),
    golden(
        "messages",
        "to=self<|message|>Hm<|eom|><|start|>assistant to=user<|message|>Look.<|eom|><|start|>assistant"
        + TO_TOOLS
        + block(call("get_weather", city="Paris", days="3"), call("ping"))
        + "<|eot|>",
        "Look.",
        Call("get_weather", {"city": "Paris", "days": 3}),
        Call("ping", {}),
        reasoning="Hm",
    ),
    golden("no messages", f"Look.\n{block(call('ping'))}", "Look.\n", Call("ping", {})),
    golden(
        "types",
        TO_TOOLS + block(call("search", query="12", limit="3", exact="true", tags='["a"]', other="null", text="x")),
        "",
        Call("search", {"query": "12", "limit": 3, "exact": True, "tags": ["a"], "other": None, "text": "x"}),
    ),
    golden("quotes", call("run", code='"a\\nb"', options='"'), "", Call("run", {"code": "a\nb", "options": '"'})),
    golden("one quote", call("run", code='"a" and "b"'), "", Call("run", {"code": '"a" and "b"'})),
    golden("text is kept", call("run", code=" é &lt;\n"), "", Call("run", {"code": " é &lt;\n"})),
    golden("no text", call("run", code=""), "", Call("run", {"code": ""})),
    golden("doubled names", call("ping.ping") + call("a.ping"), "", Call("ping", {}), Call("a.ping", {})),
    golden("the end in a value", TO_TOOLS + call("run", code="x")[:-20], "", Call("run", '{"code": "x')),
    golden("the end in a header", "Look.<|eom|><|start|>assistant to=fun", "Look."),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: MuseCalls(FUNCTIONS), case)
