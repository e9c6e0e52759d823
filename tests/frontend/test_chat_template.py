"""Rendering compared with `transformers`, over templates in the styles of the large families."""

import copy
import json
from datetime import datetime
from typing import Any

import pytest

from dynamo.frontend.chat_template import ChatTemplate, ChatTemplateError, parse_special_tokens, parse_templates
from dynamo.shared.errors import InternalError, InvalidRequest
from tests.frontend.conversations import TALK, TOKENS, TOOLS, reference, tool_talk

CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

# Qwen's habits: tools as JSON lines, thinking of past turns dropped, tool results gathered in one user turn.
HERMES = """
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last_query=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == 'user' %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content if message.content is string else '' %}
        {%- if '</think>' in content and loop.index0 < ns.last_query %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function %}
            {{- '\n<tool_call>\n{"name": "' + function.name + '", "arguments": ' }}
            {{- function.arguments if function.arguments is string else function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""

# DeepSeek's habits: system text gathered first, arguments joined as text.
DEEPSEEK = """
{%- if add_generation_prompt is not defined %}{% set add_generation_prompt = false %}{% endif -%}
{%- set ns = namespace(system='', first=true) -%}
{%- for message in messages if message['role'] == 'system' -%}
    {%- set ns.system = ns.system + ('' if ns.first else '\n\n') + message['content'] -%}
    {%- set ns.first = false -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}<|User|>{{ message['content'] }}
    {%- elif message['role'] == 'assistant' and message['tool_calls'] -%}
        <|Assistant|>{% for call in message['tool_calls'] -%}
        {{ '<call>' + call['function']['name'] + '\n' + call['function']['arguments'] + '</call>' }}
        {%- endfor %}{{ eos_token }}
    {%- elif message['role'] == 'assistant' -%}<|Assistant|>{{ message['content'] }}{{ eos_token }}
    {%- elif message['role'] == 'tool' -%}<result>{{ message['content'] }}</result>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|Assistant|>{% endif -%}
"""

# Llama's habits: macros, a date, parts or text, trimming, indented JSON, generation marks, refusals.
LLAMA = """
{{- bos_token }}
{%- macro head(role) -%}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}{%- endmacro %}
{%- macro text(content) -%}
    {%- if content is string -%}{{ content | trim }}
    {%- else -%}{%- for part in content if part.type == 'text' -%}{{ part.text | trim }}{%- endfor -%}
    {%- endif -%}
{%- endmacro %}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%Y')[:2] %}{%- endif %}
{{- head('system') + 'Today: ' + date_string + '\n' }}
{%- for tool in tools or [] %}{{ tool | tojson(indent=4) }}{{ '\n' }}{%- endfor %}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- elif message.role == 'assistant' %}
        {% generation %}{{- head('assistant') + text(message.content or '') }}<|eot_id|>{% endgeneration %}
    {%- else %}
        {{- head(message.role) + text(message.content) + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- head('assistant') }}{%- endif %}
