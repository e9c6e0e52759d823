"""What coding agents really send: bodies of their second turn, recorded with Codex 0.169 and Claude Code 2.1, their
texts shortened. None of their fields is unknown here, and each offers the tool that was called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamo.frontend.anthropic import MessagesMouth
from dynamo.frontend.anthropic_conversion import BILLING_PREAMBLE
from dynamo.frontend.anthropic_conversion import chat_of as chat_of_messages
from dynamo.frontend.body_fields import RequestPolicy
from dynamo.frontend.error_formats import AnthropicErrors, OpenAiErrors
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.openai_rules import check_chat
from dynamo.frontend.responses import ResponsesMouth
from dynamo.frontend.responses_conversion import chat_of as chat_of_response

BODIES = Path(__file__).parent / "bodies"
STRICT = RequestPolicy(unknown_fields="reject")


def read(name: str) -> bytes:
    return (BODIES / f"{name}.json").read_bytes()


def codex(name: str) -> ChatCompletionRequest:
    chat = chat_of_response(ResponsesMouth(STRICT, None, OpenAiErrors()).decode(read(name)))
    check_chat(chat)
    return chat


def claude_code() -> ChatCompletionRequest:
    mouth = MessagesMouth(STRICT, AnthropicErrors(), strips_preamble=True)
    chat = chat_of_messages(mouth.decode(read("claude_code")), strips_preamble=True)
    check_chat(chat)
    return chat


def offered(chat: ChatCompletionRequest) -> list[str]:
    return [tool["function"]["name"] for tool in chat.tools or ()]


def calls(chat: ChatCompletionRequest) -> list[str]:
    return [call["function"]["name"] for message in chat.messages for call in message.get("tool_calls") or ()]


@pytest.mark.parametrize(
    ("name", "tools", "called"),
    [
        (
            "codex_local_model",
            ["exec_command", "multi_agent_v1__close_agent", "mcp__weather__get_weather"],
            ["mcp__weather__get_weather"],
        ),
        ("codex_apply_patch", ["apply_patch"], ["apply_patch"]),
        (
            "codex_tool_search",
            ["exec_command", "tool_search", "mcp__weather__get_weather"],
            ["tool_search", "mcp__weather__get_weather"],
        ),
        (
            "codex_code_mode",
            ["functions__exec", "clock__sleep", "collaboration__followup_task"],
            ["functions__exec"],
        ),
    ],
)
def test_codex(name: str, tools: list[str], called: list[str]) -> None:
    chat = codex(name)
    assert offered(chat) == tools
    assert calls(chat) == called
    assert chat.messages[-1]["role"] == "tool"


def test_claude_code() -> None:
    chat = claude_code()
    assert offered(chat) == ["Bash", "TaskUpdate", "WebSearch"]
    assert calls(chat) == ["Bash"]
    assert result_of(chat) == "from-the-shell"
    assert not chat.messages[0]["content"].startswith(BILLING_PREAMBLE)
    assert [message["role"] for message in chat.messages] == ["system", "user", "system", "assistant", "tool"]


def result_of(chat: ChatCompletionRequest) -> str:
    text: str = chat.messages[-1]["content"]
    return text


@pytest.mark.parametrize("body", sorted(BODIES.glob("*.json")), ids=lambda path: path.stem)
def test_thoughts_come_back_as_thoughts(body: Path) -> None:
    chat = claude_code() if body.stem == "claude_code" else codex(body.stem)
    thoughts: list[Any] = [message.get("reasoning_content") for message in chat.messages]
    assert "\nI need a tool.\n" in thoughts
    assert json.loads(body.read_bytes())["stream"] is True
