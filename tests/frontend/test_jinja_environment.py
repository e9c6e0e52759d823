"""What templates may write, snippet by snippet, compared with the environment of `transformers`."""

import copy
from pathlib import Path
from typing import Any

import pytest

from dynamo.frontend.jinja_environment import (
    ChatTemplateError,
    CompiledTemplate,
    PythonFloat,
    with_python_floats,
)
from dynamo.frontend.jinja_source import translate
from dynamo.shared.errors import InternalError, InvalidRequest
from tests.frontend.conversations import reference

VARIABLES: dict[str, Any] = {
    "s": "Héllo World",
    "t": "a,b,,c",
    "d": {"b": 1, "a": [1, 2.0, None, True, {"x": "y'\"\n"}], "é": "ü"},
    "dd": {"items": 5, "get": 1, "keys": [1]},
    "m": {"role": "user"},
    "nest": [{"k": 1, "v": "b"}, {"k": 2, "v": "a"}, {"k": 1, "v": "c"}],
    "l": [3, 1, 2],
    "n": None,
    "i": 7,
    "neg": -7,
    "f": 1e-7,
    "g": 2.0,
    "h": 1e20,
    "fl": [0.1, 1e16, 1e-5, 123456789.123, 1e15, -0.0, 1e22],
    "big": 12345678901234567890123,
    "b": True,
    "e": "",
    "sp": "  x  ",
    "u": "é中😀\u2028<&'>",
    "html": "<b>&'\"</b>",
    "nl": "a\nb\r\nc\n",
}
SAME, REFUSED = (
    [line for line in part.splitlines() if line and not line.startswith(("##", "Snippets"))]
    for part in (Path(__file__).parent / "jinja_snippets.txt").read_text().split("## an error in both")
)
WHITE_SPACE = [
    "a\n",
    "a\n\n",
    "{{ s }}\n",
    "  {% if b %}\n  x\n  {% endif %}\n y\n",
    "{% for x in l %}\n  {{ x }}\n{% endfor %}\n",
    "{#- c #}\n x\n",
    "{% if b -%}\n  x\n{%- endif %}\r\ny\r\n",
    "\r\na\rb",
    "  {#- c -#}  \n z",
    "  {# c #}\n z",
    "{%- if b %}\n\n\nx{% endif %}",
    "{{ s }}\n\nx",
    "{% if b %}\n{{ s }}\n{%+ endif %}\n",
    "   {%+ if b %}x{% endif %}",
    "{% if b +%}\nx{% endif %}",
    "{{ s -}}\n  x",
    "x\n  {{- s }}",
    "{%- macro f(a) -%}\n x {{ a }}\n{%- endmacro -%}\n{{ f(1) }}\n",
    "  {% generation %}\n x\n  {% endgeneration %}\n y\n",
    "{%- for a in l -%}\n{%- if loop.first %}\nq\n{% endif -%}\n{%- endfor %}",
    "{{\n  s\n    .title()\n}}",
]


def rendered(source: str) -> str:
    return CompiledTemplate(source).render({"messages": [], **with_python_floats(copy.deepcopy(VARIABLES))})


@pytest.mark.parametrize("source", SAME + WHITE_SPACE)
def test_a_snippet_renders_as_in_transformers(source: str) -> None:
    assert rendered(source) == reference(source, [], **VARIABLES)


@pytest.mark.parametrize("source", REFUSED)
def test_a_snippet_that_transformers_refuses_is_the_clients_error(source: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - of many types, and only that it fails matters
        reference(source, [], **VARIABLES)
    with pytest.raises(InvalidRequest):
        rendered(source)


def test_the_tables_are_read() -> None:
    assert (len(SAME) > 250, len(REFUSED) > 30) == (True, True)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 1e100 > 1 }}{{ 0.0000001 }}", "True0.0000001"),
        ("{{ [1.0]|tojson }}", "[1]"),
        ("{% for x in d.get('zz') %}{{ x }}{% endfor %}", ""),
        ("{{ 'a' < 1 }}", "False"),
        ("{{ ['\u200d'] }}", "['\u200d']"),
        ("{{ dd.items }}", "5"),
    ],
)
def test_differences_that_stay(source: str, text: str) -> None:
    assert rendered(source) == text


@pytest.mark.parametrize("source", ["{{ '%s' % s }}", "{% macro f() %}{{ varargs }}{% endmacro %}{{ f(1) }}"])
def test_what_is_not_supported_fails_aloud(source: str) -> None:
    with pytest.raises(InvalidRequest):
        rendered(source)


def test_an_unknown_filter_is_our_error() -> None:
    with pytest.raises(InternalError, match="nosuch"):
        rendered("{{ s|nosuch }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception.__globals__ }}{{ m.get.__self__ }}",
        "{{ m|attr('__class__') }}{{ m['__class__'] }}{{ ''.__class__ }}",
        "{{ strftime_now.__code__ }}{{ python_undefined.__class__ }}",
    ],
)
def test_a_template_does_not_reach_into_python(source: str) -> None:
    assert rendered(source) == ""


def test_a_template_does_not_change_what_it_is_given() -> None:
    given = {"l": [1], "d": {"a": 1}}
    for change in ("l.append(2)", "l.pop()", "l.insert(0, 1)", "l.clear()", "d.update({'b': 2})", "d.popitem()"):
        with pytest.raises(InvalidRequest, match="a template cannot call"):
            CompiledTemplate(f"{{{{ {change} }}}}").render(given)
    assert given == {"l": [1], "d": {"a": 1}}


def test_an_error_names_its_line() -> None:
    with pytest.raises(ChatTemplateError, match="line 3"):
        CompiledTemplate("{{ s.title() }}\n{{\ns is }}")
    with pytest.raises(InvalidRequest, match="line 2"):
        rendered("{{ s.title() is iterable }}\n{{ s + 1 }}")


def test_text_comments_and_raw_blocks_stay() -> None:
    source = "a|length {# x.title() #}{% raw %}{{ x.title() }}{% endraw %} x is iterable {{ 'x|length is iterable' }}"
    assert translate(source) == source


def test_floats_are_wrapped_and_what_has_none_is_not_copied() -> None:
    plain = {"a": [1, {"b": "x"}]}
    mixed = {"a": [1, {"b": 2.0}], "c": plain}
    wrapped = with_python_floats(mixed)
    assert with_python_floats(plain) is plain
    assert wrapped == {"a": [1, {"b": PythonFloat(2.0)}], "c": plain}
    assert wrapped["c"] is plain
    assert mixed["a"] == [1, {"b": 2.0}]
    assert type(wrapped["a"][1]["b"]) is PythonFloat
