"""Templates of the model families over a matrix of conversations, compared byte by byte with `transformers`.

What a template takes is written down here by hand (`Family`), and `transformers` is given the conversation in that
form; `ChatTemplate` has to find it out.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dynamo.frontend.chat_template import ChatTemplate
from dynamo.shared.errors import InvalidRequest
from tests.frontend.conversations import (
    CONVERSATIONS,
    MANY_TOOLS,
    NOW,
    TOKENS,
    VARIABLES,
    Conversation,
    Message,
    reference,
)

DIRECTORY = Path(__file__).parent / "templates"
TEMPLATES = [*DIRECTORY.glob("*.jinja"), *(DIRECTORY / "by_hand").iterdir()]


@dataclass(frozen=True)
class Family:
    """`refusals` of the cases end in an error, here and in `transformers`, and `blanks` in no text; all others render.

    `takes_parts` names the roles whose content may be a list, `takes_bare_calls` whether a call may have no content.
    """

    refusals: int = 0
    blanks: int = 0
    takes_parts: frozenset[str] = frozenset()
    knows_developer: bool = False
    takes_bare_calls: bool = True
    wants_text_arguments: bool = False


ANY_BUT_TOOL = frozenset({"system", "user", "assistant"})
ANY = ANY_BUT_TOOL | {"tool"}

FAMILIES = {
    "apertus": Family(refusals=36),
    "command-r": Family(refusals=60),
    "deepseek-r1-distill-qwen": Family(takes_bare_calls=False),
    "deepseek-v3": Family(wants_text_arguments=True),
    "deepseek-v3.1": Family(),
    "devstral-small": Family(refusals=12, takes_parts=ANY_BUT_TOOL, takes_bare_calls=False),
    "gemma-3": Family(refusals=120, takes_parts=ANY_BUT_TOOL),
    "glm-4.6": Family(takes_parts=ANY_BUT_TOOL),
    "gpt-oss": Family(knows_developer=True),
    "granite-3.3": Family(takes_bare_calls=False),
    "granite-4.0": Family(takes_parts=ANY),
    "hermes": Family(takes_bare_calls=False),
    "kimi-k2": Family(takes_parts=ANY),
    "llama-3": Family(refusals=12),
    "minimax-m2": Family(takes_parts=ANY),
    "ministral-3-reasoning": Family(refusals=72, takes_parts=ANY_BUT_TOOL),
    "mistral-nemo": Family(refusals=60),
    "mistral-small-3.2": Family(refusals=48, takes_parts=ANY_BUT_TOOL),
    "nemotron": Family(),
    "phi-3.5-mini": Family(takes_bare_calls=False),
    "phi-4": Family(blanks=6, takes_bare_calls=False),
    "qwen2.5": Family(),
    "qwen3": Family(blanks=3, takes_bare_calls=False),
    "qwen3-coder": Family(),
    "qwq": Family(blanks=3, takes_bare_calls=False),
    "seed-oss": Family(),
    "smollm3": Family(),
}
NUM_CASES = len(CONVERSATIONS) * len(VARIABLES) * 2 * 2


def given_to_transformers(conversation: Conversation, family: Family) -> Conversation:
    return [_given(message, family) for message in conversation]


def _given(message: Message, family: Family) -> Message:
    message = dict(message)
    role = message["role"]
    if role == "developer" and not family.knows_developer:
        message["role"] = role = "system"
    if isinstance(message["content"], list) and role not in family.takes_parts:
        message["content"] = "\n".join(part["text"] for part in message["content"])
    if message["content"] is None and not family.takes_bare_calls:
        message["content"] = ""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if "tool_calls" in message and not family.wants_text_arguments:
        message["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return message


def _with_object(call: Message) -> Message:
    function = call["function"]
    return call | {"function": function | {"arguments": json.loads(function["arguments"])}}


def sources(name: str) -> dict[str, str]:
    """One template, or the `default` and `tool_use` of a model that has two, which share a folder."""
    [path] = [path for path in TEMPLATES if path.name.removesuffix(".jinja") == name]
    return {file.stem: file.read_text() for file in path.iterdir()} if path.is_dir() else {"default": path.read_text()}


def ours(template: ChatTemplate, conversation: Conversation, **options: Any) -> str | None:
    try:
        return template.render(conversation, **options)
    except InvalidRequest:
        return None


def theirs(source: str, conversation: Conversation, variables: dict[str, Any], **options: Any) -> str | None:
    try:
        return reference(source, conversation, **options, **variables)
    except Exception:  # whatever a template does wrong in Python
        return None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_renders_as_in_transformers(name: str) -> None:
    family, named = FAMILIES[name], sources(name)
    template = ChatTemplate(named, TOKENS, now=lambda: NOW)
    outcomes: Counter[str] = Counter()
    for title, conversation in CONVERSATIONS.items():
        expected_form = given_to_transformers(conversation, family)
        for tools in (None, MANY_TOOLS):
            source = named.get("tool_use", named["default"]) if tools else named["default"]
            for prompted in (True, False):
                for variables in VARIABLES:
                    options = {"tools": tools, "add_generation_prompt": prompted}
                    expected = theirs(source, expected_form, variables, **options)
                    assert ours(template, conversation, kwargs=variables, **options) == expected, (title, options)
                    outcomes["refused" if expected is None else "rendered" if expected else "blank"] += 1
    num_rendered = NUM_CASES - family.refusals - family.blanks
    assert outcomes == Counter(rendered=num_rendered, refused=family.refusals, blank=family.blanks)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_final_message_is_continued_as_in_transformers(name: str) -> None:
    conversation = CONVERSATIONS["ends with the assistant"]
    expected = theirs(
        sources(name)["default"], conversation, {}, add_generation_prompt=False, continue_final_message=True
    )
    template = ChatTemplate(sources(name), TOKENS, now=lambda: NOW)
    assert expected is not None
    assert ours(template, conversation, add_generation_prompt=False, continue_final_message=True) == expected
    assert expected.rstrip().endswith("partial answer")


def test_every_template_is_compared() -> None:
    assert sorted(path.name.removesuffix(".jinja") for path in TEMPLATES) == sorted(FAMILIES)
