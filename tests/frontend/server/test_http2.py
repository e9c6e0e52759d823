"""HTTP/2: real clients (httpx over TLS, curl in clear text if there is one), and frames made with h2 and hyperframe."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from typing import Any

import h2.connection
import h2.events
import httpx
import pytest
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from dynamo.frontend.server.http2 import PREFACE, STREAM_WINDOW, Http2Connection
from tests.frontend.server.conftest import Certificate, Serve, Served
from tests.frontend.server.raw_client import RawClient
from tests.support.waiting import until

CURL_WITHOUT_HTTP2 = 2  # "failed to initialize": an option it was not built for
POST_ECHO = [(":method", "POST"), (":path", "/echo"), (":scheme", "http"), (":authority", "here")]


class FrameClient:
    """An h2 client whose every event is kept, by stream."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.h2 = h2.connection.H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
        self.events: list[h2.events.Event] = []
        self.is_reading_data = True  # else windows are not given back
        self.next_id = 1
        self.h2.initiate_connection()
        self.flush()

    @classmethod
    async def connect(cls, served: Served) -> FrameClient:
        return cls(await served.connect())

    def flush(self) -> None:
        self.raw.send(self.h2.data_to_send())

    def request(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> int:
        stream_id, self.next_id = self.next_id, self.next_id + 2
        fields = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "here"), *headers.items()]
        self.h2.send_headers(stream_id, fields, end_stream=body is None)
        if body is not None:
            self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()
        return stream_id

    async def read(self) -> bool:
        """Take in what one read brings; False at the end of the connection."""
        try:
            data = await self.raw.reader.read(65536)
        except ConnectionResetError:
            return False
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived) and self.is_reading_data:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.flush()
        return bool(data)

    async def until(self, kind: type, stream_id: int | None = None) -> Any:
        while True:
            for event in self.events:
                if isinstance(event, kind) and (stream_id is None or getattr(event, "stream_id", None) == stream_id):
                    return event
            assert await self.read(), f"the connection ended before {kind.__name__}"

    async def answer(self, stream_id: int) -> tuple[int, bytes]:
        await self.until(h2.events.StreamEnded, stream_id)
        (head,) = self._of(h2.events.ResponseReceived, stream_id)
        body = b"".join(event.data for event in self._of(h2.events.DataReceived, stream_id))
        return int(dict(head.headers)[b":status"]), body

    def _of(self, kind: type, stream_id: int) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind) and getattr(e, "stream_id", None) == stream_id]

    def num_data(self, stream_id: int) -> int:
        return sum(len(event.data) for event in self._of(h2.events.DataReceived, stream_id))


def _only(served: Served) -> Http2Connection:
    (connection,) = served.server._connections
    assert isinstance(connection, Http2Connection)
    return connection


async def test_alpn_chooses_the_protocol(serve: Serve, certificate: Certificate) -> None:
    served = await serve(tls=certificate.server_context())
    for is_http2 in (True, False):
        async with httpx.AsyncClient(
            verify=certificate.client_context, http2=is_http2, base_url=f"https://localhost:{served.port}"
        ) as client:
            answer = await client.post("/echo?q", content=b"hello", headers={"x-note": "hi"})
            assert answer.http_version == ("HTTP/2" if is_http2 else "HTTP/1.1")
            assert answer.json() == {
                "method": "POST",
                "path": "/echo",
                "query": "q",
                "version": "2" if is_http2 else "1.1",
                "scheme": "https",
                "note": "hi",
                "marked": {},
                "host": f"localhost:{served.port}",
                "body": "hello",
            }
            bodies = await asyncio.gather(*(client.get(path) for path in ["/stream", "/big", "/early"] * 10))
            assert Counter(len(body.content) for body in bodies) == {13: 10, 2097152: 10, 5: 10}
            assert (await client.head("/echo")).content == b""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_with_prior_knowledge(serve: Serve) -> None:
    served = await serve()
    url = f"http://127.0.0.1:{served.port}/echo"
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-s", "--http2-prior-knowledge", "-d", "hello", url, "-w", "%{http_version}"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await curl.communicate()
    if curl.returncode == CURL_WITHOUT_HTTP2:
        pytest.skip("this curl has no HTTP/2")
    assert b'"body": "hello"' in output
    assert output.endswith(b"2")


async def test_the_preface_may_come_in_any_pieces(serve: Serve) -> None:
    raw = await (await serve()).connect()
    await raw.send_slowly(PREFACE + SettingsFrame(0).serialize())
    assert (await raw.reader.readexactly(9))[3] == SettingsFrame.type


