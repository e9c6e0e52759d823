"""Whatever a client sends, it gets a 4xx in our own words, and the server's log stays free of tracebacks."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Gateway

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "hi"}
BODY_LIMIT_MB = 1
READ_TIMEOUT_S = 1


@pytest.fixture(scope="module")
def strict() -> Iterator[Gateway]:
    """A server with limits small enough to run into."""
    with Gateway(f"--body-limit-mb={BODY_LIMIT_MB}", f"--body-read-timeout-s={READ_TIMEOUT_S}") as gateway:
        yield gateway
        assert "Traceback" not in gateway.log


def post(gateway: Gateway, path: str, body: bytes, headers: dict[str, str] = JSON) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(*gateway.address, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        error: dict[str, Any] = json.loads(answer.read())["error"]
        return answer.status, error


def chat(gateway: Gateway, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": gateway.model, "messages": [USER], "max_tokens": 1} | fields
    return post(gateway, CHAT, json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b'{"model":1}', b"\x00\xff\xfe", b'{"a":"\xff"}', b'{"messages":' + b"[" * 100_000],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_malformed_bodies(strict: Gateway, path: str, body: bytes) -> None:
    status, error = post(strict, path, body)
    assert status == 400
    assert error["code"] in ("invalid_json", "invalid_type", "missing_field")
    assert error["type"] == "invalid_request_error"
    assert "msgspec" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "robot", "content": ""}]}, "messages[1].role"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**40}, "max_tokens"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"model": None}, "model"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"nvext": {"zzz": 1}}, "nvext.zzz"),
    ],
)
def test_bad_fields_are_named(strict: Gateway, fields: dict[str, Any], param: str) -> None:
    status, error = chat(strict, **fields)
    assert (status, error["param"]) == (400, param)


def test_a_picture_for_a_model_that_reads_text(strict: Gateway) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    status, error = chat(strict, messages=[{"role": "user", "content": [picture]}])
    assert (status, error["param"]) == (400, "messages[0].content[0]")


def test_a_token_outside_the_vocabulary(strict: Gateway) -> None:
    body = {"model": strict.model, "prompt": [2**32 - 1], "max_tokens": 1}
    status, error = post(strict, "/v1/completions", json.dumps(body).encode())
    assert (status, error["param"]) == (400, "prompt")


def test_a_schema_no_worker_could_be_sent(strict: Gateway) -> None:
    """msgpack has no integers beyond 64 bits."""
    status, error = chat(strict, guided_json={"type": "integer", "maximum": 10**30})
    assert (status, error["type"]) == (400, "invalid_request_error")


def test_unknown_model(strict: Gateway) -> None:
    status, error = chat(strict, model="nope")
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_wrong_content_type(strict: Gateway, content_type: str) -> None:
    body = json.dumps({"model": strict.model, "messages": [USER]}).encode()
    status, error = post(strict, CHAT, body, {"content-type": content_type})
    assert (status, error["code"]) == (415, "unsupported_media_type")


def test_prompt_longer_than_the_context(strict: Gateway) -> None:
    status, error = chat(strict, messages=[{"role": "user", "content": "word " * 150_000}])
    assert (status, error["code"]) == (400, "context_length_exceeded")


def test_oversized_body(strict: Gateway) -> None:
    status, error = chat(strict, messages=[{"role": "user", "content": "x" * (BODY_LIMIT_MB << 20)}])
    assert (status, error["code"]) == (413, "payload_too_large")


def test_oversized_body_of_unknown_length(strict: Gateway) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    status, _ = raw_answer(strict, head % CHAT.encode() + chunk * (BODY_LIMIT_MB * 16 + 1))
    assert status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/v1/chat", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
    ],
)
def test_wrong_routes(strict: Gateway, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(*strict.address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
    assert answer.status == status
    assert error["type"] == "invalid_request_error"
    assert (answer.getheader("allow") is not None) == (status == 405)


def raw_answer(gateway: Gateway, sent: bytes, *, then_shut: bool = False) -> tuple[int, bytes]:
    """Send bytes as they are; the status, 0 when the server closed without one, and what followed it."""
    with socket.create_connection(gateway.address, timeout=60) as connection:
        with contextlib.suppress(ConnectionError):  # the server may refuse before it has read everything
            connection.sendall(sent)
            if then_shut:
                connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while not is_complete(received) and (piece := connection.recv(65536)):
                received += piece
    return (int(received.split(b" ", 2)[1]) if received else 0), received


def is_complete(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


def test_truncated_body(strict: Gateway) -> None:
    """The client promises more than it sends and closes its side: it is told so."""
    head = (
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n" % CHAT.encode()
    )
    status, answer = raw_answer(strict, head + b'{"model":', then_shut=True)
    assert status == 400
    assert b"truncated" in answer
    assert chat(strict, messages=[])[0] == 400


def test_slow_body(strict: Gateway) -> None:
    head = (
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n" % CHAT.encode()
    )
    status, answer = raw_answer(strict, head + b'{"model":')
    assert status == 408
    assert b"request_timeout" in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http(strict: Gateway, sent: bytes) -> None:
    status, _ = raw_answer(strict, sent)
    assert status == 0 or 400 <= status < 600
    assert status < 500 or status == 505
