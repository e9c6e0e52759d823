"""Options of `dynamo-frontend`: the supervisor reads them once and hands the object to its children."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamo.shared.config import Config, ConfigError, option, spelling
from dynamo.shared.kv_router_options import KvRouterOptions
from dynamo.shared.placement_options import PlacementOptions, dashed

ROUTER_MODES = ("round-robin", "random", "power-of-two", "least-loaded", "kv", "direct", "device-aware-weighted")
MIB = 1024 * 1024
_HEADER_PREFIX = re.compile("[a-z0-9-]+")
OWN_OPTIONS = {"kv_cache_block_size", "inhibited_duration_s"}  # that acceptors go by as well
_ADDRESS = re.compile(r"tcp://(\S+):(\d{1,5})|ipc://\S+")


def _unknown_fields(text: str) -> str:
    return {"true": "ignore", "1": "ignore", "false": "reject", "0": "reject"}.get(text.lower(), text)


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # slow to import, and rarely asked for

        print(f"{parser.prog} {version('dynamo-gateway')}")
        parser.exit()


@dataclass(frozen=True, kw_only=True)
class ServingOptions(Config):
    # ---- the HTTP server
    http_host: str = option("0.0.0.0", env="DYN_HTTP_HOST", help="Address to listen on, IPv4 or IPv6.")
    http_port: int = option(
        8000, env="DYN_HTTP_PORT", minimum=0, maximum=65535, help="Port to listen on; 0 takes a free one and logs it."
    )
    workers: int = option(
        1, env="DYN_FRONTEND_WORKERS", minimum=1, maximum=256, help="Acceptor processes; each uses one core."
    )
    http_server: str = option(
        "native",
        env="DYN_HTTP_SERVER",
        choices=("native", "granian"),
        help="native is cheaper and stops reading from a worker whose client is slow; granian buffers without limit.",
    )
    tls_cert_path: str | None = option(
        None, env="DYN_TLS_CERT_PATH", help="Certificate chain (PEM) to serve HTTPS with."
    )
    tls_key_path: str | None = option(None, env="DYN_TLS_KEY_PATH", help="Private key (PEM) of that certificate.")
    listen_backlog: int = option(
        4096, env="DYN_HTTP_LISTEN_BACKLOG", minimum=1, help="Connections that may wait to be accepted, per acceptor."
    )
    body_limit_mb: float = option(
        45, env="DYN_HTTP_BODY_LIMIT_MB", minimum=0.001, help="Largest request body in MiB; larger ones get a 413."
    )
    body_read_timeout_s: float = option(
        30,
        env="DYN_HTTP_BODY_READ_TIMEOUT_SECS",
        minimum=0.1,
        help="Seconds in which a request body must have arrived.",
    )
    max_concurrent_requests: int = option(
        4096,
        env="DYN_FRONTEND_MAX_CONCURRENT_REQUESTS",
        minimum=1,
        help="Inference requests one acceptor runs at a time; further ones get the overload status.",
    )
    overload_status_code: int = option(
        529,
        env="DYN_HTTP_OVERLOAD_STATUS_CODE",
        minimum=400,
        maximum=599,
        help="HTTP status that says 'overloaded, try again': 529, 503 or 429 are understood by clients.",
    )
    error_format: str = option(
        "openai",
        env="DYN_ERROR_FORMAT",
        choices=("openai", "dynamo"),
        help="How errors are told: in OpenAI's envelope, or flat as Dynamo 1.6.1 does; /v1/messages has Anthropic's.",
    )
    sse_keep_alive_interval_ms: int = option(
        15_000,
        env="DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS",
        minimum=0,
        help="Silence after which a stream carries a comment to keep proxies from closing it; 0 never does.",
    )
    pre_commit_error_peek_ms: int | None = option(
        None,
        env="DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS",
        minimum=0,
        help="How long a stream waits for its first token before it is answered 200: an error is a status until then, "
        "and a frame of the stream later. Unset waits until a keep-alive is due; 0, as Dynamo does, not at all.",
    )
    backend_stream_timeout_s: float | None = option(
        None,
        env="DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS",
        minimum=0.001,
        help="Seconds of silence of a worker after which its request fails with a 504; unset waits for ever.",
    )
    graceful_shutdown_timeout_s: float = option(
        30,
        env="DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS",
        minimum=0,
        help="Seconds that running requests get to finish after SIGTERM.",
    )
    fd_limit_target: int = option(
        8192, env="DYN_FRONTEND_FD_LIMIT_TARGET", minimum=0, help="Raise the limit of open files to this; 0 leaves it."
    )
    disable_frontend_admin_api: bool = option(
        False,
        env="DYN_DISABLE_FRONTEND_ADMIN_API",
        help="Serve neither /busy_threshold nor anything below /v1/admin.",
    )
    admin_api_key: str | None = option(
        None,
        env="DYN_ADMIN_API_KEY",
        is_secret=True,
        help="Key that these routes ask for, as in `Authorization: Bearer KEY`; unset asks for none.",
    )
    unknown_fields: str = option(
        "warn",
        env=("DYN_UNKNOWN_FIELDS", "DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS"),
        choices=("reject", "warn", "ignore"),
        parse=_unknown_fields,
        help="Fields of a request that are no fields of its API: a 400 (Dynamo's default), a line in the log, or "
        "nothing. Dynamo's own variable may be true, for ignore, or false, for reject.",
    )
    trust_request_chat_template: bool = option(
        False,
        env="DYN_TRUST_REQUEST_CHAT_TEMPLATE",
        help="Let a request bring its own chat_template, which is a program; off: such requests get a 400.",
    )
    disable_frontend_nvext: bool = option(
        False,
        env="DYN_DISABLE_FRONTEND_NVEXT",
        help="Take no more than cache_salt from a request's nvext, and no worker or priority from its headers.",
    )
    force_include_usage: bool = option(
        False, env="DYN_ENABLE_FORCE_INCLUDE_USAGE", help="End every stream with its usage, asked for or not."
    )
    metrics_prefix: str = option("dynamo_frontend", env="DYN_METRICS_PREFIX", help="First part of every metric's name.")

    enable_anthropic_api: bool = option(
        True, env="DYN_ENABLE_ANTHROPIC_API", help="Serve /v1/messages, the API of Anthropic's SDKs and Claude Code."
    )
    strip_anthropic_preamble: bool = option(
        True,
        env="DYN_STRIP_ANTHROPIC_PREAMBLE",
        help="Leave Claude Code's billing line out of the system prompt: it differs between conversations, which would "
        "then share no cached prefix.",
    )
    responses_store_mb: float = option(
        0,
        env="DYN_RESPONSES_STORE_MB",
        minimum=0,
        help="Keep past responses of /v1/responses, up to so many MiB, for `previous_response_id`; 0 keeps none.",
    )
    responses_store_path: str | None = option(
        None,
        env="DYN_RESPONSES_STORE_PATH",
        help="SQLite file to keep them in; unset: one that is gone with this gateway.",
    )
    enable_streaming_tool_dispatch: bool = option(
        False,
        env="DYN_ENABLE_STREAMING_TOOL_DISPATCH",
        help="Tell of each call in one piece, as a `tool_call_dispatch` event of the stream of /v1/chat/completions.",
    )
    enable_streaming_reasoning_dispatch: bool = option(
        False,
        env="DYN_ENABLE_STREAMING_REASONING_DISPATCH",
        help="Tell of all reasoning in one piece once it ends, as a `reasoning_dispatch` event of the same streams.",
    )
    detect_parsers: bool = option(
        True,
        env="DYN_DETECT_PARSERS",
        help="Read answers of a model whose card names no parser with the one that its chat template implies; off: "
        "pass them on as they are, as Dynamo does.",
    )
    reasoning_field_name: str = option(
        "reasoning_content",
        env="DYN_REASONING_FIELD_NAME",
        choices=("reasoning_content", "reasoning"),
        help="Field of a chat message, or of its deltas, that has the model's reasoning.",
    )

    # ---- what it serves
    discovery_backend: str = option(
        "etcd",
        env=("DYN_DISCOVERY_BACKEND", "DYN_STORE_KV"),
        flags=("--discovery-backend", "--store-kv"),
        choices=("etcd", "file", "mem", "kubernetes"),
        help="Where workers announce themselves: etcd (ETCD_ENDPOINTS), file (the directory DYN_FILE_KV, else "
        "$TMPDIR/dynamo_store_kv), or mem, a store of this process tree alone that is gone with it; kubernetes is not "
        "in this version.",
    )
    request_plane: str = option(
        "tcp",
        env="DYN_REQUEST_PLANE",
        choices=("tcp", "nats", "http"),
        help="Transport of requests to workers; only tcp is in this version.",
    )
    event_plane: str = option(
        "zmq",
        env="DYN_EVENT_PLANE",
        choices=("zmq", "nats"),
        help="Transport of what this replica tells others (NATS_SERVER for nats); those of workers say so themselves.",
    )
    model_path: str | None = option(
        None, env="DYN_MODEL_PATH", help="Directory to look in for files of a model card that are not where it says."
    )
    migration_limit: int = option(
        3,
        env="DYN_MIGRATION_LIMIT",
        minimum=0,
        help="How often a request that a worker has begun may move to another; 0, Dynamo's default, never moves it.",
    )
    migration_max_seq_len: int | None = option(
        None,
        env="DYN_MIGRATION_MAX_SEQ_LEN",
        minimum=1,
        help="Tokens, prompt and answer, above which a request stays with its worker; unset: the model's context.",
    )
    tokenizer: str = option(
        "default",
        env="DYN_TOKENIZER",
        choices=("default", "fastokens", "huggingface"),
        help="default and fastokens take the faster library when it agrees with the reference one on this model; "
        "huggingface always takes the reference one.",
    )
    tokenizer_fallback: bool = option(
        True,
        env="DYN_TOKENIZER_FALLBACK",
        help="Take the reference library where fastokens was asked for and cannot; off: such a model fails to load.",
    )
    tokenizer_cache: bool = option(
        True, env="DYN_TOKENIZER_CACHE", help="Remember the tokens of prompt segments between special tokens."
    )
    tokenizer_cache_bytes: int = option(
        16 * MIB, env="DYN_TOKENIZER_CACHE_BYTES", minimum=0, help="Memory that this cache may take, per acceptor."
    )

    # ---- placement
    metadata_header_prefix: str = option(
        "x-dynamo-meta-",
        env="DYN_METADATA_HEADER",
        parse=str.lower,
        help="Request headers that start with this are told to workers as metadata; `policy-class` names a queue.",
    )
    router_mode: str = option(
        "round-robin",
        env="DYN_ROUTER_MODE",
        choices=ROUTER_MODES,
        parse=dashed,
        help="How a worker is chosen; underscores are accepted too. kv takes the worker that has most of the "
        "prompt cached and least to do; direct lets each request name its worker; device-aware-weighted is not in "
        "this version.",
    )
    router_address: str | None = option(
        None,
        env="DYN_ROUTER_ADDRESS",
        help="Ask the router that listens there (tcp://host:port or ipc:///path, its --bind) instead of starting one; "
        "options of placement are then that router's.",
    )

    # ---- the request plane
    tcp_connect_timeout_s: float = option(
        5, env="DYN_TCP_CONNECT_TIMEOUT", minimum=0.001, help="Seconds to connect to a worker."
    )
    tcp_request_timeout_s: float = option(
        5, env="DYN_TCP_REQUEST_TIMEOUT", minimum=0.001, help="Seconds in which a worker must acknowledge a request."
    )
    tcp_pool_size: int = option(
        100, env="DYN_TCP_POOL_SIZE", minimum=1, help="Connections to one worker, per acceptor."
    )
    tcp_channel_buffer: int = option(
        1024, env="DYN_TCP_CHANNEL_BUFFER", minimum=1, help="Unacknowledged requests on one connection."
    )
    tcp_max_message_size: int = option(
        32 * MIB, env="DYN_TCP_MAX_MESSAGE_SIZE", minimum=1024, help="Largest frame to or from a worker, in bytes."
    )
    tcp_response_stream_host: str | None = option(
        None,
        env="DYN_TCP_RESPONSE_STREAM_HOST",
        help="Address at which workers reach us with their answers; unset finds the address of the default route.",
    )
    tcp_response_stream_port: int = option(
        0,
        env="DYN_TCP_RESPONSE_STREAM_PORT",
        minimum=0,
        maximum=65535,
        help="Port for those answers: acceptor i takes this port plus i; 0 takes free ones.",
    )

    # ---- starting
    mock_workers: int = option(
        0,
        env="DYN_FRONTEND_MOCK_WORKERS",
        minimum=0,
        maximum=64,
        help="Also start this many built-in mock workers, serving the bundled demo model: no GPU, canned text.",
    )
    dump_config_to: str | None = option(
        None, env="DYN_DUMP_CONFIG_TO", help="Write every option's value and origin to this file as JSON, then go on."
    )


@dataclass(frozen=True, kw_only=True)
class FrontendConfig(KvRouterOptions, PlacementOptions, ServingOptions):
    """All options, those of serving before those of placement, with the rules that hold between them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_tls()
        self._check_response_ports()
        self._check_metadata_prefix()
        self._check_router_address()
        self._refuse("discovery_backend", "kubernetes", "use etcd, file or mem")
        self._refuse("request_plane", "nats", "use tcp")
        self._refuse("request_plane", "http", "use tcp")
        self._refuse("router_mode", "device-aware-weighted", f"use one of {', '.join(ROUTER_MODES[:-1])}")

    @classmethod
    def _parser(cls, prog: str, description: str) -> argparse.ArgumentParser:
        parser = super()._parser(prog, description)
        parser.add_argument("--version", action=_PrintVersion, nargs=0, help="Print the version and exit.")
        return parser

    def options_of_router(self, provenance: Mapping[str, str]) -> list[str]:
        """Those that the user set and that only a router of our own would heed."""
        names = {"router_mode", "event_plane", *KvRouterOptions.options(), *PlacementOptions.options()} - OWN_OPTIONS
        return sorted(name for name in names if provenance[name] != "default")

    @property
    def body_limit_bytes(self) -> int:
        return int(self.body_limit_mb * MIB)

    @property
    def is_tls(self) -> bool:
        return self.tls_cert_path is not None

    def as_json(self, provenance: Mapping[str, str]) -> str:
        """Every option with its value and where that came from; secrets are masked."""
        report: dict[str, Any] = {}
        for name, (_field, opt, _kind) in self.options().items():
            value = getattr(self, name)
            masked = "***" if opt.is_secret and value is not None else value
            report[name] = {"value": masked, "from": provenance.get(name, "default"), "option": spelling(name, opt)}
        return json.dumps(report, indent=2)

    def as_dict(self) -> dict[str, Any]:
        """What `FrontendConfig(**...)` takes to make this object again in a child."""
        return dataclasses.asdict(self)

    def _check_tls(self) -> None:
        if (self.tls_cert_path is None) != (self.tls_key_path is None):
            raise ConfigError("--tls-cert-path and --tls-key-path must be given together")

    def _check_metadata_prefix(self) -> None:
        if not _HEADER_PREFIX.fullmatch(self.metadata_header_prefix):
            raise ConfigError(
                f"--metadata-header-prefix {self.metadata_header_prefix!r} is not the start of a header's name, which "
                "has letters, digits and dashes; an empty one would tell workers every header, credentials too"
            )

    def _check_response_ports(self) -> None:
        if self.tcp_response_stream_port and self.tcp_response_stream_port + self.workers - 1 > 65535:
            raise ConfigError("--tcp-response-stream-port plus --workers goes beyond port 65535")

    def _check_router_address(self) -> None:
        address = self.router_address
        if address is None:
            return
        if not _ADDRESS.fullmatch(address):
            raise ConfigError(f"--router-address {address!r}: expected tcp://host:port or ipc:///path")
        if self.discovery_backend == "mem" and self.mock_workers:
            raise ConfigError(
                "--mock-workers with --discovery-backend mem: the router at --router-address could not see them; "
                "use file or etcd"
            )

    def _refuse(self, name: str, value: str, advice: str) -> None:
        if getattr(self, name) == value:
            _field, opt, _kind = self.options()[name]
            raise ConfigError(f"{spelling(name, opt)}: {value} is not in this version; {advice}")