async def test_exchanges_are_multiplexed(serve: Serve) -> None:
    served = await serve()
    client = await FrameClient.connect(served)
    held = client.request("/hold")
    assert await client.answer(client.request("/stream")) == (200, b"one two three")
    assert await client.answer(client.request("/empty")) == (204, b"")
    status, body = await client.answer(client.request("/echo", "POST", b"x" * 16_000))
    assert (status, len(body) > 16_000) == (200, True)
    served.app.released.set()
    assert await client.answer(held) == (200, b"held")
    assert not _only(served)._exchanges


async def test_a_body_larger_than_the_window_arrives(serve: Serve) -> None:
    client = await FrameClient.connect(await serve())
    await client.until(h2.events.RemoteSettingsChanged)
    body = b"x" * 3_000_000
    client.h2.send_headers(1, POST_ECHO)
    while body:
        size = min(client.h2.local_flow_control_window(1), client.h2.max_outbound_frame_size, len(body))
        if size:
            client.h2.send_data(1, body[:size], end_stream=size == len(body))
            body = body[size:]
            client.flush()
        else:
            await client.read()
    status, answer = await client.answer(1)
    assert (status, len(answer) > 3_000_000) == (200, True)


async def test_a_body_nobody_asked_for_gets_one_window(serve: Serve) -> None:
    served = await serve()
    client = await FrameClient.connect(served)
    await client.until(h2.events.RemoteSettingsChanged)
    client.h2.send_headers(1, [(":method", "POST"), (":path", "/hold"), (":scheme", "http"), (":authority", "here")])
    for _ in range(STREAM_WINDOW // 16384):
        client.h2.send_data(1, b"x" * 16384)
    client.flush()
    await served.app.entered.wait()
    await until(lambda: _only(served)._exchanges[1].body_size == STREAM_WINDOW)
    assert client.h2.local_flow_control_window(1) == 0
    served.app.released.set()
    assert await client.answer(1) == (200, b"held")
    reset = await client.until(h2.events.StreamReset, 1)
    assert reset.error_code == ErrorCodes.NO_ERROR


async def test_an_oversized_body_is_refused(serve: Serve) -> None:
    client = await FrameClient.connect(await serve(max_body_bytes=10))
    status, body = await client.answer(client.request("/echo", "POST", b"x" * 11))
    assert (status, b"10 bytes" in body) == (413, True)


async def test_a_late_body_is_named(serve: Serve) -> None:
    client = await FrameClient.connect(await serve(body_timeout_s=0.2))
    client.h2.send_headers(1, POST_ECHO)
    client.h2.send_data(1, b"hel")
    client.flush()
    status, body = await client.answer(1)
    assert (status, b"after 3 bytes" in body) == (408, True)


async def test_a_client_without_window_stops_the_writer(serve: Serve) -> None:
    served = await serve()
    client = await FrameClient.connect(served)
    client.is_reading_data = False
    stream_id = client.request("/flood")
    await served.app.unwritable.wait()
    assert len(_only(served)._exchanges[stream_id].unsent) <= served.server.limits.high_water + 32 * 1024
    while client.num_data(stream_id) < 65535:
        await client.read()
    served.app.unwritable.clear()
    client.h2.increment_flow_control_window(1_000_000)
    client.h2.increment_flow_control_window(1_000_000, stream_id)
    client.flush()
    await served.app.unwritable.wait()  # it went on, and stopped again
    client.h2.reset_stream(stream_id)
    client.flush()
    await served.app.disconnected.wait()
    await served.app.left.wait()


async def test_a_client_that_never_gives_window_is_cut_off(serve: Serve) -> None:
    served = await serve(stall_timeout_s=0.2)
    client = await FrameClient.connect(served)
    client.is_reading_data = False
    stream_id = client.request("/flood")
    reset = await client.until(h2.events.StreamReset, stream_id)
    assert reset.error_code == ErrorCodes.CANCEL
    await served.app.left.wait()
    assert served.app.num_disconnects == 1


@pytest.mark.parametrize("how", ["reset", "close", "goaway"])
async def test_a_client_that_goes_is_noticed(serve: Serve, how: str) -> None:
    served = await serve()
    client = await FrameClient.connect(served)
    stream_id = client.request("/wait")
    await served.app.entered.wait()
    match how:
        case "reset":
            client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        case "goaway":
            client.h2.close_connection()
        case "close":
            await client.raw.close()
    if how != "close":
        client.flush()
    await served.app.left.wait()
    assert served.app.num_disconnects == 1


async def test_an_aborted_stream_is_reset(serve: Serve) -> None:
    served = await serve()
    client = await FrameClient.connect(served)
    stream_id = client.request("/abort")
    served.app.released.set()
    reset = await client.until(h2.events.StreamReset, stream_id)
    assert reset.error_code == ErrorCodes.INTERNAL_ERROR


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(":path", "/" + "a" * 9000)], 414),
        ([(":path", "/early"), *[(f"h{i}", "") for i in range(101)]], 431),
        ([(":path", "/nowhere")], 404),
        ([(":path", "/crash")], 500),
    ],
)
async def test_refusals(serve: Serve, fields: list[tuple[str, str]], status: int) -> None:
    client = await FrameClient.connect(await serve())
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "here")]
    client.h2.send_headers(1, head + fields, end_stream=True)
    client.flush()
    assert (await client.answer(1))[0] == status
    client.next_id = 3
    assert await client.answer(client.request("/early")) == (200, b"early")