"""

PARTS_ONLY = """
{%- for message in messages %}
    {%- for part in message.content %}{%- if part.type == 'text' %}{{ part.text }};{%- endif %}{%- endfor %}
{%- endfor %}
"""

ARGUMENTS = {"city": "Köln", "days": 2, "nested": {"a": [1.5, None, True]}}


@pytest.mark.parametrize("source", [CHATML, HERMES, DEEPSEEK, LLAMA])
@pytest.mark.parametrize("prompted", [True, False])
def test_a_conversation_renders_as_in_transformers(source: str, prompted: bool) -> None:
    ours = ChatTemplate({"default": source}, TOKENS).render(TALK, add_generation_prompt=prompted)
    assert ours == reference(source, TALK, tools=None, add_generation_prompt=prompted)


@pytest.mark.parametrize("source", [HERMES, LLAMA])
def test_tools_render_as_in_transformers(source: str) -> None:
    ours = ChatTemplate({"default": source}, TOKENS).render(TALK, TOOLS)
    assert ours == reference(source, TALK, tools=TOOLS, add_generation_prompt=True)


def test_tool_arguments_reach_the_template_as_objects() -> None:
    messages = tool_talk(json.dumps(ARGUMENTS))
    before = copy.deepcopy(messages)
    ours = ChatTemplate({"default": HERMES}).render(messages, TOOLS)
    assert ours == reference(HERMES, tool_talk(ARGUMENTS), tools=TOOLS, add_generation_prompt=True)
    assert messages == before


def test_tool_arguments_stay_text_where_the_template_joins_text() -> None:
    messages = tool_talk(json.dumps(ARGUMENTS))
    ours = ChatTemplate({"default": DEEPSEEK}, TOKENS).render(messages)
    assert ours == reference(DEEPSEEK, messages, add_generation_prompt=True)


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '"x"', '{"a":' * 5000 + "1" + "}" * 5000], ids=len)
def test_tool_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    assert f'"arguments": {arguments}}}' in ChatTemplate({"default": HERMES}).render(tool_talk(arguments))


PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (CHATML, PARTS, "user\none\ntwo<|im_end|>"),
        (LLAMA, PARTS, "onetwo<|eot_id|>"),
        (LLAMA, "one", "one<|eot_id|>"),
        (PARTS_ONLY, PARTS, "one;two;"),
        (PARTS_ONLY, "one", "one;"),
    ],
)
def test_content_is_given_in_the_form_the_template_takes(source: str, content: object, expected: str) -> None:
    template = ChatTemplate({"default": source}, TOKENS)
    assert expected in template.render([{"role": "user", "content": content}], add_generation_prompt=False)


def test_tools_choose_the_template_for_tools() -> None:
    both = ChatTemplate(parse_templates([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]))
    assert [both.render(TALK), both.render(TALK, []), both.render(TALK, TOOLS)] == ["d", "d", "t"]
    assert ChatTemplate(parse_templates("only")).render(TALK, TOOLS) == "only"


def test_kwargs_come_last_and_replace() -> None:
    template = ChatTemplate({"default": HERMES})
    assert template.render(TALK, kwargs={"enable_thinking": False}).endswith("</think>\n\n")
    assert "im_start|>assistant\n" not in template.render(TALK[:1], kwargs={"add_generation_prompt": False})


def test_parameters_of_a_tool_are_completed() -> None:
    template = ChatTemplate({"default": "{{ tools[0].function.parameters | tojson }}"})
    bare = {"type": "function", "function": {"name": "f", "parameters": {"required": []}}}
    assert template.render(TALK, [bare]) == '{"type": "object", "properties": {}, "required": []}'
    assert bare["function"] == {"name": "f", "parameters": {"required": []}}


def test_a_refusal_of_the_template_is_the_clients_error_in_its_words() -> None:
    with pytest.raises(InvalidRequest, match="Unknown role: critic") as caught:
        ChatTemplate({"default": LLAMA}, TOKENS).render([{"role": "critic", "content": "x"}])
    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content + 1 }}", "{{ messages[9].role.name }}", "{{ messages[0].content.get('x') }}"]
)
def test_messages_that_break_the_template_are_the_clients_error(source: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot render these messages"):
        ChatTemplate({"default": source}).render(TALK)


def nested(depth: int) -> Any:
    """An object in which others are."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_objects_nested_too_deeply_are_the_clients_error() -> None:
    template = ChatTemplate({"default": CHATML})
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": nested(900)}}
    for messages, tools in (
        ([{"role": "assistant", "content": "", "tool_calls": [call]}], None),
        (TALK, [{"type": "function", "function": {"name": "f", "parameters": nested(900)}}]),
    ):
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            template.render(messages, tools)


def test_a_filter_nobody_knows_is_our_error() -> None:
    with pytest.raises(InternalError, match="nosuch"):
        ChatTemplate({"default": "{{ messages | nosuch }}"}).render(TALK)


def test_an_endless_template_is_stopped() -> None:
    endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest, match="too long"):
        ChatTemplate({"default": "{% if messages | length > 3 %}" + endless + "{% endif %}"}).render(TALK)


def test_fuel_is_for_each_render() -> None:
    template = ChatTemplate({"default": CHATML})
    long = TALK * 500
    assert len({template.render(long) for _ in range(20)}) == 1


def test_a_template_that_does_not_compile_names_the_line() -> None:
    with pytest.raises(ChatTemplateError, match="line 2"):
        ChatTemplate({"default": "ok\n{% if %}"})


@pytest.mark.parametrize("value", [None, 3, [1], [{"name": "default"}], {"default": 1}])
def test_a_chat_template_of_another_shape_is_refused(value: object) -> None:
    with pytest.raises(ChatTemplateError):
        parse_templates(value)


def test_an_empty_list_of_templates_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="empty"):
        ChatTemplate(parse_templates([]))


def test_special_tokens_are_strings_or_objects() -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": None, "x": "y"}
    assert parse_special_tokens(config) == TOKENS


def talk(role: str, content: object) -> list[dict[str, object]]:
    return [{"role": role, "content": content}, {"role": "user", "content": "hi"}]


