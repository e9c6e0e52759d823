from __future__ import annotations

import pytest

from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.tools.minimax_m3 import PREFIX, MinimaxM3Parser
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS

TREE = {
    "type": "object",
    "properties": {"size": {"type": "integer"}, "children": {"anyOf": [{"type": "array", "items": {"$ref": "#"}}]}},
    "additionalProperties": {"type": "boolean"},
}
TREES = Functions(
    [
        {
            "function": {
                "name": "plant",
                "parameters": {"properties": {"tree": TREE, "items": {"type": "array", "items": TREE}}},
            }
        }
    ]
)


def marked(text: str) -> str:
    """With the prefix before each tag; `<<` is no tag."""
    return text.replace("<", f"{PREFIX}<").replace(f"{PREFIX}<{PREFIX}<", "<")


def goldens(*cases: Golden) -> list[Golden]:
    return [Golden(case.name, marked(case.text), case.message) for case in cases]


GOLDENS = goldens(
    golden("no call", "a ]<<]min ]<<]minimax[>[ b", "a ]<]min ]<]minimax[>[ b"),
    golden(
        "content and calls",
        'Look.\n<tool_call>\n<invoke name="get_weather"><city>Paris</city><days>3</days></invoke>\n'
        '<invoke name="ping"></invoke>\n</tool_call> B',
        "Look.\n B",
        Call("get_weather", {"city": "Paris", "days": 3}),
        Call("ping", {}),
    ),
    golden("no block", 'A <invoke name="ping"></invoke> B', "A  B", Call("ping", {})),
    golden(
        "types",
        '<invoke name="search"><query>12</query><limit>3</limit><exact>True</exact>'
        "<tags><item>a</item><item>2</item></tags><score>1.5</score></invoke>",
        "",
        Call("search", {"query": "12", "limit": 3, "exact": True, "tags": ["a", "2"], "score": 1.5}),
    ),
    golden(
        "objects without a schema",
        '<invoke name="run"><code>null</code><options><a>1</a><b><c>true</c></b><a>2</a></options></invoke>',
        "",
        Call("run", {"code": "null", "options": {"a": ["1", "2"], "b": {"c": "true"}}}),
    ),
    golden(
        "JSON",
        '<invoke name="run"><options>{"a": 1}</options><code>{"a": 1}</code></invoke>',
        "",
        Call("run", {"options": {"a": 1}, "code": '{"a": 1}'}),
    ),
    golden(
        "an object where a string should be",
        '<invoke name="run"><code><a>1</a></code></invoke>',
        "",
        Call("run", {"code": {"a": "1"}}),
    ),
    golden(
        "empty values",
        '<invoke name="run"><code></code><options></options></invoke>',
        "",
        Call("run", {"code": "", "options": {}}),
    ),
    golden(
        "unknown parameters",
        '<invoke name="ping"><a>1</a><b><item>1</item></b></invoke>',
        "",
        Call("ping", {"a": "1", "b": {"item": "1"}}),
    ),
    golden(
        "text is kept",
        '<invoke name="run"><code> a\n<</code> &lt;\n</code></invoke>',
        "",
        Call("run", {"code": " a\n</code> &lt;\n"}),
    ),
    golden(
        "text beside tags",
        '<invoke name="run"><options>x<a>1</a></b>y</options></invoke>',
        "",
        Call("run", {"options": {"a": "1", "$text": "xy"}}),
    ),
    golden(
        "a string without an end",
        '<invoke name="get_weather"><city>Paris<days>3</days></invoke>B',
        "B",
        Call("get_weather", {"city": "Paris", "days": 3}),
    ),
    golden(
        "an array without an end",
        '<invoke name="search"><tags><item>a</item></invoke>B',
        "B",
        Call("search", {"tags": ["a"]}),
    ),
    golden("a call without an end", '<tool_call><invoke name="ping"></tool_call> B', " B", Call("ping", {})),
    golden(
        "a call in a call", '<invoke name="ping"><invoke name="ping"></invoke>', "", Call("ping", {}), Call("ping", {})
    ),
    golden("tags that end nothing", '<invoke name="ping"></a><></invoke></tool_call>B', "B", Call("ping", {})),
    golden("the end in a name", 'A <tool_call>\n<invoke name="pi', "A "),
    golden("the end in a string", '<invoke name="run"><code>x</co', "", Call("run", '{"code": "x"}')),
    golden("the end before a string", '<invoke name="run"><code>', "", Call("run", '{"code": ')),
    golden("the end in an array", '<invoke name="search"><tags><item>a</item><item>b', "", Call("search", '{"tags": ')),
    golden("the end in a call", '<invoke name="run"><code>x</code></inv', "", Call("run", {"code": "x"})),
)


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: MinimaxM3Parser(FUNCTIONS), case)


def test_tags_of_one_name_may_stand_within_each_other() -> None:
    tree = "<tree><size>1</size><tree>true</tree><children><item><size>2</size></item></children></tree>"
    expected = {"size": 1, "tree": True, "children": [{"size": "2"}]}
    text = marked(f'<invoke name="plant">{tree}</invoke>')
    check_golden(lambda: MinimaxM3Parser(TREES), golden("", text, "", Call("plant", {"tree": expected})))


def test_a_thousand_levels() -> None:
    text = marked('<invoke name="run"><options>' + "<a>" * 1000 + "1</options>")
    assert len(MinimaxM3Parser(FUNCTIONS).push(text)) == 3
