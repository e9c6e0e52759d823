"""One acceptor process: HTTP in, requests to workers out, tokens back. Stateless between requests.

Started by the supervisor with `--config-stdin --ready-fd N`: one line of JSON on stdin (`AcceptorConfig`), then the
end of stdin means that the supervisor is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import setproctitle
import uvloop
from msgspec import Struct

from dynamo.frontend.admin import Admin, AdminAccess
from dynamo.frontend.api_routes import ApiRoutes
from dynamo.frontend.app import App
from dynamo.frontend.artifacts import ArtifactStore
from dynamo.frontend.body_fields import RequestPolicy, UnknownFields
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.error_formats import ErrorFormats, error_formats
from dynamo.frontend.inference import Inference
from dynamo.frontend.loop_delay import LoopDelay
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.migration import MigrationRules
from dynamo.frontend.model import ModelLoader
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.pipeline import Pipeline, PipelineOptions
from dynamo.frontend.router_client import RouterClient
from dynamo.frontend.routing_headers import RoutingHeaderReader
from dynamo.frontend.server.limits import Limits
from dynamo.frontend.server.native import NativeServer, tls_context
from dynamo.frontend.sse import KeepAlive
from dynamo.frontend.tokenizer import TokenizerOptions
from dynamo.shared.log import configure_logging
from dynamo.shared.metrics import Registry
from dynamo.shared.network import routable_host
from dynamo.shared.request_plane.client import EngineClient, EngineLimits
from dynamo.shared.request_plane.stream import ResponseServer

if TYPE_CHECKING:
    from dynamo.frontend.server.granian import GranianServer

log = logging.getLogger("dynamo.acceptor")

METRICS_INTERVAL_S = 1.0
FIRST_TABLE_WAIT_S = 10.0  # then probes at least deserve an answer
MAX_CONNECTIONS = 65_536


class AcceptorConfig(Struct):
    """`config` are the fields of FrontendConfig; `listen_fd` is a listening socket, inherited; `started_at` is the Unix
    time since when this gateway serves, the same for all its acceptors and their successors, and so is `replica`, a
    name that no other gateway has."""

    config: dict[str, Any]
    index: int
    listen_fd: int
    router_endpoint: str
    run_dir: str
    started_at: int = 0
    replica: str = ""

    @property
    def name(self) -> str:
        """Within its replica."""
        return f"acceptor-{self.index}"

    @property
    def router_name(self) -> str:
        """What the router knows it by, which may have acceptors of several replicas."""
        return f"{self.replica}/{self.name}"


class Acceptor:
    """Everything one acceptor owns. `start`, then `drain`; made inside the running loop."""

    def __init__(self, own: AcceptorConfig) -> None:
        config = self.config = FrontendConfig(**own.config)
        metrics_directory = Path(own.run_dir) / "metrics"
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "model-loader")
        self._metrics = FrontendMetrics(Registry(metrics_directory, own.name), config.metrics_prefix, own.replica)
        self._loop_delay = LoopDelay(self._metrics.families)
        self._router = RouterClient(own.router_endpoint, own.router_name, self._on_table, config.inhibited_duration_s)
        self._models = ModelRegistry(self._router.table, _model_loader(config).load, self._executor, own.started_at)
        self._responses = _response_server(config, own.index)
        self._engine = EngineClient(self._responses, _engine_limits(config))
        pipeline = Pipeline(self._models, self._router, self._engine, _pipeline_options(config))
        routing_headers = RoutingHeaderReader(
            config.metadata_header_prefix, takes_hints=not config.disable_frontend_nvext
        )
        self._inference = Inference(
            pipeline,
            routing_headers,
            self._metrics,
            _keep_alive(config),
            config.max_concurrent_requests,
        )
        errors = error_formats(config.error_format, config.overload_status_code)
        app = App(
            self._inference,
            self._models,
            self._router,
            Admin(
                AdminAccess(not config.disable_frontend_admin_api, config.admin_api_key),
                self._router,
                pipeline,
                routing_headers,
            ),
            self._save_metrics,
            metrics_directory,
            config.overload_status_code,
            errors,
            ApiRoutes(self._inference, pipeline, _request_policy(config), errors, Path(own.run_dir)).of(config),
        )
        self._server = _http_server(config, app, socket.socket(fileno=own.listen_fd), errors)

    async def start(self) -> None:
        await self._responses.start()
        await self._await_table()
        await self._models.until_loaded()
        await self._server.start()
        self._save_metrics_now_and_then()

    async def _await_table(self) -> None:
        """Connections may be waiting already, left by a predecessor: to them, no table yet would look like no model."""
        try:
            async with asyncio.timeout(FIRST_TABLE_WAIT_S):
                await self._router.first_table()
        except TimeoutError:
            log.warning("no router answers after %g s; serving without a model until one does", FIRST_TABLE_WAIT_S)

    async def drain(self) -> None:
        """Refuse what is new, finish what runs, for as long as the config allows."""
        self._inference.is_draining = True
        num_active = self._inference.num_active
        log.info("draining %d requests for up to %g s", num_active, self.config.graceful_shutdown_timeout_s)
        await self._server.close(self.config.graceful_shutdown_timeout_s)
        self._router.close()
        self._engine.close()
        self._responses.stop()
        self._loop_delay.stop()
        self._save_metrics()

    def _on_table(self, left: list[int]) -> None:
        for instance_id in left:
            self._responses.instance_left(instance_id)
        self._models.update()

    def _save_metrics(self) -> None:
        self._metrics.observe(self._models, self._router)
        self._metrics.registry.save()

    def _save_metrics_now_and_then(self) -> None:
        self._save_metrics()
        self._loop.call_later(METRICS_INTERVAL_S, self._save_metrics_now_and_then)


def _model_loader(config: FrontendConfig) -> ModelLoader:
    return ModelLoader(
        ArtifactStore(Path(config.model_path) if config.model_path else None),
        TokenizerOptions(
            backend=config.tokenizer,
            fallback=config.tokenizer_fallback,
            cache_bytes=config.tokenizer_cache_bytes if config.tokenizer_cache else 0,
        ),
        detects_parsers=config.detect_parsers,
    )


def _response_server(config: FrontendConfig, index: int) -> ResponseServer:
    host = config.tcp_response_stream_host or routable_host()
    port = config.tcp_response_stream_port
    return ResponseServer(host, port + index if port else 0, max_message_size=config.tcp_max_message_size)


def _pipeline_options(config: FrontendConfig) -> PipelineOptions:
    return PipelineOptions(
        config.kv_cache_block_size, MigrationRules(config.migration_limit, config.migration_max_seq_len)
    )


def _keep_alive(config: FrontendConfig) -> KeepAlive:
    peek_ms = config.pre_commit_error_peek_ms
    return KeepAlive(config.sse_keep_alive_interval_ms / 1000, None if peek_ms is None else peek_ms / 1000)


def _request_policy(config: FrontendConfig) -> RequestPolicy:
    return RequestPolicy(
        unknown_fields=cast(UnknownFields, config.unknown_fields),
        trusts_chat_templates=config.trust_request_chat_template,
        takes_nvext=not config.disable_frontend_nvext,
        forces_usage=config.force_include_usage,
    )


def _engine_limits(config: FrontendConfig) -> EngineLimits:
    return EngineLimits(
        connect_timeout_s=config.tcp_connect_timeout_s,
        ack_timeout_s=config.tcp_request_timeout_s,
        pool_size=config.tcp_pool_size,
        channel_buffer=config.tcp_channel_buffer,
        max_message_size=config.tcp_max_message_size,
        stream_timeout_s=config.backend_stream_timeout_s,
    )


def _http_limits(config: FrontendConfig) -> Limits:
    """Inference has a cap of its own, with its own answer; this one also counts what is being refused."""
    return Limits(
        max_connections=MAX_CONNECTIONS,
        max_in_flight=2 * config.max_concurrent_requests,
        max_body_bytes=config.body_limit_bytes,
        body_timeout_s=config.body_read_timeout_s,
    )


def _http_server(
    config: FrontendConfig, app: App, sock: socket.socket, errors: ErrorFormats
) -> NativeServer | GranianServer:
    pair = (config.tls_cert_path, config.tls_key_path) if config.tls_cert_path and config.tls_key_path else None
    limits = _http_limits(config)
    if config.http_server == "granian":
        from dynamo.frontend.server.granian import GranianServer

        return GranianServer(app, sock, limits, errors.body_at, pair)
    return NativeServer(app, sock, limits, errors.body_at, tls_context(*pair) if pair else None)


# --------------------------------------------------------------------------- the process


def main() -> None:
    parser = argparse.ArgumentParser(prog="dynamo.frontend.acceptor", description="Started by dynamo-frontend.")
    parser.add_argument("--config-stdin", action="store_true", required=True, help="Read one line of JSON from stdin.")
    parser.add_argument("--ready-fd", type=int, required=True, help="Where to write that serving has begun.")
    arguments = parser.parse_args()
    own = msgspec.json.decode(sys.stdin.buffer.readline(), type=AcceptorConfig)
    setproctitle.setproctitle(f"dynamo::{own.name}")
    configure_logging(own.name)
    uvloop.run(_run(own, arguments.ready_fd))


def _relax_gc() -> None:
    """What is loaded stays; what a request allocates is freed by reference counts, so cycles can wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def _run(own: AcceptorConfig, ready_fd: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)  # readable: its end, for nothing more is ever sent
    acceptor = Acceptor(own)
    await acceptor.start()
    _relax_gc()
    os.write(ready_fd, b"ready\n")
    os.close(ready_fd)
    await stop.wait()
    loop.remove_reader(sys.stdin.fileno())
    await acceptor.drain()


if __name__ == "__main__":
    main()
