from __future__ import annotations

import pytest

from dynamo.frontend.parsers.tools import TOOL_PARSERS
from dynamo.frontend.parsers.tools.dsml import DSML, deepseek_v4
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS

TEXT, VALUE = ' string="true"', ' string="false"'


def block(*calls: str) -> str:
    return f"<{DSML}tool_calls>\n" + "\n".join(calls) + f"\n</{DSML}tool_calls>"


def call(function: str, *parameters: tuple[str, str, str]) -> str:
    written = "".join(
        f'<{DSML}parameter name="{key}"{kind}>{value}</{DSML}parameter>\n' for key, value, kind in parameters
    )
    return f'<{DSML}invoke name="{function}">\n{written}</{DSML}invoke>'


GOLDENS = [
    golden("no call", f"a\n\n<b> </{DSML}invoke> \n\n", f"a\n\n<b> </{DSML}invoke> \n\n"),
    golden(
        "content and calls",
        "Let me look.\n\n"
        + block(call("get_weather", ("city", "Paris", TEXT), ("days", "3", VALUE)), call("ping"))
        + "B",
        "Let me look.B",
        Call("get_weather", {"city": "Paris", "days": 3}),
        Call("ping", {}),
    ),
    golden("no block", f"A {call('ping')} B", "A  B", Call("ping", {})),
    golden(
        "the model's types go before those of the schema",
        block(call("search", ("limit", "3", TEXT), ("query", '["a", null]', VALUE), ("exact", "oops", VALUE))),
        "",
        Call("search", {"limit": "3", "query": ["a", None], "exact": "oops"}),
    ),
    golden(
        "no types",
        block(call("search", ("limit", "3", ""), ("query", "3", ""), ("other", "[1]", ""))),
        "",
        Call("search", {"limit": 3, "query": "3", "other": [1]}),
    ),
    golden(
        "text is kept", block(call("run", ("code", " null &lt;\n", TEXT))), "", Call("run", {"code": " null &lt;\n"})
    ),
    golden(
        "null",
        block(call("run", ("code", "null", TEXT), ("options", "null", VALUE))),
        "",
        Call("run", {"code": "null", "options": None}),
    ),
    golden(
        "one object",
        f'<{DSML}invoke name="run">\n{{"code": "x", "options": {{}}}}\n</{DSML}invoke>',
        "",
        Call("run", '{"code": "x", "options": {}}'),
    ),
    golden("a broken object", f'<{DSML}invoke name="run">\n{{"code": \n</{DSML}invoke>', "", Call("run", {})),
    golden("no call in a block", f"<{DSML}tool_calls>x</{DSML}tool_calls>", "x"),
    golden("the end in a name", f'A\n\n<{DSML}tool_calls>\n<{DSML}invoke name="pi', "A"),
    golden("the end in a value", call("run", ("code", "x", TEXT))[:-30], "", Call("run", '{"code": "x')),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: deepseek_v4(FUNCTIONS), case)


@pytest.mark.parametrize(
    ("names", "block_name", "space"),
    [
        (["deepseek_v3_2"], "function_calls", ""),
        (["deepseek_v4", "deepseek-v4", "deepseekv4"], "tool_calls", ""),
        (["deepseek_v41"], " calls", " "),
    ],
)
def test_versions_differ_in_names_of_tags(names: list[str], block_name: str, space: str) -> None:
    invoke = call("run", ("code", "x", TEXT)).replace(DSML, DSML + space)
    case = golden("", f"A\n\n<{DSML}{block_name}>\n{invoke}\n</{DSML}{block_name}>", "A", Call("run", {"code": "x"}))
    for name in names:
        check_golden(lambda: TOOL_PARSERS[name](FUNCTIONS), case)  # noqa: B023  # called at once
