"""HTTP/1.1 as bytes on a socket."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from dynamo.frontend.server import http1
from dynamo.frontend.server.http1 import Http1Connection
from tests.frontend.server.conftest import Serve, Served
from tests.support.waiting import until

POST = b"POST /echo?a=1&b=%20 HTTP/1.1\r\nHost: here\r\nX-Note: hi\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /echo HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nx-trailer: t\r\n\r\n"
)


def get(path: str, extra: str = "", version: str = "1.1") -> bytes:
    return f"GET {path} HTTP/{version}\r\nhost: here\r\n{extra}\r\n".encode()


def _only(served: Served) -> Http1Connection:
    """The connection of the only client, to look at what it holds."""
    (connection,) = served.server._connections
    assert isinstance(connection, Http1Connection)
    return connection


# ---- what an exchange says


async def test_the_handler_sees_the_request(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(POST)
    answer = await client.answer()
    assert answer.status == 200
    assert answer.json == {
        "method": "POST",
        "path": "/echo",
        "query": "a=1&b=%20",
        "version": "1.1",
        "scheme": "http",
        "note": "hi",
        "marked": {},
        "host": "here",
        "body": "hello",
    }
    assert answer.headers["x-request-id"] == "test"
    assert "GMT" in answer.headers["date"]
    assert "connection" not in answer.headers


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/%65cho", "/echo", ""),
        ("http://elsewhere/echo?x=%2F", "/echo", "x=%2F"),
        ("/echo??", "/echo", "?"),
    ],
)
async def test_targets(serve: Serve, target: str, path: str, query: str) -> None:
    client = await (await serve()).connect()
    client.send(get(target))
    seen = (await client.answer()).json
    assert (seen["path"], seen["query"]) == (path, query)


async def test_an_unknown_path_is_answered_by_the_applications_error(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(get("/no%20where"))
    answer = await client.answer()
    assert (answer.status, answer.message) == (404, "No route for /no where")


@pytest.mark.parametrize("request_bytes", [POST, CHUNKED, get("/stream")])
async def test_any_split_of_a_request_is_the_same_request(serve: Serve, request_bytes: bytes) -> None:
    served = await serve()
    client = await served.connect()
    client.send(request_bytes)
    whole = (await client.answer()).body
    for i in range(1, len(request_bytes)):
        client.send(request_bytes[:i])
        await asyncio.sleep(0.001)  # so that the parts arrive in reads of their own
        client.send(request_bytes[i:])
        assert (await client.answer()).body == whole
    await client.send_slowly(request_bytes)
    assert (await client.answer()).body == whole
    assert served.server.num_accepted == 1


# ---- streams


async def test_a_stream_is_chunked_and_the_connection_stays(serve: Serve) -> None:
    client = await (await serve()).connect()
    for _ in range(2):
        client.send(get("/stream"))
        answer = await client.answer()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.body == b"one two three"


async def test_an_aborted_stream_has_no_end(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/abort"))
    await served.app.entered.wait()
    served.app.released.set()
    with pytest.raises(asyncio.IncompleteReadError):
        await client.answer()


async def test_an_aborted_http10_stream_is_reset(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/abort", version="1.0"))
    await client.interim()
    served.app.released.set()
    with pytest.raises(ConnectionResetError):
        await client.reader.read()


async def test_a_slow_reader_stops_the_writer_and_memory_stays_bounded(serve: Serve) -> None:
    served = await serve()
    client = await served.connect(limit=1024)  # the client's reader stops reading at twice this
    client.send(get("/flood"))
    await served.app.unwritable.wait()
    assert _only(served)._transport.get_write_buffer_size() <= served.server.limits.high_water + 2 * 32 * 1024
    served.app.unwritable.clear()
    for _ in range(400):
        await client.reader.read(65536)
    await served.app.unwritable.wait()  # it went on while we read, and stopped again
    client.reset()
    await served.app.disconnected.wait()
    await served.app.left.wait()
    assert served.app.num_disconnects == 1


async def test_all_writers_of_one_answer_go_on_when_the_client_reads(serve: Serve) -> None:
    served = await serve()
    client = await served.connect(limit=1024)
    client.send(get("/flood-of-several", "connection: close\r\n"))
    await served.app.unwritable.wait()
    async with asyncio.timeout(20):
        assert len((await client.answer()).body) == 3 * 2 * 64 * 32 * 1024


async def test_a_client_that_reads_nothing_is_cut_off(serve: Serve) -> None:
    served = await serve(stall_timeout_s=0.2)
    client = await served.connect(limit=1024)
    client.send(get("/flood"))
    await served.app.disconnected.wait()
    await served.app.left.wait()


async def test_a_large_answer_arrives_whole(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(get("/big", "connection: close\r\n"))
    assert len((await client.answer()).body) == 64 * 32 * 1024
    assert await client.is_closed()


# ---- persistence


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/stream") + POST + CHUNKED + get("/empty") + get("/early"))
    bodies = [(await client.answer()).body for _ in range(5)]
    assert bodies[0] == b"one two three"
    assert b'"hello"' in bodies[1]
    assert b'"hello"' in bodies[2]
    assert bodies[3:] == [b"", b"early"]
    assert served.app.num_entered == 5


async def test_many_pipelined_requests_are_held_back_not_lost(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/hold") + get("/early") * 5000)
    await served.app.entered.wait()
    await until(lambda: _only(served)._is_reading_paused)
    assert len(_only(served)._waiting) <= http1.MAX_PIPELINED + http1.FEED_SIZE // len(get("/early"))
    served.app.released.set()
    assert (await client.answer()).body == b"held"
    for _ in range(5000):
        assert (await client.answer()).body == b"early"


async def test_a_run_of_pipelined_refusals_ends(serve: Serve) -> None:
    served = await serve(max_in_flight=0)
    client = await served.connect()
    client.send(POST * 500)
    for _ in range(500):
        assert (await client.answer()).status == 503


async def test_head_has_the_headers_and_no_body(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(b"HEAD /echo HTTP/1.1\r\nhost: here\r\n\r\n" + b"HEAD /stream HTTP/1.1\r\nhost: here\r\n\r\n")
    assert int((await client.answer("HEAD")).headers["content-length"]) > 0
    assert (await client.answer("HEAD")).headers["connection"] == "close"  # a stream's length is unknown
    assert await client.is_closed()


async def test_http10_closes_unless_asked_to_stay(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/early", "connection: keep-alive\r\n", "1.0"))
    assert (await client.answer()).headers["connection"] == "keep-alive"
    client.send(get("/early", version="1.0"))
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.is_closed()


async def test_a_http10_stream_ends_with_the_connection(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(get("/stream", "connection: keep-alive\r\n", "1.0"))
    answer = await client.answer()
    assert "transfer-encoding" not in answer.headers
    assert answer.body == b"one two three"


async def test_connection_close_is_obeyed_and_what_follows_is_ignored(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/early", "connection: close\r\n") + get("/early"))
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.is_closed()
    assert served.app.num_entered == 1


async def test_an_idle_connection_is_closed_without_a_word(serve: Serve) -> None:
    served = await serve(idle_timeout_s=0.2)
    client = await served.connect()
    assert await client.is_closed()
    client = await served.connect()
    client.send(get("/early"))
    await client.answer()
    assert await client.is_closed()


async def test_no_delay_is_set(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/early"))
    await client.answer()
    raw: socket.socket = _only(served)._transport.get_extra_info("socket")
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ---- bodies


async def test_expect_continue_is_answered_when_the_handler_wants_the_body(serve: Serve) -> None:
    client = await (await serve()).connect()
    head, body = POST.replace(b"X-Note: hi", b"Expect: 100-continue").split(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert await client.interim() == 100
    client.send(body)
    assert (await client.answer()).json["body"] == "hello"


async def test_expect_continue_is_not_answered_by_a_handler_without_interest(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(b"POST /early HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
    assert await client.interim() == 200


async def test_a_declared_body_over_the_limit_is_refused_before_it_is_sent(serve: Serve) -> None:
    served = await serve(max_body_bytes=10)
    client = await served.connect()
    client.send(b"POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n")
    assert await client.interim() == 413


@pytest.mark.parametrize("framing", ["content-length: 3000000", "transfer-encoding: chunked"])
async def test_a_client_that_sends_too_much_can_read_why(serve: Serve, framing: str) -> None:
    """The answer is not lost to a reset although the client goes on sending for a while."""
    served = await serve(max_body_bytes=100_000)
    client = await served.connect()
    client.send(f"POST /echo HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n".encode())
    for _ in range(300):
        client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n" if "chunked" in framing else b"x" * 10_000)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert "100000 bytes" in answer.message
    assert await client.is_closed()


async def test_a_body_at_the_limit_passes(serve: Serve) -> None:
    client = await (await serve(max_body_bytes=5)).connect()
    client.send(POST + CHUNKED)
    assert (await client.answer()).status == (await client.answer()).status == 200


async def test_a_body_that_does_not_arrive_in_time_is_named(serve: Serve) -> None:
    client = await (await serve(body_timeout_s=0.2)).connect()
    client.send(POST[:-1])
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "body did not arrive in time: after 4 bytes" in answer.message


async def test_a_long_body_may_take_longer_at_a_fair_rate(serve: Serve) -> None:
    client = await (await serve(body_timeout_s=0.2, min_body_rate=1)).connect()
    client.send(POST[:-1])  # 4 bytes earn 4 s more
    await asyncio.sleep(0.4)
    client.send(POST[-1:])
    assert (await client.answer()).status == 200


async def test_a_body_nobody_asked_for_is_not_collected(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(b"POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 40000000\r\n\r\n")
    await served.app.entered.wait()
    client.send(b"x" * 40_000_000)
    await until(lambda: _only(served)._is_reading_paused)
    current = _only(served)._current
    assert current is not None
    assert current.body_size < 1_000_000
    served.app.released.set()
    assert (await client.answer()).body == b"held"


@pytest.mark.parametrize("junk", [b"1;" + b"e" * 400_000, b"0\r\nx-trailer: " + b"t" * 400_000])
async def test_chunk_framing_without_content_is_bounded(serve: Serve, junk: bytes) -> None:
    client = await (await serve()).connect()
    client.send(b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
    await asyncio.sleep(0.01)
    for i in range(0, len(junk), 50_000):
        client.send(junk[i : i + 50_000])
        await asyncio.sleep(0.01)
    answer = await client.answer()
    assert answer.status == 400
    assert "framing" in answer.message


async def test_broken_chunks_fail_the_body(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
    answer = await client.answer()
    assert answer.status == 400
    assert "not valid HTTP" in answer.message
    assert await client.is_closed()


@pytest.mark.parametrize("request_bytes", [POST, CHUNKED, get("/echo")])
async def test_an_upgrade_is_declined_and_the_body_stays_a_body(serve: Serve, request_bytes: bytes) -> None:
    """Java's client offers h2c with every first request; what follows such a head must not be taken for requests."""
    served = await serve()
    client = await served.connect()
    offer = b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    request_bytes = request_bytes.replace(b"\r\n", offer, 1)
    client.send(request_bytes + request_bytes + get("/early"))
    bodies = [(await client.answer()).body for _ in range(3)]
    assert bodies[0] == bodies[1]
    assert bodies[2] == b"early"
    await client.send_slowly(request_bytes + get("/early"))
    assert (await client.answer()).body == bodies[0]
    assert (await client.answer()).body == b"early"


