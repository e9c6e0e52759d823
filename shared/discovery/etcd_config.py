"""How to reach etcd: the ETCD_* variables of Dynamo 1.6.1."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from dynamo.shared.config import Config, ConfigError, option


@dataclass(frozen=True, kw_only=True)
class EtcdConfig(Config):
    endpoints: str = option("http://localhost:2379", env="ETCD_ENDPOINTS", help="Comma-separated URLs of etcd members.")
    username: str | None = option(None, env="ETCD_AUTH_USERNAME", help="User name.")
    password: str | None = option(None, env="ETCD_AUTH_PASSWORD", help="Password.", is_secret=True)
    ca: str | None = option(
        None, env="ETCD_AUTH_CA", help="PEM file (or PEM text) of the CA that signed etcd's certificate."
    )
    client_cert: str | None = option(
        None, env="ETCD_AUTH_CLIENT_CERT", help="PEM file (or PEM text) of our certificate."
    )
    client_key: str | None = option(
        None, env="ETCD_AUTH_CLIENT_KEY", help="PEM file (or PEM text) of our key.", is_secret=True
    )
    lease_ttl_s: int = option(30, env="ETCD_LEASE_TTL", help="Seconds until etcd forgets a process that died.")
    connect_timeout_s: float = option(
        120.0, env="ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS", help="Seconds to wait for etcd at start."
    )
    ping_interval_s: int = option(
        10, env="ETCD_KEEPALIVE_INTERVAL_SECONDS", help="Seconds between HTTP/2 pings, at least 5."
    )
    ping_timeout_s: int = option(5, env="ETCD_KEEPALIVE_TIMEOUT_SECONDS", help="Seconds to wait for a ping's answer.")

    def __post_init__(self) -> None:
        if not self.urls:
            raise ConfigError("ETCD_ENDPOINTS names no endpoint; expected http://host:port[,http://host:port...]")
        for url in self.urls:
            address_of(url)
        if (self.username is None) != (self.password is None):
            raise ConfigError("ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD must be set together")
        if (self.client_cert is None) != (self.client_key is None):
            raise ConfigError("ETCD_AUTH_CLIENT_CERT and ETCD_AUTH_CLIENT_KEY must be set together")
        if self.lease_ttl_s < 1:
            raise ConfigError(f"ETCD_LEASE_TTL={self.lease_ttl_s}: expected at least 1 second")

    @property
    def urls(self) -> list[str]:
        return [url.strip() for url in self.endpoints.split(",") if url.strip()]


def address_of(url: str) -> tuple[str, str]:
    """`http://host:port` or `host:port` -> (scheme, host:port)."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or 2379
    except ValueError:
        port = 0
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port:
        raise ConfigError(f"ETCD_ENDPOINTS: {url!r} is not of the form http://host:port or https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, f"{host}:{port}"
