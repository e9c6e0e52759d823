"""Options of the router process."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import msgspec

from dynamo.router.class_queue import PolicyClass
from dynamo.router.policy_config import BUILT_IN_SELECTION, ROLES, PolicyFile, SelectionPolicy, read_policy_file
from dynamo.router.rules import Rules
from dynamo.router.selectors import SELECTORS
from dynamo.router.weights import Weights
from dynamo.shared.config import ConfigError, option
from dynamo.shared.kv_router_options import KvRouterOptions
from dynamo.shared.messages import Thresholds
from dynamo.shared.placement_options import PlacementOptions, dashed

ROUTER_MODES = tuple(SELECTORS)
# Its defaults where --endpoint is given. Several such routers share a host, so each takes a free port.
WITH_ENDPOINT: dict[str, Any] = {"router_mode": "kv", "bind": "tcp://127.0.0.1:*"}


@dataclass(frozen=True, kw_only=True)
class RouterConfig(KvRouterOptions, PlacementOptions):
    bind: str = option(
        "tcp://127.0.0.1:5557",
        env="DYN_ROUTER_BIND",
        help="Where acceptors reach this router: ipc:///path or tcp://host:port.",
    )
    discovery_backend: str = option(
        "etcd",
        env=("DYN_DISCOVERY_BACKEND", "DYN_STORE_KV"),
        flags=("--discovery-backend", "--store-kv"),
        choices=("etcd", "file", "mem"),
        help="Where workers announce themselves: etcd (ETCD_ENDPOINTS), file (the directory DYN_FILE_KV), or mem.",
    )
    tcp_response_stream_host: str | None = option(
        None,
        env="DYN_TCP_RESPONSE_STREAM_HOST",
        help="Address at which workers reach the router with answers; unset finds the address of the default route.",
    )
    event_plane: str = option(
        "zmq",
        env="DYN_EVENT_PLANE",
        choices=("zmq", "nats"),
        help="Transport of what this router tells other replicas (NATS_SERVER for nats).",
    )
    router_mode: str = option(
        "round-robin",
        env="DYN_ROUTER_MODE",
        choices=ROUTER_MODES,
        parse=dashed,
        help="How a worker is chosen; underscores are accepted too.",
    )
    endpoint: str | None = option(
        None,
        env="DYN_ROUTER_ENDPOINT",
        help="Also answer on the request plane, for the workers of this endpoint (namespace.component.endpoint): "
        "generate, best_worker_id and get_overlap_scores at NAMESPACE.router. Its mode is kv unless given, its "
        "--bind a free port.",
    )
    router_block_size: int | None = option(
        None,
        env="DYN_ROUTER_BLOCK_SIZE",
        flags=("--router-block-size", "--block-size"),
        minimum=1,
        help="Tokens per KV block of those workers; others are left out. Unset: as their cards say.",
    )
    metrics_port: int | None = option(
        None,
        env="DYN_ROUTER_METRICS_PORT",
        flags=("--metrics-port",),
        minimum=0,
        maximum=65535,
        help="Port for HTTP GET of /metrics and /health; 0 takes a free one and logs it, unset listens nowhere.",
    )
    metrics_host: str = option("0.0.0.0", env="DYN_ROUTER_METRICS_HOST", help="Address for that port, IPv4 or IPv6.")
    metrics_prefix: str = option(
        "dynamo_frontend",
        env="DYN_METRICS_PREFIX",
        help="First part of the names of those metrics that are a frontend's in Dynamo.",
    )
    acceptor_expiry_s: float = option(
        10,
        env="DYN_ROUTER_ACCEPTOR_EXPIRY_SECS",
        minimum=2,
        help="Silence after which an acceptor counts as dead and what it held is freed; acceptors speak each second.",
    )
    max_acceptors: int = option(
        1024, env="DYN_ROUTER_MAX_ACCEPTORS", minimum=1, help="Acceptors served; further ones get no table."
    )
    max_active_per_acceptor: int = option(
        65_536,
        env="DYN_ROUTER_MAX_ACTIVE_PER_ACCEPTOR",
        minimum=1,
        help="Requests one acceptor may have placed at a time; further ones are refused as overload.",
    )
    max_table_entries: int = option(
        65_536,
        env="DYN_ROUTER_MAX_TABLE_ENTRIES",
        minimum=1,
        help="Endpoints and cards taken from discovery; further ones are left out and counted.",
    )
    random_seed: int | None = option(
        None, env="DYN_ROUTER_RANDOM_SEED", help="Makes random choices repeatable; unset draws a seed."
    )
    config_stdin: bool = option(
        False, help="Read one line of JSON with these options from stdin, and stop when stdin ends."
    )
    replica: str | None = option(None, help="Tells its metrics from those of other replicas; unset draws a name.")
    ready_fd: int | None = option(None, help="Descriptor to write 'ready' to when the router answers.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.router_mode not in ROUTER_MODES:
            raise ConfigError(f"--router-mode {self.router_mode!r}: expected one of {', '.join(ROUTER_MODES)}")
        if self.endpoint is not None and len([part for part in self.endpoint.split(".") if part]) != 3:
            raise ConfigError(f"--endpoint {self.endpoint!r}: expected namespace.component.endpoint")

    @classmethod
    def load(
        cls, argv: Sequence[str], environ: Mapping[str, str] = os.environ, *, prog: str, description: str = ""
    ) -> tuple[Self, dict[str, str]]:
        config, provenance = super().load(argv, environ, prog=prog, description=description)
        if config.endpoint is not None:
            others = {name: value for name, value in WITH_ENDPOINT.items() if provenance[name] == "default"}
            config = dataclasses.replace(config, **others)
        return config, provenance

    def updated(self, line: bytes) -> Self:
        """With the values of one JSON object over our own. Raises ConfigError."""
        try:
            values = msgspec.json.decode(line, type=dict[str, Any])
            if unknown := values.keys() - self.options().keys():
                raise ConfigError(f"the line on stdin has unknown options: {', '.join(sorted(unknown))}")
            return msgspec.convert(dataclasses.asdict(self) | values, type(self))
        except msgspec.MsgspecError as error:
            raise ConfigError(f"the line on stdin is not a JSON object of options: {error}") from None

    @property
    def mode(self) -> str:
        return "kv" if self.load_aware else self.router_mode

    @property
    def uses_kv_events(self) -> bool:
        return self.router_kv_events and not self.load_aware

    @property
    def predicted_ttl_s(self) -> float | None:
        """Without events everything is predicted; with them only what is asked for; by load alone nothing."""
        if self.load_aware:
            return None
        return self.router_predicted_ttl_s if self.router_kv_events else self.router_ttl_s

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(
            "",
            self.active_decode_blocks_threshold,
            self.active_prefill_tokens_threshold,
            self.active_prefill_tokens_threshold_frac,
        )

    @property
    def policy_class(self) -> PolicyClass:
        """Of all whom no policy file gives another."""
        return PolicyClass(
            queue_policy=self.router_queue_policy,
            prefill_busy_threshold_frac=self.router_queue_threshold,
            max_queued_requests=self.router_max_queued,
            max_wait_s=self.router_max_queue_wait_s,
        )

    @cached_property
    def policy_file(self) -> PolicyFile | None:
        """Raises ConfigError."""
        if self.router_policy_config is None:
            return None
        base = PolicyClass(max_queued_requests=self.router_max_queued, max_wait_s=self.router_max_queue_wait_s)
        return read_policy_file(self.router_policy_config, base)

    def settled(self) -> Self:
        """With what the policy file sets over our own. Raises ConfigError."""
        if self.policy_file is None:
            return self
        settings = dict(self.policy_file.settings)
        if "router_prefill_load_scale" in settings:
            settings["kv_overlap_score_weight"] = None  # the older name would win
        return dataclasses.replace(self, **settings)

    def selection(self, role: str) -> SelectionPolicy | None:
        """How workers of a type are chosen, if not as the options say. Raises ConfigError."""
        override = {"prefill": self.router_prefill_policy, "decode": self.router_decode_policy}.get(role)
        if self.policy_file is not None:
            return self.policy_file.selection(role, override)
        if override not in (None, BUILT_IN_SELECTION):
            raise ConfigError(f"--router-{role}-policy {override}: instances are named in --router-policy-config")
        return None

    @property
    def role_weights(self) -> dict[str, Weights]:
        own = Weights.from_options(self)
        found = {role: self.selection(role) for role in ROLES}
        return {
            role: msgspec.structs.replace(own, **policy.parameters)
            for role, policy in found.items()
            if policy is not None and policy.is_built_in
        }

    @cached_property
    def router_id(self) -> int | None:
        """Another one each time the process starts, for what it placed before is not known to it."""
        return int.from_bytes(os.urandom(8)) >> 1 if self.router_replica_sync else None

    @property
    def rules(self) -> Rules:
        return Rules(
            router_mode=self.mode,
            namespace=self.namespace,
            namespace_prefix=self.namespace_prefix,
            min_initial_workers=self.router_min_initial_workers,
            inhibited_duration_s=self.inhibited_duration_s,
            acceptor_expiry_s=self.acceptor_expiry_s,
            max_acceptors=self.max_acceptors,
            max_active_per_acceptor=self.max_active_per_acceptor,
            max_table_entries=self.max_table_entries,
            kv_cache_block_size=self.router_block_size or self.kv_cache_block_size,
            weights=Weights.from_options(self),
            role_weights=self.role_weights,
            tracks_output_blocks=self.router_track_output_blocks,
            uses_kv_events=self.uses_kv_events,
            has_durable_events=self.router_durable_kv_events,
            max_index_blocks=self.router_max_index_blocks,
            predicted_ttl_s=self.predicted_ttl_s,
            predicted_policy=self.router_approximate_cache_policy,
            thresholds=self.thresholds,
            policy_class=self.policy_class,
            policy_file=self.policy_file,
            overlap_refresh_after_s=self.router_overlap_refresh_after_s,
            session_ttl_s=self.router_session_affinity_ttl_s,
            is_affinity_hard=self.router_session_affinity_mode == "hard",
            max_sessions=self.router_max_sessions,
            router_id=self.router_id,
            has_batches=self.event_plane == "zmq",
            remote_request_expiry_s=self.router_active_request_expiry_s,
            first_sequence=time.time_ns(),
        )
