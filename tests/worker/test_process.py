"""`python -m dynamo.worker`, as supervisors and shells start it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dynamo.shared.config import ConfigError
from dynamo.shared.discovery import CARDS, EVENT_SOURCES, Deleted, Put
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.worker import DEMO_MODEL_DIR
from dynamo.worker.config import WorkerConfig
from tests.worker.frontend import TIMEOUT_S, instance_in, open_frontend

REQUEST = {"token_ids": [5, 6, 7], "stop_conditions": {"max_tokens": 4}}


class Worker:
    def __init__(self, process: asyncio.subprocess.Process, ready: asyncio.StreamReader, store: FileDiscovery) -> None:
        self.process = process
        self.ready = ready
        self.store = store

    async def target(self) -> str:
        return (await instance_in(self.store)).transport["tcp"]

    async def exit_code(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()

    async def withdrawn(self) -> None:
        """Until there is no card."""
        async with asyncio.timeout(TIMEOUT_S):
            async for changes in self.store.watch(CARDS):
                if not changes or isinstance(changes[-1], Deleted):
                    return

    async def entries(self, bucket: str) -> list[str]:
        return list(await self._content(bucket))

    async def values(self, bucket: str) -> list[bytes]:
        return list((await self._content(bucket)).values())

    async def _content(self, bucket: str) -> dict[str, bytes]:
        async for changes in self.store.watch(bucket):
            return {change.key: change.value for change in changes if isinstance(change, Put)}
        raise AssertionError("the watch ended")


@asynccontextmanager
async def worker(root: Path, *flags: str, options: dict[str, object] | None = None) -> AsyncIterator[Worker]:
    """A worker that has said that it is ready."""
    read_fd, write_fd = os.pipe()
    arguments = ["-m", "dynamo.worker", "--store-kv", "file", "--ready-fd", str(write_fd), *flags]
    environment = {**os.environ, "DYN_FILE_KV": str(root)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, pass_fds=[write_fd], env=environment
    )
    os.close(write_fd)
    assert process.stdin is not None
    if options is not None:
        process.stdin.write(json.dumps(options).encode() + b"\n")
    ready = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(ready), os.fdopen(read_fd, "rb")
    )
    store = FileDiscovery(root)
    await store.open()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert await ready.read() == b"ready\n"
        yield Worker(process, ready, store)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        transport.close()
        await store.close()


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")


async def test_flags_a_request_and_a_signal(tmp_path: Path) -> None:
    flags = ("--engine", "mocker", "--speedup-ratio", "0", "--model-name", "mine", "--endpoint", "dyn://a.b.generate")
    async with worker(tmp_path, *flags) as running, open_frontend() as frontend:
        target = await running.target()
        assert target.endswith("/a/b/generate")
        assert len(await running.entries(CARDS)) == 1
        answer = await frontend.ask_to_end(target, REQUEST)
        assert sum(len(item["token_ids"]) for item in answer.items) == 4
        assert title_of(running.process.pid) == "dynamo::worker"
        running.process.send_signal(signal.SIGTERM)
        assert await running.exit_code() == 0
        assert await running.entries(CARDS) == []


@pytest.mark.parametrize(
    ("flags", "publishes", "num_ranks"),
    [((), True, 1), (("--no-kv-events",), False, 1), (("--data-parallel-size=2", "--event-plane=zmq"), True, 2)],
)
async def test_the_card_says_whether_routers_hear_of_blocks(
    tmp_path: Path, flags: tuple[str, ...], publishes: bool, num_ranks: int
) -> None:
    async with worker(tmp_path, *flags) as running:
        [card] = await running.values(CARDS)
        config = json.loads(card)["card_json"]["runtime_config"]
        assert config["kv_event_publishing_enabled"] == config["enable_local_indexer"] == publishes
        assert config["data_parallel_size"] == num_ranks
        assert len(await running.entries(EVENT_SOURCES)) == num_ranks * publishes


async def test_a_signal_lets_running_requests_finish(tmp_path: Path) -> None:
    flags = ("--engine", "echo", "--delay-ms", "50")
    async with worker(tmp_path, *flags) as running, open_frontend() as frontend:
        answer = await frontend.ask(await running.target(), {"token_ids": list(range(20))})
        await answer.until(2)
        running.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_S):
            await answer.ended.wait()
        assert len(answer.items) == 21
        assert answer.is_complete
        assert await running.exit_code() == 0


async def test_options_on_stdin_whose_end_is_the_end(tmp_path: Path) -> None:
    options: dict[str, object] = {"engine": "echo", "tokens_per_frame": 2, "model_name": "from-stdin"}
    async with worker(tmp_path, "--config-stdin", options=options) as running, open_frontend() as frontend:
        answer = await frontend.ask_to_end(await running.target(), REQUEST)
        assert [item["token_ids"] for item in answer.items] == [[5, 6], [7], []]
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert await running.exit_code() == 0


async def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with worker(tmp_path, "--engine", "echo", "--delay-ms", "60000") as running, open_frontend() as frontend:
        answer = await frontend.ask(await running.target(), REQUEST)
        await frontend.until_acks(1)
        running.process.send_signal(signal.SIGINT)
        await running.withdrawn()
        running.process.send_signal(signal.SIGTERM)
        assert await running.exit_code() == -signal.SIGTERM
        assert not answer.data


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nothing\n", "expected one line with a JSON object"),
        (b"", "expected one line with a JSON object"),
        (b'{"colour": "red"}\n', "'colour' is not an option"),
        (b'{"block_size": "big"}\n', "block_size: Expected `int`"),
        (b'{"block_size": 0}\n', "block"),
        (b'{"engine": "steam"}\n', "engine"),
    ],
)
def test_options_that_do_not_fit(line: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorkerConfig().updated(line)


def test_the_demo_model_is_the_default() -> None:
    config = WorkerConfig().updated(b'{"num_blocks": 7}')
    assert (config.model_path, config.num_blocks) == (str(DEMO_MODEL_DIR), 7)


async def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dynamo.worker", "--store-kv", "file", "--model-path", str(tmp_path)),
        env={**os.environ, "DYN_FILE_KV": str(tmp_path / "kv")},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        _, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr.decode().splitlines()[-1].startswith(f"dynamo-worker: {tmp_path} has no config.json")
    assert b"Traceback" not in stderr