TEXT_OR_PARTS = """
{%- for message in messages %}{{ message.role }}:
    {%- if message.content is string %}{{ message.content }}
    {%- elif message.role == 'user' %}{% for part in message.content %}<{{ part.text }}>{% endfor %}
    {%- else %}{{ raise_exception('text!') }}{% endif %};
{%- endfor %}
"""


def test_each_role_has_a_form_of_content_of_its_own() -> None:
    template = ChatTemplate({"default": TEXT_OR_PARTS.replace("<{{ part.text }}>", "{{ part.text }}")})
    assert template.render(talk("system", PARTS)) == "system:one\ntwo;user:hi;"
    assert template.render([{"role": "user", "content": PARTS}]) == "user:onetwo;"


def test_parts_that_print_unlike_text_are_joined() -> None:
    assert ChatTemplate({"default": TEXT_OR_PARTS}).render([{"role": "user", "content": PARTS}]) == "user:one\ntwo;"


def test_a_refusal_is_text_of_the_assistant() -> None:
    said = [{"type": "text", "text": "Sorry."}, {"type": "refusal", "refusal": "No."}]
    assert "assistant\nSorry.\nNo.<|im_end|>" in ChatTemplate({"default": CHATML}).render(talk("assistant", said))


def test_content_that_is_not_text_is_left_to_the_template() -> None:
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(InvalidRequest):
        ChatTemplate({"default": CHATML}).render(talk("user", image))


KNOWS_DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' %}<D>{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (CHATML, "<|im_start|>system\nRules<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"),
        (KNOWS_DEVELOPER, "<D>developer:Rules;user:hi;"),
        (
            "{% for m in messages if m.role in ['system', 'user'] %}{{ m.role }}:{{ m.content }};{% endfor %}",
            "system:Rules;user:hi;",
        ),
    ],
)
def test_the_developer_is_the_system_where_the_template_does_not_know_better(source: str, text: str) -> None:
    assert ChatTemplate({"default": source}).render(talk("developer", "Rules"), add_generation_prompt=False) == text


@pytest.mark.parametrize("given", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking"])
def test_past_reasoning_is_handed_over_under_every_name(given: str, read: str) -> None:
    template = ChatTemplate({"default": "{{ messages[0]." + read + " }}|{{ messages[1]." + read + " is defined }}"})
    messages = talk("assistant", "b")
    messages[0][given] = "why"
    assert template.render(messages) == "why|False"


def test_what_is_null_is_absent() -> None:
    template = ChatTemplate({"default": "{{ messages[0] | tojson }}"})
    message = {"role": "assistant", "content": None, "tool_calls": None, "name": "x"}
    assert template.render([message]) == '{"role": "assistant", "name": "x"}'


def test_the_clock_of_a_template_can_be_set() -> None:
    template = ChatTemplate({"default": "{{ strftime_now('%d %b %Y') }}"}, now=lambda: datetime(2026, 2, 3))
    assert template.render(TALK) == "03 Feb 2026"


def test_a_template_of_ones_own_has_the_tokens_of_the_model() -> None:
    template = ChatTemplate({"default": CHATML}, TOKENS)
    other = template.with_source("{{ bos_token }}{{ messages[-1].content }}")
    assert other.render(TALK) == "<s>Thanks 👍"
    assert template.with_source("{{ bos_token }}{{ messages[-1].content }}") is other
    with pytest.raises(ChatTemplateError, match="line 1"):
        template.with_source("{% if %}")


@pytest.mark.parametrize(
    ("source", "content", "text"),
    [
        (CHATML, "So far ", "<|im_start|>assistant\nSo far "),
        (LLAMA, "So far ", "assistant<|end_header_id|>\n\nSo far"),
        (CHATML, [{"type": "text", "text": "So"}, {"type": "text", "text": "far"}], "<|im_start|>assistant\nSo\nfar"),
        (PARTS_ONLY, "So far", "So far"),
    ],
)
def test_a_final_message_is_continued_where_its_content_ends(source: str, content: object, text: str) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": content}]
    template = ChatTemplate({"default": source}, TOKENS)
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True).endswith(text)


@pytest.mark.parametrize("content", [None, [{"type": "image_url", "image_url": {"url": "x"}}]])
def test_a_final_message_without_text_cannot_be_continued(content: object) -> None:
    with pytest.raises(InvalidRequest, match="no text to continue"):
        ChatTemplate({"default": CHATML}).render(
            [{"role": "assistant", "content": content}], continue_final_message=True
        )


def test_a_final_message_that_is_not_printed_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequest, match="does not print"):
        ChatTemplate({"default": "{{ messages[0].role }}"}).render(TALK, continue_final_message=True)
