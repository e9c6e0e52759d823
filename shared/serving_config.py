"""Options of whatever serves endpoints on the request plane: a worker, a router that runs alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynamo.shared.config import Config, ConfigError, option
from dynamo.shared.framing import MAX_MESSAGE_SIZE


@dataclass(frozen=True, kw_only=True)
class ServingConfig(Config):
    discovery_backend: str = option(
        "etcd",
        env="DYN_DISCOVERY_BACKEND",
        flags=("--discovery-backend", "--store-kv"),
        choices=("etcd", "file", "mem"),
        help="Where this worker says that it exists.",
    )
    request_plane: str = option(
        "tcp", env="DYN_REQUEST_PLANE", choices=("tcp",), help="How requests reach this worker."
    )
    event_plane: str = option(
        "zmq",
        env="DYN_EVENT_PLANE",
        choices=("zmq", "nats"),
        help="How KV events and load reach frontends; NATS_SERVER names the NATS server.",
    )
    rpc_host: str | None = option(
        None,
        env="DYN_TCP_RPC_HOST",
        help="Address to listen on and to advertise; unset means 127.0.0.1 when discovery is file or mem, else the "
        "address this host would use to reach others.",
    )
    rpc_port: int = option(
        0, env="DYN_TCP_RPC_PORT", minimum=0, maximum=65535, help="Port to listen on; 0 lets the system choose."
    )
    max_message_size: int = option(
        MAX_MESSAGE_SIZE, env="DYN_TCP_MAX_MESSAGE_SIZE", minimum=1024, help="Largest request accepted, in bytes."
    )
    request_limit: int = option(
        4096,
        env="DYN_ENGINE_REQUEST_LIMIT",
        minimum=1,
        help="Requests served at once; more are refused as overload.",
    )
    graceful_shutdown_timeout_s: float = option(
        30.0,
        env="DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT",
        flags=("--graceful-shutdown-timeout",),
        minimum=0,
        help="Seconds that running requests may take to finish at shutdown.",
    )

    def __post_init__(self) -> None:
        """Values may come from a caller as well as from flags, so choices are checked here too."""
        super().__post_init__()
        for name, (_field, opt, _kind) in self.options().items():
            if opt.choices and (value := getattr(self, name)) not in opt.choices:
                raise ConfigError(f"{name} must be one of {', '.join(opt.choices)}, not {value!r}")

    @property
    def host(self) -> str | None:
        """Where to listen; None means the routable address of this host."""
        return self.rpc_host or ("127.0.0.1" if self.discovery_backend in {"file", "mem"} else None)


def serving_config(overrides: dict[str, Any], environ: Mapping[str, str] = os.environ) -> ServingConfig:
    """For programs that have flags of their own: variables only, then what the caller insists on."""
    config, _ = ServingConfig.load([], environ, prog="dynamo.worker")
    return replace(config, **overrides)
