"""A worker that only replays: every answer was encoded at start-up, so what is measured is the frontend.

    python -m bench.replay_worker --model-dir DIR --store DIR --modes burst,paced

Each mode is a model of that name on an endpoint of its own; cards of those that end with "parsed" name parsers. `burst`
sends one token per frame as fast as the socket takes them, a few frames per write; `paced` sends the first token 5 ms
after the request and then one every 5 ms. The request's `max_tokens` is the length of the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import blake3
import msgspec
import uvloop

from bench import model
from dynamo.shared import framing
from dynamo.shared.discovery import CARDS, INSTANCES, key_of
from dynamo.shared.protocol import CallHome, ControlMessage, Handshake, Prologue

MODES = {"burst": 0.0, "paced": 0.005, "burst parsed": 0.0, "paced parsed": 0.005}  # seconds between tokens
PARSERS = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}  # of the modes that end with "parsed"
NUM_WORDS = 1024  # longest answer
FRAMES_PER_WRITE = 8
HEARTBEAT_S = 3.0  # the store drops entries that were not touched for 10 s
NAMESPACE, ENDPOINT = "bench", "generate"

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode
_PROLOGUE = framing.encode_two_part(_encode_json(Prologue()))
_END = framing.encode_two_part(b"", _encode_msgpack({"complete_final": True})) + framing.encode_two_part(
    framing.SENTINEL
)


class _StopConditions(msgspec.Struct):
    max_tokens: int


class _Request(msgspec.Struct):
    """The one field of a PreprocessedRequest that decides the answer."""

    stop_conditions: _StopConditions


_decode_request = msgspec.msgpack.Decoder(_Request).decode
_decode_control = msgspec.json.Decoder(ControlMessage).decode
_decode_call_home = msgspec.json.Decoder(CallHome).decode


class Script:
    """What is sent for an answer of n tokens, as the pieces of one write each; the last piece ends the stream."""

    def __init__(self, token_ids: Sequence[int], frames_per_write: int) -> None:
        self._frames_per_write = frames_per_write
        self._frames = [_frame(token_ids=[token_id]) for token_id in token_ids]
        self._last_frames = [_frame(token_ids=[token_id], finish_reason="length") for token_id in token_ids]
        self.pieces = functools.lru_cache(maxsize=64)(self._pieces)

    def _pieces(self, num_tokens: int) -> list[bytes]:
        frames = [*self._frames[: num_tokens - 1], self._last_frames[num_tokens - 1] + _END]
        size = self._frames_per_write
        return [b"".join(frames[i : i + size]) for i in range(0, num_tokens, size)]


def _frame(**output: Any) -> bytes:
    return framing.encode_two_part(b"", _encode_msgpack({"data": {"data": output}, "complete_final": False}))


class Answer:
    """One response socket. Plain socket calls: an answer fits the send buffer, so nothing is ever queued here."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, call_home: CallHome, pieces: Sequence[bytes], pace_s: float
    ) -> None:
        host, port = call_home.address.rsplit(":", 1)
        self._socket = socket.socket()
        self._socket.connect((host, int(port)))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._pieces = iter(pieces)
        self._pace_s = pace_s
        self._due = loop.time()
        self._send(framing.encode_two_part(_encode_json(Handshake(call_home.subject))) + _PROLOGUE)
        loop.add_reader(self._socket, self._on_readable)
        self._schedule()

    def _schedule(self) -> None:
        if self._pace_s:
            self._due += self._pace_s
            self._timer: asyncio.Handle = self._loop.call_at(self._due, self._send_piece)
        else:
            self._timer = self._loop.call_soon(self._send_piece)

    def _send_piece(self) -> None:
        if (piece := next(self._pieces, None)) is not None:
            self._send(piece)
            self._schedule()

    def _send(self, data: bytes) -> None:
        if self._socket.send(data) != len(data):
            raise RuntimeError("bench worker: the frontend reads too slowly for an answer to fit the send buffer")

    def _on_readable(self) -> None:
        """The frontend closes after the sentinel; before it, it cancels with a control frame or a reset."""
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()


