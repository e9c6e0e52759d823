"""`dynamo-frontend`: make the sockets and the run folder, describe the children, supervise them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import setproctitle

from dynamo.frontend.child import Child
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.listeners import ListenError, listen, url_of
from dynamo.frontend.run_dir import RunDir
from dynamo.frontend.supervisor import STOP_GRACE_S, Stage, StartError, Supervisor
from dynamo.shared.installation import require_sound_installation
from dynamo.shared.kv_router_options import KvRouterOptions
from dynamo.shared.log import configure_logging
from dynamo.shared.placement_options import PlacementOptions

log = logging.getLogger(__name__)

DEMO_MODEL = "demo"
DESCRIPTION = "An OpenAI-compatible gateway in front of a fleet of LLM workers: HTTP, preprocessing, placement."


def main() -> None:
    require_sound_installation()
    config, provenance = FrontendConfig.load(sys.argv[1:], prog="dynamo-frontend", description=DESCRIPTION)
    sys.exit(run(config, provenance))


def run(
    config: FrontendConfig, provenance: Mapping[str, str], on_listening: Callable[[str], None] = lambda _url: None
) -> int:
    """Serve until told to stop. Returns the exit status; a reason not to start is one line in the log."""
    setproctitle.setproctitle("dynamo::supervisor")
    configure_logging("supervisor")
    try:
        return _serve(config, provenance, on_listening)
    except (StartError, ListenError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1


def _serve(config: FrontendConfig, provenance: Mapping[str, str], on_listening: Callable[[str], None]) -> int:
    _announce_inert_options(config, provenance)
    if config.dump_config_to:
        Path(config.dump_config_to).write_text(config.as_json(provenance) + "\n")
    _check_tls_pair(config)
    raise_fd_limit(config.fd_limit_target)
    listeners = listen(config.http_host, config.http_port, config.workers, config.listen_backlog)
    with contextlib.closing(RunDir()) as run_dir:
        stages = describe_children(config, run_dir, listeners)
        url = url_of(listeners[0], "https" if config.is_tls else "http")
        log.info("listening on %s", url)
        on_listening(url)
        return Supervisor(stages, listeners).run()


def _check_tls_pair(config: FrontendConfig) -> None:
    """Say it here and once, not in every acceptor."""
    if config.tls_cert_path is None or config.tls_key_path is None:
        return
    import ssl  # the supervisor is small; who serves no TLS does not pay for it

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert_path, config.tls_key_path)
    except OSError as error:  # SSLError is one
        pair = f"--tls-cert-path {config.tls_cert_path}, --tls-key-path {config.tls_key_path}"
        raise StartError(f"{pair}: not a certificate and its key that can be read: {error}") from None


def _announce_inert_options(config: FrontendConfig, provenance: Mapping[str, str]) -> None:
    names = KvRouterOptions.inert_ones(provenance)
    if names:
        log.warning("accepted, but without effect in this version: %s", _as_flags(names))
    names = KvRouterOptions.kv_only_ones(provenance)
    if names and config.router_mode != "kv" and not config.load_aware:
        log.warning("without effect in --router-mode %s: %s", config.router_mode, _as_flags(names))
    if config.router_address is None:
        return
    log.info("asking the router at %s", config.router_address)
    if names := config.options_of_router(provenance):
        log.warning("without effect here, for the router at --router-address decides: %s", _as_flags(names))


def _as_flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def raise_fd_limit(target: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = target if hard == resource.RLIM_INFINITY else min(target, hard)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
    if reachable < target:
        log.warning("open files are limited to %d, fewer than --fd-limit-target %d; raise ulimit -Hn", hard, target)


def describe_children(config: FrontendConfig, run_dir: RunDir, listeners: list[socket.socket]) -> list[Stage]:
    """In the order of stopping: acceptors finish their requests while workers and router are still there."""
    environ = {"DYN_METRICS_DIR": str(run_dir.metrics)}
    if config.discovery_backend == "mem":
        # The children share no memory: a private store on files, gone with this run. Nobody else's workers are in it.
        host = config.tcp_response_stream_host or "127.0.0.1"
        config = dataclasses.replace(config, discovery_backend="file", tcp_response_stream_host=host)
        environ["DYN_FILE_KV"] = str(run_dir.store)
    acceptors = [_acceptor(config, run_dir, i, each.fileno(), environ) for i, each in enumerate(listeners)]
    workers = [_mock_worker(config, i, environ) for i in range(config.mock_workers)]
    routers = [] if config.router_address else [_router(config, run_dir, environ)]
    return [
        Stage(acceptors, config.graceful_shutdown_timeout_s + STOP_GRACE_S),
        Stage(workers, STOP_GRACE_S),
        Stage(routers, STOP_GRACE_S),
    ]


def _acceptor(config: FrontendConfig, run_dir: RunDir, index: int, listen_fd: int, environ: dict[str, str]) -> Child:
    message = {
        "config": config.as_dict(),
        "index": index,
        "listen_fd": listen_fd,
        "replica": run_dir.replica,
        "router_endpoint": config.router_address or run_dir.router_endpoint,
        "run_dir": os.fspath(run_dir.path),
        "started_at": int(time.time()),
    }
    return Child(f"acceptor-{index}", "dynamo.frontend.acceptor", message, (listen_fd,), environ)


def _router(config: FrontendConfig, run_dir: RunDir, environ: dict[str, str]) -> Child:
    own: dict[str, Any] = {
        "bind": run_dir.router_endpoint,
        "endpoint": None,
        "metrics_port": None,
        "replica": run_dir.replica,
    }
    names = (
        "discovery_backend",
        "event_plane",
        "metrics_prefix",
        "tcp_response_stream_host",
        "router_mode",
        *KvRouterOptions.options(),
        *PlacementOptions.options(),
    )
    return Child("router", "dynamo.router", own | {name: getattr(config, name) for name in names}, environ=environ)


def _mock_worker(config: FrontendConfig, index: int, environ: dict[str, str]) -> Child:
    namespace = config.namespace_prefix or config.namespace or "dynamo"
    message = {
        "engine": "mocker",
        "model_name": DEMO_MODEL,
        "endpoint": f"dyn://{namespace}.mocker.generate",
        "discovery_backend": config.discovery_backend,
    }
    return Child(f"mock-worker-{index}", "dynamo.worker", message, environ=environ)
