"""What models of all families write, read by our parsers and by the real frontend: the same message, but for the
differences listed here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import msgspec
import pytest

from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.parsers.context import Functions, ReasoningContext
from dynamo.frontend.parsers.message import MessageParser, ToolCallDelta, merged
from dynamo.frontend.parsers.parts import Parser, Reasoning
from dynamo.frontend.parsers.reasoning import REASONING_PARSERS
from dynamo.frontend.parsers.registry import reasoning_parser, tool_parser
from dynamo.frontend.parsers.thinking import wants_thinking
from tests.interop.parser_oracle import Case, Message, ParserOracle

MAX_MODELS = 12  # the real frontend takes some 0.3 s to find each, and of many loses some
VOCABULARY = "TIKTOKEN_ENCODINGS_BASE"
WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
TIME = '{"name": "get_time", "arguments": {"timezone": "UTC"}}'
BAR, SPACE = "\uff5c", "\u2581"


def _deepseek(text: str) -> str:
    return text.replace("|", BAR).replace("_", SPACE)


def _json(opening: str, closing: str = "", joint: str | None = None) -> tuple[str, ...]:
    """A call, and two after some content: each between markers, or all in a list where there is a `joint`."""
    both = f"{WEATHER}{joint}{TIME}" if joint else f"{WEATHER}{closing}{opening}{TIME}"
    return f"{opening}{WEATHER}{closing}", f"Let me see.{opening}{both}{closing}"


def _parameters(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.replace('"arguments"', '"parameters"') for text in texts)


QWEN_XML = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)
GLM = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>"
)
MINIMAX = (
    '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>'
)
DSML = (
    f'<{BAR}DSML{BAR}CALLS>\n<{BAR}DSML{BAR}invoke name="get_weather">\n'
    f'<{BAR}DSML{BAR}parameter name="city" string="true">Paris</{BAR}DSML{BAR}parameter>\n'
    f'<{BAR}DSML{BAR}parameter name="days" string="false">3</{BAR}DSML{BAR}parameter>\n'
    f"</{BAR}DSML{BAR}invoke>\n</{BAR}DSML{BAR}CALLS>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_calls_section_end|>'
)
GEMMA = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>'
V3 = _deepseek("<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>") + (
    'get_weather\n```json\n{"city": "Paris", "days": 3}\n```' + _deepseek("<|tool_call_end|><|tool_calls_end|>")
)
V3_1 = _deepseek("<|tool_calls_begin|><|tool_call_begin|>") + (
    "get_weather"
    + _deepseek("<|tool_sep|>")
    + '{"city": "Paris", "days": 3}'
    + _deepseek("<|tool_call_end|><|tool_calls_end|>")
)
MUSE = (
    ' to=get_weather<|message|><atem:function_calls>\n<atem:invoke name="get_weather">\n'
    '<atem:parameter name="city">Paris</atem:parameter>\n<atem:parameter name="days">3</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls><|eot|>"
)
HARMONY = (
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}<|call|>'
)
PREAMBLE = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"


def _with_content(call: str) -> tuple[str, ...]:
    return call, f"Let me see.{call}"


TOOL_TEXTS: dict[str, tuple[str, ...]] = {
    "deepseek_v3": _with_content(V3),
    "deepseek_v3_1": _with_content(V3_1),
    "deepseek_v3_2": _with_content(DSML.replace("CALLS", "function_calls")),
    "deepseek_v4": _with_content(DSML.replace("CALLS", "tool_calls")),
    "gemma4": _with_content(GEMMA),
    "glm47": _with_content(GLM.replace("\n", "")),
    "harmony": (HARMONY, PREAMBLE + HARMONY),
    "hermes": _json("<tool_call>\n", "\n</tool_call>"),
    "jamba": _json("<tool_calls>[", "]</tool_calls>", ", "),
    "kimi_k2": _with_content(KIMI),
    "llama3_json": _parameters((WEATHER, f"<|python_tag|>{WEATHER}")),
    "minimax_m2": _with_content(MINIMAX),
    "mistral": _json("[TOOL_CALLS][", "]", ", "),
    "muse": (MUSE,),
    "nemotron_deci": _json("<TOOLCALL>[", "]</TOOLCALL>", ", "),
    "nemotron_nano": _with_content(QWEN_XML),
    "phi4": _json("functools[", "]", ", "),
    "pythonic": ('[get_weather(city="Paris", days=3)]', '[get_weather(city="Paris"), get_time(timezone="UTC")]'),
    "qwen25": _json("<tool_call>\n", "\n</tool_call>"),
    "qwen3_coder": _with_content(QWEN_XML),
}
MARKERS = {
    "gemma4": ("<|channel>thought\n", "<channel|>"),
    "gemma-4": ("<|channel>thought\n", "<channel|>"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "inkling": ("<|content_thinking|>", "<|end_message|><|content_text|>"),
    "kimi": ("◁think▷", "◁/think▷"),
    "kimi_k3": ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    "kimi-k3": ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    "minimax_m3": ("<mm:think>", "</mm:think>"),
    "minimax-m3": ("<mm:think>", "</mm:think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "muse": (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    "muse_glimmer": (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    "gpt_oss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
}
ON_DEMAND = {"thinking": {"type": "enabled"}}
BODIES = {"deepseek_v3": ON_DEMAND, "deepseek_v3_1": ON_DEMAND, "gemma4": ON_DEMAND, "gemma-4": ON_DEMAND}


def _thought(name: str) -> Iterator[Case]:
    opening, closing = MARKERS.get(name, ("<think>", "</think>"))
    for text in (f"{opening}a < b\n{closing}\n\nAn answer.", f"{opening}never closed"):
        yield Case(text, None, name, tools=(), body=BODIES.get(name, {}))


SAME = [
    *(Case(text, tool) for tool, texts in TOOL_TEXTS.items() for text in texts),
    *(case for name in REASONING_PARSERS if name != "mistral" for case in _thought(name)),
    Case("a</think>b", None, "deepseek_r1", tools=(), prompt_end="<think>\n"),
    Case("a</think>b", None, "qwen3", tools=(), prompt_end="<think>\n"),
    Case("a</think>b", None, "glm45", tools=(), prompt_end="<think>"),
    Case("a</think>b", None, "deepseek_r1", tools=(), body={"thinking": {"type": "disabled"}}),
    Case("a</think>b", None, "minimax_m2", tools=(), body={"reasoning_effort": "none"}),
    Case(f"<think>a</think>b{MINIMAX}", "minimax_m2", "minimax_m2"),
    Case(f"<think>a{MINIMAX}", "minimax_m2", "minimax_m2"),
    Case("<|channel|>analysis<|message|>a<|end|><|start|>assistant" + HARMONY, "harmony", "gpt_oss"),
]
DIFFERENT = [
    ("Space that stands between calls is part of the format.",
     Case(f"<tool_call>{TIME}</tool_call>\n<tool_call>{TIME}</tool_call>", "hermes")),
    ("Talk about a marker is no thought: vLLM and SGLang leave it in the answer, too.",
     Case("<think>a</think>The tag <think> begins", None, "qwen3", tools=())),
    ("Arguments of calls are the client's: the real one takes thought out of them.",
     Case(f"<think>a</think>{QWEN_XML.replace('Paris', '<think>x</think>')}", "qwen3_coder", "qwen3")),
    ("The prompt has closed the thought, so there is none to come.",
     Case("An answer.", None, "deepseek_r1", tools=(), prompt_end="<think>\n\n</think>\n\n")),
    ("The prompt has opened the thought, whatever else the request says.",
     Case("a</think>b", None, "deepseek_v3_1", tools=(), prompt_end="<think>")),
    ("Markers are never shown, asked for or not.", Case("[THINK]a[/THINK]b", None, "mistral", tools=())),
    ("The same, where a model writes them even without thought.",
     Case("<|channel>thought\n<channel|>b", None, "gemma4", tools=())),
    ("A text without markers is an answer; the real one loses it.", Case("plain", None, "minimax_m3", tools=())),
    ("The same.", Case("plain", None, "inkling", tools=())),
    ("The token of `<|call|>` ends an answer and may be hidden; the real one loses such a call.",
     Case(HARMONY.removesuffix("<|call|>"), "harmony", "gpt_oss")),
    ("Without a reasoning parser, thought is told from answers all the same; the real one drops it.",
     Case("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "harmony")),
]  # fmt: skip
PAIRS = list(dict.fromkeys(case.pair for case in [*SAME, *(case for _, case in DIFFERENT)]))


@pytest.fixture(scope="module")
def oracle(request: pytest.FixtureRequest) -> Iterator[ParserOracle]:
    """The real frontend with the models of one part of all pairs."""
    start = request.param * MAX_MODELS
    with ParserOracle(PAIRS[start : start + MAX_MODELS]) as oracle:
        yield oracle


def part(case: Case) -> int:
    return PAIRS.index(case.pair) // MAX_MODELS


def message_of(oracle: ParserOracle, case: Case) -> Message:
    if {"harmony", "gpt_oss"} & set(case.pair) and VOCABULARY not in os.environ:
        pytest.skip(f"the real parser needs the vocabulary of gpt-oss, to be found in {VOCABULARY}")
    answer = oracle.ask(case)
    assert answer.unary is not None, answer.error
    return answer.unary


@pytest.mark.parametrize(
    ("oracle", "case"),
    [pytest.param(part(case), case, id=f"{case.pair} {case.text!r}") for case in SAME],
    indirect=["oracle"],
    scope="module",
)
def test_messages_are_the_same(oracle: ParserOracle, case: Case) -> None:
    assert comparable(parsed(case)) == comparable(message_of(oracle, case))


@pytest.mark.parametrize(
    ("oracle", "reason", "case"),
    [(part(case), reason, case) for reason, case in DIFFERENT],
    indirect=["oracle"],
    scope="module",
)
def test_messages_differ_for_a_reason(oracle: ParserOracle, reason: str, case: Case) -> None:
    assert comparable(parsed(case)) != comparable(message_of(oracle, case)), reason


def parsed(case: Case) -> Message:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **case.body}
    template_args = msgspec.convert(body, ChatCompletionRequest).template_args
    stages: list[Parser] = []
    if case.reasoning is not None:
        context = ReasoningContext(case.prompt_end, wants_thinking(template_args))
        stages.append(reasoning_parser(case.reasoning)(context))
    if case.tool is not None:
        stages.append(tool_parser(case.tool)(Functions(case.tools)))
    parser = MessageParser(stages, lambda: "id")
    message = Message(calls=[])
    for part in merged([*(part for character in case.text for part in parser.push(character)), *parser.flush()]):
        if isinstance(part, ToolCallDelta):
            message.calls.append((part.name or "", part.arguments))
        elif isinstance(part, Reasoning):
            message.reasoning += part.text
        else:
            message.content += part
    return message


def comparable(message: Message) -> object:
    """Arguments as values: the real one writes their JSON anew."""
    return message.content, message.reasoning, [(name, json.loads(arguments)) for name, arguments in message.calls]
