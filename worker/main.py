"""`python -m dynamo.worker`: one of the built-in engines behind the SDK."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import setproctitle
import uvloop

from dynamo.shared.config import ConfigError
from dynamo.shared.discovery import DiscoveryError
from dynamo.shared.log import configure_logging
from dynamo.shared.runtime import DistributedRuntime, Endpoint, RuntimeClosed
from dynamo.worker.card import ModelDirectoryError, max_context_length
from dynamo.worker.config import WorkerConfig
from dynamo.worker.echo import EchoEngine
from dynamo.worker.embedder import embed
from dynamo.worker.mocker_ranks import serve_mocker
from dynamo.worker.model_types import ModelInput, ModelRuntimeConfig, ModelType, WorkerType
from dynamo.worker.register import register_model
from dynamo.worker.text_echo import TextEchoEngine

logger = logging.getLogger(__name__)

PROG = "dynamo-worker"
MAX_CONFIG_LINE = 1 << 20  # bytes


def main() -> None:
    setproctitle.setproctitle("dynamo::worker")
    try:
        configure_logging("worker")
        config = load_config(sys.argv[1:])
        _raise_open_files_limit()
        uvloop.run(serve(config))
    except (ConfigError, DiscoveryError, ModelDirectoryError, OSError) as error:
        sys.exit(f"{PROG}: {error}")


def load_config(argv: list[str]) -> WorkerConfig:
    """Flags over variables over defaults; over all of them a line on stdin, if the flags ask for it."""
    config, _ = WorkerConfig.load(argv, prog=PROG, description="Serve a built-in engine to Dynamo frontends.")
    return config.updated(sys.stdin.buffer.readline(MAX_CONFIG_LINE)) if config.config_stdin else config


async def serve(config: WorkerConfig) -> None:
    """Serve until a signal, or until stdin ends where it carried the options; then drain."""
    model_dir = Path(config.model_path)
    context_length = config.context_length or max_context_length(model_dir)
    runtime = DistributedRuntime(config=config)
    endpoint = runtime.endpoint(config.endpoint)
    _drain_on_signal(runtime)
    if config.config_stdin:
        _drain_on_end_of_stdin(runtime)
    try:
        engine = ENGINES[config.engine]
        await engine.serve(config, endpoint, context_length)
        await register_model(
            engine.model_input,
            engine.model_type,
            endpoint,
            str(model_dir),
            config.served_name,
            worker_type=WorkerType.Aggregated,
            kv_cache_block_size=config.block_size,
            runtime_config=_runtime_config(config, context_length),
            migration_limit=config.migration_limit,
        )
        logger.info("serving %s at %s", config.served_name, config.endpoint)
        _tell_ready(config.ready_fd)
        await runtime.closed.wait()
    except RuntimeClosed:
        logger.info("asked to end before the start was over")
    finally:
        await runtime.wait_closed()


async def _serve_echo(config: WorkerConfig, endpoint: Endpoint, _context_length: int | None) -> None:
    await endpoint.open(EchoEngine(config.tokens_per_frame, config.delay_ms / 1000).generate)


async def _serve_text_echo(config: WorkerConfig, endpoint: Endpoint, _context_length: int | None) -> None:
    await endpoint.open(TextEchoEngine(config.delay_ms / 1000).generate)


async def _serve_embedder(_config: WorkerConfig, endpoint: Endpoint, _context_length: int | None) -> None:
    await endpoint.open(embed)


class Engine(NamedTuple):
    """What it takes, what it is for, and how to serve it."""

    serve: Callable[[WorkerConfig, Endpoint, int | None], Awaitable[None]]
    model_type: ModelType = ModelType.Chat | ModelType.Completions
    model_input: ModelInput = ModelInput.Tokens


ENGINES = {
    "mocker": Engine(serve_mocker),
    "echo": Engine(_serve_echo),
    "text-echo": Engine(_serve_text_echo, model_input=ModelInput.Text),
    "embedder": Engine(_serve_embedder, ModelType.Embedding),
}


def _runtime_config(config: WorkerConfig, context_length: int | None) -> ModelRuntimeConfig:
    return ModelRuntimeConfig(
        context_length=context_length,
        total_kv_blocks=config.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        data_parallel_size=config.data_parallel_size,
        enable_local_indexer=config.publishes_kv_events,
        kv_event_publishing_enabled=config.publishes_kv_events,
        tool_call_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
    )


def _drain_on_signal(runtime: DistributedRuntime) -> None:
    """The first signal drains; a second one ends the process at once, as it would have without us."""
    loop = asyncio.get_running_loop()

    def drain() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        runtime.shutdown()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)


def _drain_on_end_of_stdin(runtime: DistributedRuntime) -> None:
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 4096):
            logger.info("stdin has ended: the parent is gone")
            loop.remove_reader(stdin)
            runtime.shutdown()

    loop.add_reader(stdin, read)


def _tell_ready(fd: int | None) -> None:
    if fd is None:
        return
    try:
        os.write(fd, b"ready\n")
        os.close(fd)
    except OSError as error:
        logger.warning("cannot tell descriptor %d that this worker is ready: %s", fd, error)


def _raise_open_files_limit() -> None:
    """Every running request holds a socket."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
