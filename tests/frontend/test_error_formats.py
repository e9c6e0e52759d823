"""One error in the words of each API, whatever refuses the request, and whether or not its stream has begun."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias, get_args

import pytest

from dynamo.frontend.error_formats import AnthropicErrors, DynamoErrors, ErrorFormat, OpenAiErrors, error_formats
from dynamo.shared.errors import (
    BackendFailure,
    DynamoError,
    Entry,
    InternalError,
    InvalidCode,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    WorkerTimeout,
    catalogue,
)
from dynamo.shared.statuses import names_of
from tests.support.error_stage import CHAT, QUESTION, ErrorStage, error_stage, fails, head_of
from tests.support.served_acceptor import HttpAnswer

OPENAI, DYNAMO, ANTHROPIC = OpenAiErrors(), DynamoErrors(), AnthropicErrors()
TOO_HOT = InvalidRequest("temperature must be lower.", "temperature", "out_of_range")


def body(form: ErrorFormat, error: DynamoError) -> Any:
    return json.loads(form.body(error, "req-1"))


def test_openai() -> None:
    envelope = {
        "error": {
            "message": "temperature must be lower.",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "out_of_range",
        }
    }
    assert body(OPENAI, TOO_HOT) == envelope
    assert OPENAI.event(TOO_HOT) == b"data: %b\n\n" % OPENAI.body(TOO_HOT)


def test_dynamo() -> None:
    assert body(DYNAMO, TOO_HOT) == {"message": "temperature must be lower.", "type": "Bad Request", "code": 400}
    assert body(DYNAMO, Overloaded("full")) == {"message": "full", "type": "Overloaded", "code": 529}
    assert body(DynamoErrors(503), Overloaded("full"))["code"] == 503
    frame, end, nothing = DYNAMO.event(WorkerTimeout("late")).split(b"\n\n")
    assert json.loads(frame.removeprefix(b"data: ")) == {
        "error": {"message": "late", "type": "timeout_error", "code": 504}
    }
    assert (end, nothing) == (b"data: [DONE]", b"")


def test_anthropic() -> None:
    assert body(ANTHROPIC, ModelNotFound("m")) == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": "The model 'm' does not exist or is not registered with this gateway.",
        },
        "request_id": "req-1",
    }
    assert ANTHROPIC.event(TOO_HOT, "r") == b"event: error\ndata: %b\n\n" % ANTHROPIC.body(TOO_HOT, "r")


@pytest.mark.parametrize("form", [OPENAI, DYNAMO, ANTHROPIC])
def test_where_the_log_has_more_the_message_says_under_which_id(form: ErrorFormat) -> None:
    assert b"req-1" in form.body(InternalError(), "req-1")
    told = form.body(BackendFailure("CUDA out of memory at 10.0.0.7"), "req-1")
    assert b"req-1" in told
    assert b"CUDA" not in told
    assert b"None" not in form.body(InternalError())


@pytest.mark.parametrize("form", [OPENAI, DYNAMO])
def test_the_status_of_a_worker_that_failed_is_told(form: ErrorFormat) -> None:
    told = body(form, BackendFailure("no such expert", 501))
    assert told.get("error", told)["details"] == {"backend_status": 501}


@pytest.mark.parametrize(
    ("path", "is_anthropic"),
    [
        ("/v1/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/nothing/here", True),
        ("/v1/messages_and_more", False),
        ("/v1/chat/completions", False),
        ("/", False),
    ],
)
@pytest.mark.parametrize(("name", "usual"), [("openai", OpenAiErrors), ("dynamo", DynamoErrors)])
def test_a_path_has_the_format_of_its_api(path: str, is_anthropic: bool, name: str, usual: type[ErrorFormat]) -> None:
    assert type(error_formats(name, 529).of(path)) is (AnthropicErrors if is_anthropic else usual)


def test_the_catalogue_has_every_code_of_a_bad_request() -> None:
    assert set(InvalidRequest.codes) == set(get_args(InvalidCode))
    assert {entry.code for entry in catalogue() if entry.status == 400} >= set(get_args(InvalidCode))
    assert all(entry.meaning for entry in catalogue())


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: f"{entry.code}-{entry.status}")
def test_every_error_has_a_shape_in_every_format(entry: Entry) -> None:
    error = DynamoError("what happened")
    error.status, error.code = entry.status, entry.code
    names = names_of(entry.status)
    openai = {"message": "what happened", "type": names.openai, "param": None, "code": entry.code}
    assert body(OPENAI, error) == {"error": openai}
    assert body(DYNAMO, error) == {"message": "what happened", "type": names.phrase, "code": entry.status}
    anthropic = {"type": names.anthropic, "message": "what happened"}
    assert body(ANTHROPIC, error) == {"type": "error", "error": anthropic, "request_id": "req-1"}


# ---- over HTTP


Ask: TypeAlias = Callable[[ErrorStage, str], Awaitable[HttpAnswer]]
MESSAGES = "/v1/messages"
UNKNOWN_MODEL = QUESTION | {"model": "unknown", "max_tokens": 1}
REFUSALS: dict[int, list[Ask]] = {
    400: [
        lambda stage, path: stage.ask("POST", path, b"{"),
        lambda stage, path: stage.raw(head_of(path, "content-length: 99\r\n") + b"{", then_shut=True),
    ],
    404: [
        lambda stage, path: stage.ask("POST", path, UNKNOWN_MODEL),
        lambda stage, path: stage.ask("GET", f"{path}/nothing/here"),
    ],
    405: [lambda stage, path: stage.ask("DELETE", path), lambda stage, path: stage.ask("OPTIONS", path)],
    413: [lambda stage, path: stage.ask("POST", path, b"x" * 20_000)],
    414: [lambda stage, path: stage.ask("GET", f"{path}/{'x' * 9000}")],
    415: [lambda stage, path: stage.ask("POST", path, b"x", {"content-type": "text/plain"})],
    529: [lambda stage, path: overload(stage, path)],
}


async def overload(stage: ErrorStage, path: str) -> HttpAnswer:
    stage.refuse("overloaded")
    return await stage.chat(path=path, max_tokens=1)


@pytest.mark.parametrize(("error_format", "path"), [("openai", CHAT), ("dynamo", CHAT), ("openai", MESSAGES)])
async def test_whatever_refuses_a_request_does_so_in_the_form_of_its_path(
    tmp_path: Path, error_format: str, path: str
) -> None:
    async with error_stage(tmp_path, error_format=error_format, body_limit_mb=0.01) as stage:
        for status, asks in REFUSALS.items():
            for ask in asks:
                answer = await ask(stage, path)
                assert answer.status == status
                assert shape_of(answer) == (MESSAGES if path == MESSAGES else error_format)


def shape_of(answer: HttpAnswer) -> str:
    """By what its clients look for; all else is checked above."""
    names = names_of(answer.status)
    match answer.json:
        case {"type": "error", "error": {"type": names.anthropic, "message": str()}, "request_id": shown}:
            assert shown == answer.headers["x-request-id"]
            return MESSAGES
        case {"error": {"type": names.openai, "message": str(), "code": str(), "param": _}}:
            return "openai"
        case {"type": names.phrase, "message": str(), "code": answer.status}:
            return "dynamo"
    return "none"


BAD = {"error_type": {"Backend": "InvalidArgument"}, "class": "InvalidRequest", "message": "what happened"}


@pytest.mark.parametrize(
    ("error_format", "path", "end"),
    [
        (
            "openai",
            CHAT,
            'data: {"error":{"message":"what happened","type":"invalid_request_error","param":null,'
            '"code":"invalid_request"}}',
        ),
        (
            "dynamo",
            CHAT,
            'data: {"error":{"message":"what happened","type":"invalid_request_error","code":400}}\n\ndata: [DONE]',
        ),
        (
            "openai",
            MESSAGES,
            'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error","message":"what happened"},'
            '"request_id":"mine"}',
        ),
    ],
)
async def test_a_stream_that_has_begun_ends_with_the_error(
    tmp_path: Path, error_format: str, path: str, end: str
) -> None:
    async with error_stage(tmp_path, error_format=error_format) as stage:
        asked: dict[str, Any] = {"stream": True, "max_tokens": 9}
        refused = await stage.chat(fails(BAD), path, **asked)
        answer = await stage.chat(fails(BAD, after_tokens=True), path, {"x-request-id": "mine"}, **asked)
    assert (refused.status, refused.headers["content-type"]) == (400, "application/json")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.body.decode().endswith(f"{end}\n\n")
