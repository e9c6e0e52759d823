"""What both servers promise, and what only ours does: connections, caps, shutdown."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.frontend.server.conftest import Certificate, Serve, Served
from tests.frontend.server.raw_client import RawClient
from tests.support.waiting import until

HOLD = b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n"
EARLY = b"GET /early HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
BOTH = pytest.mark.parametrize("kind", ["native", "granian"])


async def in_flight(served: Served) -> RawClient:
    client = await served.connect()
    client.send(HOLD)
    await served.app.entered.wait()
    return client


@BOTH
async def test_one_exchange_is_the_same_over_both(serve: Serve, kind: str) -> None:
    served = await serve(kind)
    client = await served.connect()
    client.send(b"POST /%65cho?a=%20 HTTP/1.1\r\nhost: here\r\nX-Note: hi\r\ncontent-length: 5\r\n\r\nhello")
    answer = await client.answer()
    assert (answer.status, answer.headers["x-request-id"]) == (200, "test")
    assert answer.json == {
        "method": "POST",
        "path": "/echo",
        "query": "a=%20",
        "version": "1.1",
        "scheme": "http",
        "note": "hi",
        "marked": {},
        "host": "here",
        "body": "hello",
    }


@BOTH
async def test_headers_are_found_by_the_start_of_their_names(serve: Serve, kind: str) -> None:
    served = await serve(kind)
    client = await served.connect()
    client.send(
        b"POST /echo HTTP/1.1\r\nhost: a\r\nX-Mark-One: 1\r\nx-marker: 2\r\nx-Tag: 3\r\nx-tag: 4\r\n"
        b"content-length: 0\r\n\r\n"
    )
    assert (await client.answer()).json["marked"] == {"x-mark-one": "1", "x-tag": "3"}


@BOTH
async def test_streams_and_plain_answers_over_both(serve: Serve, kind: str) -> None:
    served = await serve(kind)
    client = await served.connect()
    for path, body in (("/stream", b"one two three"), ("/early", b"early"), ("/stream", b"one two three")):
        client.send(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        assert (await client.answer()).body == body
    client.send(b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n")
    assert (await client.answer()).message == "No route for /nowhere"
    client.send(b"GET /crash HTTP/1.1\r\nhost: a\r\n\r\n")
    assert (await client.answer()).status == 500


@BOTH
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_an_oversized_body_is_refused_by_both(serve: Serve, kind: str, framing: str) -> None:
    served = await serve(kind, max_body_bytes=4)
    client = await served.connect()
    chunked = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    client.send(chunked if framing == "chunked" else POST)
    answer = await client.answer()
    assert answer.status == 413
    assert "4 bytes" in answer.message


@BOTH
async def test_a_late_body_is_named_by_both(serve: Serve, kind: str) -> None:
    served = await serve(kind, body_timeout_s=0.2)
    client = await served.connect()
    client.send(POST[:-1])
    answer = await client.answer()
    assert answer.status == 408
    assert "after 4 bytes" in answer.message


@BOTH
async def test_a_client_that_goes_is_noticed_by_both(serve: Serve, kind: str) -> None:
    served = await serve(kind)
    client = await served.connect()
    client.send(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
    await served.app.entered.wait()
    await client.close()
    await served.app.left.wait()
    assert served.app.num_disconnects == 1


@BOTH
async def test_over_the_cap_is_a_503_but_probes_are_answered(serve: Serve, kind: str) -> None:
    served = await serve(kind, max_in_flight=1)
    await in_flight(served)
    client = await served.connect()
    client.send(POST)
    answer = await client.answer()
    assert (answer.status, answer.json["error"]["code"]) == (503, "at_capacity")
    assert int(answer.headers["retry-after"]) > 0
    assert len(answer.headers["x-request-id"]) == 32
    client.send(EARLY)
    assert (await client.answer()).body == b"early"


@BOTH
async def test_shutdown_finishes_what_is_in_flight(serve: Serve, kind: str) -> None:
    served = await serve(kind)
    client = await in_flight(served)
    closing = asyncio.create_task(served.server.close(grace_s=5.0))
    await asyncio.sleep(0.05)
    assert not closing.done()
    served.app.released.set()
    answer = await client.answer()
    assert answer.body == b"held"
    assert await client.is_closed()
    await closing
    assert served.server.num_in_flight == 0


@BOTH
async def test_shutdown_cuts_off_what_outlasts_the_grace(serve: Serve, kind: str) -> None:
    served = await serve(kind)
    client = await in_flight(served)
    await served.server.close(grace_s=0.1)
    assert served.app.left.is_set()
    answer = await client.answer()
    assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")
    assert await client.is_closed()


@BOTH
async def test_tls_over_both(serve: Serve, kind: str, certificate: Certificate) -> None:
    pair = (certificate.cert_path, certificate.key_path)
    served = await serve(kind, tls=certificate.server_context() if kind == "native" else pair)
    for is_http2 in (True, False):
        async with httpx.AsyncClient(
            verify=certificate.client_context, http2=is_http2, base_url=f"https://localhost:{served.port}"
        ) as client:
            answer = await client.post("/echo", content=b"hello")
            assert answer.json()["version"] == ("2" if is_http2 else "1.1")
            assert answer.json()["scheme"] == "https"


async def test_a_kept_alive_connection_is_told_of_the_shutdown(serve: Serve) -> None:
    served = await serve()
    idle, silent = await served.connect(), await served.connect()
    idle.send(EARLY)
    await idle.answer()
    client = await in_flight(served)
    client.send(EARLY)  # pipelined: the shutdown answers only what is being handled
    closing = asyncio.create_task(served.server.close(grace_s=5.0))
    assert await idle.is_closed()
    assert await silent.is_closed()
    late, mute = await served.connect(), await served.connect()
    late.send(EARLY)
    answer = await late.answer()
    assert (answer.body, answer.headers["connection"]) == (b"early", "close")
    served.app.released.set()
    answer = await client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"held", "close")
    assert await client.is_closed()
    assert await mute.is_closed()
    await closing
    with pytest.raises(ConnectionRefusedError):
        await served.connect()


async def test_a_stream_in_flight_at_shutdown_ends_whole(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n")
    await served.app.unwritable.wait()
    closing = asyncio.create_task(served.server.close(grace_s=5.0))
    await asyncio.sleep(0)
    served.app.released.set()
    assert len((await client.answer()).body) > 64 * 1024
    assert await client.is_closed()
    await closing


async def test_a_stream_that_outlasts_the_grace_has_no_end(serve: Serve) -> None:
    served = await serve()
    client = await served.connect(limit=1024)
    client.send(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n")
    await served.app.unwritable.wait()
    await served.server.close(grace_s=0.1)
    assert served.server.num_connections == 0
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await client.answer()


async def test_connections_over_the_cap_wait_for_room(serve: Serve) -> None:
    served = await serve(max_connections=2, idle_timeout_s=2.0)
    first, second = await served.connect(), await served.connect()
    for client in (first, second):
        client.send(EARLY)
        assert (await client.answer()).body == b"early"
    third = await served.connect()  # by the kernel, into the backlog
    third.send(EARLY)
    await asyncio.sleep(0.1)
    assert served.server.num_connections == 2
    await first.close()
    assert (await third.answer()).body == b"early"


async def test_a_server_can_be_closed_before_anyone_came(serve: Serve) -> None:
    served = await serve()
    await served.server.close(grace_s=1.0)
    await until(lambda: served.server.num_connections == 0)


async def test_a_slow_reader_behind_tls_stops_the_writer(serve: Serve, certificate: Certificate) -> None:
    served = await serve(tls=certificate.server_context(), stall_timeout_s=0.5)
    client = await served.connect(limit=1024, ssl=certificate.client_context, server_hostname="localhost")
    client.send(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n")
    await served.app.unwritable.wait()
    served.app.unwritable.clear()
    for _ in range(400):
        await client.reader.read(65536)
    await served.app.unwritable.wait()
    await served.app.disconnected.wait()  # for it reads no more
    await served.app.left.wait()
    await until(lambda: not served.server.num_connections)


async def test_a_refusal_behind_tls_can_be_read(serve: Serve, certificate: Certificate) -> None:
    served = await serve(tls=certificate.server_context(), max_body_bytes=4)
    client = await served.connect(ssl=certificate.client_context, server_hostname="localhost")
    client.send(POST)
    assert (await client.answer()).status == 413
    await client.close()
    await until(lambda: not served.server.num_connections)


async def test_what_is_not_tls_is_dropped(serve: Serve, certificate: Certificate) -> None:
    served = await serve(tls=certificate.server_context())
    client = await served.connect()
    client.send(EARLY)
    await client.reader.read()
    assert served.app.num_entered == 0
