"""Every error of the catalogue, provoked over a socket: what it says, and what the official client makes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from dynamo.frontend.renderer import ChunkRenderer
from dynamo.shared.errors import BACKEND_KINDS, catalogue
from dynamo.shared.statuses import names_of
from tests.support.error_stage import (
    AUTHORIZED,
    CHAT,
    GONE,
    QUESTION,
    THRESHOLDS,
    ErrorStage,
    completes,
    dies,
    error_stage,
    fails,
    head_of,
    refuses,
    says_too_much,
    silent,
)
from tests.support.served_acceptor import MODEL, HttpAnswer

ELSEWHERE = {("client_disconnected", 499), ("shutting_down", 503)}  # the first is never sent
TWO_MODELS = b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}'
EMBED = {"model": "unknown", "input": "x"}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}


class Case(NamedTuple):
    code: str
    status: int
    provoke: Callable[[ErrorStage], Awaitable[HttpAnswer]]
    param: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})

    def __str__(self) -> str:
        return f"{self.code}-{self.status}"


def bad(code: str, param: str | None, **fields: Any) -> Case:
    return Case(code, 400, lambda stage: stage.chat(**fields), param)


def from_worker(kind: str) -> Case:
    told = BACKEND_KINDS[kind]
    error = {"error_type": "Unknown", "class": kind, "message": "what happened"}
    return Case(told.code, told.status, lambda stage: stage.chat(fails(error)))


async def refused(stage: ErrorStage, code: str) -> HttpAnswer:
    stage.refuse(code)
    return await stage.chat()


async def at_capacity(stage: ErrorStage) -> HttpAnswer:
    """Two requests are as many as may be in flight: one of inference, and one of another kind."""
    async with stage.held(CHAT), stage.held(THRESHOLDS, AUTHORIZED):
        while (answer := await stage.chat()).status == 529:
            pass
        return answer


async def unreachable(stage: ErrorStage) -> HttpAnswer:
    stage.place_at(GONE)
    return await stage.chat()


async def without_router(stage: ErrorStage) -> HttpAnswer:
    stage.router.channel.close()
    return await stage.ask("GET", THRESHOLDS, headers=AUTHORIZED)


async def broken(stage: ErrorStage) -> HttpAnswer:
    """A fault that no handler expects."""
    metrics = stage.directory / "metrics"
    metrics.rename(stage.directory / "elsewhere")
    answer = await stage.ask("GET", "/metrics")
    metrics.mkdir()
    return answer


CASES = [
    bad("invalid_value", "messages[0].role", messages=[{"role": "robot", "content": "x"}]),
    Case("invalid_json", 400, lambda stage: stage.ask("POST", CHAT, b"{")),
    bad("invalid_type", "max_tokens", max_tokens="many"),
    Case("missing_field", 400, lambda stage: stage.ask("POST", CHAT, {"model": MODEL}), "messages"),
    Case("duplicate_field", 400, lambda stage: stage.ask("POST", CHAT, TWO_MODELS), "model"),
    bad("out_of_range", "temperature", temperature=5),
    bad("conflicting_fields", "tool_choice", tool_choice="required"),
    bad("unsupported_field", "nvext.zzz", nvext={"zzz": 1}),
    bad("unsupported_value", "modalities", modalities=["audio"]),
    bad("unsupported_content", "messages[0].content[0]", messages=[IMAGE]),
    Case(
        "no_chat_template",
        400,
        lambda stage: stage.chat(model="mute"),
        "model",
        {"variants": {"mute": {"prompt_formatter": None}}},
    ),
    bad("context_length_exceeded", "messages", messages=[{"role": "user", "content": "word " * 2000}]),
    Case("truncated", 400, lambda stage: stage.raw(head_of(CHAT, "content-length: 99\r\n") + b"{", then_shut=True)),
    from_worker("InvalidRequest"),
    Case("invalid_api_key", 401, lambda stage: stage.ask("GET", THRESHOLDS)),
    from_worker("Unauthenticated"),
    from_worker("PermissionDenied"),
    Case("model_not_found", 404, lambda stage: stage.chat(model="nope"), "model"),
    Case(
        "wrong_kind_of_model",
        404,
        lambda stage: stage.chat(model="base"),
        "model",
        {"variants": {"base": {"model_type": "Completions"}}},
    ),
    Case(
        "no_model_of_kind",
        404,
        lambda stage: stage.ask("POST", "/v1/embeddings", {"model": "m", "input": "x"}),
        "model",
    ),
    Case("route_not_found", 404, lambda stage: stage.ask("GET", "/v1/nothing")),
    Case(
        "response_not_found",
        404,
        lambda stage: stage.ask("GET", "/v1/responses/resp_0"),
        options={"responses_store_mb": 1.0},
    ),
    from_worker("NotFound"),
    Case("method_not_allowed", 405, lambda stage: stage.ask("DELETE", CHAT)),
    Case(
        "request_timeout",
        408,
        lambda stage: stage.raw(head_of(CHAT, "content-length: 99\r\n") + b"{"),
        options={"body_read_timeout_s": 0.2},
    ),
    from_worker("Conflict"),
    Case(
        "payload_too_large", 413, lambda stage: stage.ask("POST", CHAT, b"x" * 20_000), options={"body_limit_mb": 0.01}
    ),
    from_worker("PayloadTooLarge"),
    Case("uri_too_long", 414, lambda stage: stage.ask("GET", "/" + "x" * 9000)),
    Case("unsupported_media_type", 415, lambda stage: stage.ask("POST", CHAT, b"x", {"content-type": "text/plain"})),
    from_worker("UnsupportedMedia"),
    Case("invalid_type", 422, lambda stage: stage.ask("POST", THRESHOLDS, {"model": 7}, AUTHORIZED), "model"),
    Case("missing_field", 422, lambda stage: stage.ask("POST", THRESHOLDS, {}, AUTHORIZED), "model"),
    from_worker("RateLimited"),
    Case("headers_too_large", 431, lambda stage: stage.ask("GET", "/live", headers={"x-big": "x" * 70_000})),
    Case("backend_error", 500, lambda stage: stage.chat(fails({"class": "Internal", "message": "CUDA at 10.0.0.7"}))),
    Case("internal_error", 500, broken),
    Case(
        "unsupported_feature",
        501,
        lambda stage: stage.ask("POST", "/v1/responses", {"model": MODEL, "input": "x", "background": True}),
        "background",
    ),
    Case(
        "worker_response_too_large",
        502,
        lambda stage: stage.chat(says_too_much),
        options={"tcp_max_message_size": 1 << 16},
    ),
    Case("at_capacity", 503, at_capacity, options={"max_concurrent_requests": 1}),
    Case("model_not_ready", 503, lambda stage: refused(stage, "no_workers")),
    Case("router_away", 503, without_router),
    from_worker("Cancelled"),
    Case("worker_disconnected", 503, lambda stage: stage.chat(dies)),
    Case("worker_refused", 503, lambda stage: stage.chat(refuses)),
    from_worker("Unavailable"),
    Case("worker_unreachable", 503, unreachable),
    Case("worker_timeout", 504, lambda stage: stage.chat(silent), options={"backend_stream_timeout_s": 0.2}),
    from_worker("DeadlineExceeded"),
    Case("overloaded", 529, lambda stage: refused(stage, "overloaded")),
    from_worker("CapacityExhausted"),
]


EXCEPTIONS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


def exception_of(answer: HttpAnswer) -> openai.APIStatusError:
    """What the official client raises for these bytes. It could not send all the requests that lead to them, so they
    are replayed to it."""
    response = httpx2.Response(answer.status, headers=dict(answer.headers), content=answer.body)
    transport = httpx2.MockTransport(lambda _request: response)
    client = OpenAI(base_url="http://x", api_key="x", max_retries=0, http_client=httpx2.Client(transport=transport))
    with pytest.raises(openai.APIStatusError) as caught:
        client.models.list()
    return caught.value


def test_every_code_is_provoked() -> None:
    told = {(entry.code, entry.status) for entry in catalogue()}
    assert {(case.code, case.status) for case in CASES} | ELSEWHERE == told


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_an_error_is_what_the_catalogue_says(tmp_path: Path, case: Case) -> None:
    async with error_stage(tmp_path, **case.options) as stage:
        answer = await case.provoke(stage)
    check(answer, case)


async def test_a_request_that_outlasts_the_drain_is_told_so(tmp_path: Path) -> None:
    async with error_stage(tmp_path) as stage:
        asked = asyncio.create_task(stage.chat())
        await stage.worker.next_call()
    check(await asked, Case("shutting_down", 503, ErrorStage.chat))


def check(answer: HttpAnswer, case: Case) -> None:
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (case.status, case.code, case.param)
    assert answer.headers["content-type"] == "application/json"
    is_retryable = next(e.is_retryable for e in catalogue() if (e.code, e.status) == (case.code, case.status))
    assert ("retry-after" in answer.headers) == is_retryable
    caught = exception_of(answer)
    general = openai.InternalServerError if case.status >= 500 else openai.APIStatusError
    assert type(caught) is EXCEPTIONS.get(case.status, general)
    assert (caught.code, caught.param, caught.type) == (case.code, case.param, names_of(case.status).openai)
    assert caught.request_id == answer.headers["x-request-id"]
    assert error["message"] in caught.message


# ---- faults of ours


async def test_a_fault_of_ours_is_told_by_the_id_under_which_the_log_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with error_stage(tmp_path) as stage:
        answer = await broken(stage)
    request_id = answer.headers["x-request-id"]
    assert request_id in answer.json["error"]["message"]
    assert b"Traceback" not in answer.body
    assert b"FileNotFoundError" not in answer.body
    [complaint] = [record for record in caplog.records if request_id in record.getMessage()]
    assert complaint.exc_info is not None


async def test_a_fault_of_ours_in_mid_answer_is_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No input is known to lead to one, so one is made."""

    def of_end(*_: object) -> bytes:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(ChunkRenderer, "last", of_end)
    async with error_stage(tmp_path) as stage:
        answer = await stage.chat(completes, stream=True)
    assert answer.status == 200
    frame = json.loads(answer.body.split(b"\n\n")[-2].removeprefix(b"data: "))
    assert frame["error"]["code"] == "internal_error"
    assert answer.headers["x-request-id"] in frame["error"]["message"]
    assert b"secret" not in answer.body
    assert "a secret" in caplog.text


