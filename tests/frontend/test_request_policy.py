"""What the operator makes of requests, from the options to the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamo.shared.messages import Place
from tests.support.stage import CHAT, open_stage

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}


async def test_unknown_fields_are_refused_by_name_with_what_may_be_meant(tmp_path: Path) -> None:
    async with open_stage(tmp_path, unknown_fields="reject") as stage:
        answer = await stage.acceptor.ask("POST", CHAT, {"model": "demo", "tempurature": 1} | MESSAGES)
        error = answer.json["error"]
        assert (answer.status, error["param"], error["code"]) == (400, "tempurature", "unsupported_field")
        assert "Did you mean temperature?" in error["message"]


async def test_every_stream_ends_with_its_usage(tmp_path: Path) -> None:
    async with open_stage(tmp_path, force_include_usage=True) as stage:
        answer = await stage.ask({"stream": True} | MESSAGES)
        assert b'"choices":[]' in answer.body
        assert b'"total_tokens":' in answer.body


async def test_nvext_and_hints_may_be_nothing_but_a_salt(tmp_path: Path) -> None:
    nvext: dict[str, Any] = {"cache_salt": "s", "extra_fields": ["worker_id"], "agent_hints": {"priority": 1}}
    async with open_stage(tmp_path, disable_frontend_nvext=True) as stage:
        answer = await stage.ask({"nvext": nvext} | MESSAGES, {"x-dynamo-request-priority": "5"})
        assert "nvext" not in answer.json
        (place,) = [message for message in stage.router.heard if isinstance(message, Place)]
        assert place.hints is None


async def test_a_template_from_a_request_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as stage:
        body = {"model": "demo", "chat_template": "{{ messages }}"} | MESSAGES
        answer = await stage.acceptor.ask("POST", CHAT, body)
        assert (answer.status, answer.json["error"]["param"]) == (400, "chat_template")