# ---- what is refused


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        (b"NONSENSE\r\n\r\n", 400, "not valid HTTP"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "host"),
        (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", 400, "HTTP/2.0"),
        (b"GET /\r\n\r\n", 400, "HTTP/0.9"),
        (b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", 400, "CONNECT"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n folded\r\n\r\n", 400, "not valid HTTP"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414, "8192 bytes"),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431, "100 headers"),
        (b"GET / HTTP/1.1\r\nhost: a\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431, "65536 bytes"),
    ],
)
async def test_bad_heads(serve: Serve, request_bytes: bytes, status: int, reason: str) -> None:
    served = await serve()
    client = await served.connect()
    client.send(request_bytes)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32
    assert reason in answer.message
    assert served.app.num_entered == 0
    client.writer.write_eof()
    assert await client.is_closed()


SMUGGLED = b"GET /early HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        b"content-length: 4\r\ncontent-length: 5\r\n",
        b"content-length: 4\r\ncontent-length: 4\r\n",
        b"content-length: +4\r\n",
        b"content-length: 4, 4\r\n",
        b"content-length: 0x4\r\n",
        b"content-length : 4\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding:\x0bchunked\r\n",
        b"transfer-encoding\r\n: chunked\r\n",
        b"x: y\r\rtransfer-encoding: chunked\r\n",
    ],
)
async def test_ambiguous_framing_is_refused_and_nothing_after_it_is_a_request(serve: Serve, headers: bytes) -> None:
    served = await serve()
    client = await served.connect()
    client.send(b"POST /echo HTTP/1.1\r\nhost: a\r\n" + headers + b"\r\n0\r\n\r\n" + SMUGGLED)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert served.app.num_entered == 0