class RequestConnection(asyncio.Protocol):
    """A pooled connection of a frontend: requests in, acks out, answers on sockets of their own."""

    def __init__(self, scripts: dict[bytes, tuple[Script, float]]) -> None:
        self._scripts = scripts
        self._decoder = framing.RequestDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        for path, _headers, payload in self._decoder.push(data):
            self._transport.write(framing.encode_ack())
            self._answer(path, payload)

    def _answer(self, path: bytes, payload: bytes) -> None:
        start = framing.TWO_PART_PREFIX.size
        header_end = start + framing.TWO_PART_PREFIX.unpack_from(payload)[0]
        call_home = _decode_call_home(_decode_control(payload[start:header_end]).connection_info.info)
        request = _decode_request(memoryview(payload)[header_end:])
        script, pace_s = self._scripts[path]
        Answer(self._loop, call_home, script.pieces(request.stop_conditions.max_tokens), pace_s)


def _component(mode: str) -> str:
    return mode.replace(" ", "-")


class Registration:
    """The entries of this worker in a file store: written once, then touched until the process ends."""

    def __init__(self, store: Path, model_dir: Path) -> None:
        self._store = store
        self._model_dir = model_dir
        self._files: list[Path] = []
        self._instance_ids = {mode: secrets.randbits(63) for mode in MODES}

    def path_of(self, mode: str) -> str:
        return f"{self._instance_ids[mode]:x}/{NAMESPACE}/{_component(mode)}/{ENDPOINT}"

    def add(self, mode: str, port: int) -> None:
        endpoint = {
            "namespace": NAMESPACE,
            "component": _component(mode),
            "endpoint": ENDPOINT,
            "instance_id": self._instance_ids[mode],
        }
        transport = {"tcp": f"127.0.0.1:{port}/{self.path_of(mode)}"}
        instance = {"type": "Endpoint", **endpoint, "transport": transport, "request_plane_codec": "msgpack"}
        self._put(INSTANCES, mode, instance)
        self._put(CARDS, mode, {"type": "Model", **endpoint, "card_json": self._card(mode)})

    def touch(self) -> None:
        for file in self._files:
            os.utime(file)

    def _put(self, bucket: str, mode: str, value: dict[str, Any]) -> None:
        key = key_of(NAMESPACE, _component(mode), ENDPOINT, self._instance_ids[mode])
        folder = self._store / bucket
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".tmp_{secrets.token_hex(8)}"
        temporary.write_bytes(_encode_json(value))
        self._files.append(temporary.rename(folder / quote(key, safe="")))

    def _card(self, mode: str) -> dict[str, Any]:
        return {
            "display_name": mode,
            "slug": _component(mode),
            "source_path": str(self._model_dir),
            "model_info": {"hf_config_json": self._file_ref("config.json")},
            "tokenizer": {"hf_tokenizer_json": self._file_ref("tokenizer.json")},
            "prompt_formatter": {"hf_tokenizer_config_json": self._file_ref("tokenizer_config.json")},
            "gen_config": {"hf_generation_config_json": self._file_ref("generation_config.json")},
            "architectural_max_context_length": model.MAX_CONTEXT,
            "context_length": 0,
            "kv_cache_block_size": 64,
            "migration_limit": 0,
            "model_type": "Chat | Completions",
            "model_input": "Tokens",
            "worker_type": "aggregated",
            "needs": [],
            "runtime_config": {
                "total_kv_blocks": 16384,
                "max_num_seqs": 256,
                "max_num_batched_tokens": 8192,
                **(PARSERS if mode.endswith("parsed") else {}),
            },
        }

    def _file_ref(self, name: str) -> dict[str, Any]:
        data = (self._model_dir / name).read_bytes()
        return {
            "path": str(self._model_dir / name),
            "checksum": f"blake3:{blake3.blake3(data).hexdigest()}",
            "size": len(data),
        }


async def serve(model_dir: Path, store: Path, modes: Sequence[str]) -> None:
    token_ids = [token_id for token_id, _text in model.words(model_dir, NUM_WORDS)]
    registration = Registration(store, model_dir)
    scripts = {
        registration.path_of(mode).encode(): (Script(token_ids, 1 if MODES[mode] else FRAMES_PER_WRITE), MODES[mode])
        for mode in modes
    }
    server = await asyncio.get_running_loop().create_server(lambda: RequestConnection(scripts), "127.0.0.1", 0)
    for mode in modes:
        registration.add(mode, server.sockets[0].getsockname()[1])
    while True:
        registration.touch()
        await asyncio.sleep(HEARTBEAT_S)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.replay_worker")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--modes", default="burst,paced")
    args = parser.parse_args()
    uvloop.run(serve(args.model_dir.resolve(), args.store, args.modes.split(",")))


if __name__ == "__main__":
    main()