# ---- streams


BAD = {"error_type": {"Backend": "InvalidArgument"}, "class": "InvalidRequest", "message": "what happened"}


async def test_the_official_client_raises_in_mid_stream(tmp_path: Path) -> None:
    async with (
        error_stage(tmp_path) as stage,
        AsyncOpenAI(base_url=f"{stage.acceptor.base_url}/v1", api_key="x", max_retries=0) as client,
    ):
        asked = asyncio.create_task(
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=9, stream=True
            )
        )
        call = await stage.worker.next_call()
        await fails(BAD, after_tokens=True)(call)
        stream = await asked
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
    assert type(caught.value) is openai.APIError
    assert (caught.value.message, caught.value.code, caught.value.type) == (
        "what happened",
        "invalid_request",
        "invalid_request_error",
    )


HTTP_ERRORS = [
    (400, 400, "what happened"),
    (422, 422, "what happened"),
    (429, 429, "what happened"),
    (451, 451, "what happened"),
    (501, 500, "The worker failed to serve this request."),
    (503, 503, "what happened"),
    (529, 529, "what happened"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("chosen", "status", "message"), HTTP_ERRORS)
async def test_a_handler_that_chooses_its_status_is_heard(
    tmp_path: Path, stream: bool, chosen: int, status: int, message: str
) -> None:
    """As 1.6.1 tells Python's HttpError: by class, and by a message that is JSON."""
    kinds = {429: "RateLimited", 501: "NotImplemented", 503: "Unavailable", 529: "CapacityExhausted"}
    text = json.dumps({"message": "what happened", "code": chosen})
    error = {"error_type": "Unknown", "class": kinds.get(chosen, "InvalidRequest"), "message": text}
    async with error_stage(tmp_path) as stage:
        answer = await stage.chat(fails(error), stream=stream)
    told = answer.json["error"]
    assert answer.status == status
    assert told["message"].startswith(message)
    assert told.get("details") == ({"backend_status": chosen} if status == 500 else None)


@pytest.mark.parametrize(
    ("options", "comments"),
    [
        ({"pre_commit_error_peek_ms": 0}, b""),
        ({"pre_commit_error_peek_ms": 20}, b""),
        ({"sse_keep_alive_interval_ms": 20}, b": keep-alive\n\n"),
    ],
)
async def test_an_error_after_the_time_to_wait_for_the_first_token_is_a_frame(
    tmp_path: Path, options: dict[str, Any], comments: bytes
) -> None:
    async with error_stage(tmp_path, **options) as stage:
        reader, writer = await asyncio.open_connection(*stage.acceptor.address)
        body = json.dumps(QUESTION | {"stream": True}).encode()
        writer.write(head_of(CHAT, f"content-length: {len(body)}\r\nconnection: close\r\n") + body)
        call = await stage.worker.next_call()
        await silent(call)
        received = await reader.readuntil(b"\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 200 ")
        if comments:
            received += await reader.readuntil(comments)
        call.item(event="error", error=BAD)
        received += await reader.read()
        writer.close()
    assert b'data: {"error":{"message":"what happened"' in received


async def test_an_error_within_the_time_to_wait_is_a_status(tmp_path: Path) -> None:
    async with error_stage(tmp_path, pre_commit_error_peek_ms=60_000, sse_keep_alive_interval_ms=0) as stage:
        answer = await stage.chat(fails(BAD), stream=True)
        assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
        served = await stage.chat(completes, stream=True)
        assert served.body.endswith(b"data: [DONE]\n\n")