async def test_a_header_list_over_the_limit_ends_the_connection(serve: Serve) -> None:
    client = await FrameClient.connect(await serve())
    client.request("/early", note="x" * 30_000, other="y" * 30_000, third="z" * 30_000)
    end = await client.until(h2.events.ConnectionTerminated)
    assert end.error_code != ErrorCodes.NO_ERROR


async def test_more_streams_than_allowed_end_the_connection(serve: Serve) -> None:
    client = await FrameClient.connect(await serve(max_streams=4))
    client.h2.remote_settings.max_concurrent_streams = 100  # a client that does not listen
    for _ in range(5):
        client.request("/hold")
    await client.until(h2.events.ConnectionTerminated)


async def test_rapid_resets_end_the_connection(serve: Serve) -> None:
    served = await serve()
    client = await FrameClient.connect(served)
    for _ in range(110):
        stream_id = client.request("/hold")
        client.h2.reset_stream(stream_id)
    client.flush()
    end = await client.until(h2.events.ConnectionTerminated)
    assert end.error_code == ErrorCodes.ENHANCE_YOUR_CALM
    await until(lambda: not served.server.num_connections)
    assert served.app.num_entered <= 110


async def test_a_flood_of_pings_ends_the_connection(serve: Serve) -> None:
    client = await FrameClient.connect(await serve())
    client.raw.send(PingFrame(0, opaque_data=b"12345678").serialize() * 1100)
    end = await client.until(h2.events.ConnectionTerminated)
    assert end.error_code == ErrorCodes.ENHANCE_YOUR_CALM


async def test_an_idle_connection_is_told_and_closed(serve: Serve) -> None:
    client = await FrameClient.connect(await serve(idle_timeout_s=0.2))
    end = await client.until(h2.events.ConnectionTerminated)
    assert end.error_code == ErrorCodes.NO_ERROR
    assert not await client.read()


async def test_shutdown_says_so_and_finishes_what_is_in_flight(serve: Serve) -> None:
    served = await serve()
    client = await FrameClient.connect(served)
    stream_id = client.request("/hold")
    await served.app.entered.wait()
    closing = asyncio.create_task(served.server.close(5.0))
    data = await client.raw.reader.read(1000)
    while GoAwayFrame.type not in _frame_types(data):
        data += await client.raw.reader.read(1000)
    served.app.released.set()
    while chunk := await client.raw.reader.read(1000):
        data += chunk
    assert HeadersFrame.type in _frame_types(data)
    assert b"held" in data
    assert stream_id == 1
    await closing


def _frame_types(data: bytes) -> list[int]:
    types = []
    while len(data) >= 9:
        types.append(data[3])
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return types


async def test_random_frames_never_raise_into_the_loop(serve: Serve) -> None:
    served = await serve(idle_timeout_s=0.3, body_timeout_s=0.3)
    served.app.released.set()
    rng = random.Random(9)
    for _ in range(150):
        raw = await served.connect()
        client = FrameClient(raw)
        client.request("/echo", "POST", b"hello")
        raw.send(_noise(rng))
        raw.writer.write_eof()
        try:
            while await raw.reader.read(65536):
                pass
        except ConnectionResetError:
            pass


def _noise(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(100))
    frame = bytearray(RstStreamFrame(1).serialize() + HeadersFrame(3, data=rng.randbytes(40)).serialize())
    for _ in range(3):
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    return bytes(frame)
