"""One error in the words of each API."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from dynamo.frontend.error_formats import AnthropicErrors, DynamoErrors, ErrorFormat, OpenAiErrors, error_formats
from dynamo.shared.errors import (
    BackendFailure,
    DynamoError,
    InternalError,
    InvalidCode,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    WorkerTimeout,
    catalogue,
)

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