async def test_a_chunked_http10_request_is_refused(serve: Serve) -> None:
    client = await (await serve()).connect()
    client.send(CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await client.answer()).status == 400


@pytest.mark.parametrize("unfinished", [b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\nx: ", b"\r\nG"])
async def test_a_head_that_does_not_arrive_in_time_is_named(serve: Serve, unfinished: bytes) -> None:
    client = await (await serve(head_timeout_s=0.2)).connect()
    client.send(unfinished)
    answer = await client.answer()
    assert answer.status == 408
    assert "headers did not arrive within 0.2 s" in answer.message


async def test_a_trickled_head_gets_no_extra_time(serve: Serve) -> None:
    client = await (await serve(head_timeout_s=0.2)).connect()

    async def trickle() -> None:
        while True:
            client.send(b"x")
            await asyncio.sleep(0.02)

    client.send(b"GET / HTTP/1.1\r\nx: ")
    trickling = asyncio.create_task(trickle())
    assert (await client.answer()).status == 408
    trickling.cancel()


async def test_a_trickled_endless_header_is_bounded(serve: Serve) -> None:
    client = await (await serve(max_head_bytes=10_000)).connect()
    client.send(b"GET / HTTP/1.1\r\nx: ")
    for _ in range(11):
        await asyncio.sleep(0.01)
        client.send(b"y" * 1000)
    assert (await client.answer()).status == 431


async def test_a_bad_request_behind_a_good_one_waits_its_turn(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/hold") + b"NONSENSE\r\n\r\n")
    await served.app.entered.wait()
    served.app.released.set()
    assert (await client.answer()).body == b"held"
    assert (await client.answer()).status == 400


async def test_random_bytes_end_in_a_4xx_or_a_close(serve: Serve) -> None:
    served = await serve(head_timeout_s=0.3, body_timeout_s=0.3)
    rng = random.Random(20)
    for _ in range(200):
        client = await served.connect()
        client.send(_garbage(rng))
        client.send(b"\r\n\r\n")
        try:
            answer = await client.answer()
            assert answer.status in (200, 204) or 400 <= answer.status < 500
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        client.reset()


def _garbage(rng: random.Random) -> bytes:
    """Noise, or a good request with some bytes changed, dropped or doubled."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(1, 300))
    data = bytearray(rng.choice([POST, CHUNKED, get("/early"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(data)


# ---- the client's ends


@pytest.mark.parametrize("how", ["close", "reset", "half close"])
async def test_a_client_that_goes_before_the_answer_is_noticed(serve: Serve, how: str) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/wait"))
    await served.app.entered.wait()
    match how:
        case "close":
            await client.close()
        case "reset":
            client.reset()
        case "half close":
            client.writer.write_eof()
    await served.app.left.wait()
    assert served.app.num_disconnects == 1


async def test_a_client_that_goes_within_its_body_is_noticed(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(POST[:-1])
    await served.app.entered.wait()
    await client.close()
    await served.app.left.wait()
    assert served.app.body_error is not None
    assert (served.app.body_error.status, served.app.body_error.code) == (400, "truncated")
    await until(lambda: not served.server.num_connections)


async def test_the_end_of_a_client_after_its_answer_is_no_disconnect(serve: Serve) -> None:
    served = await serve()
    client = await served.connect()
    client.send(get("/early"))
    await client.answer()
    await client.close()
    await until(lambda: not served.server.num_connections)
    assert served.app.num_disconnects == 0


# ---- handlers that fail


@pytest.mark.parametrize("path", ["/crash", "/silent"])
async def test_a_handler_that_fails_is_a_500(serve: Serve, path: str, caplog: pytest.LogCaptureFixture) -> None:
    client = await (await serve()).connect()
    client.send(get(path) + get("/early"))
    answer = await client.answer()
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    assert (await client.answer()).body == b"early"
    assert path in caplog.text
