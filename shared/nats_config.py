"""How to reach NATS: the NATS_* variables of Dynamo 1.6.1."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dynamo.shared.config import Config, ConfigError, option


@dataclass(frozen=True, kw_only=True)
class NatsConfig(Config):
    server: str = option(
        "nats://localhost:4222", env="NATS_SERVER", help="URL of a NATS server, or several with commas between them."
    )
    username: str | None = option(None, env="NATS_AUTH_USERNAME", help="User name.")
    password: str | None = option(None, env="NATS_AUTH_PASSWORD", help="Password.", is_secret=True)
    token: str | None = option(None, env="NATS_AUTH_TOKEN", help="Token, instead of name and password.", is_secret=True)
    tls_ca: str | None = option(
        None, env="NATS_TLS_CA_CERT_PATH", help="PEM file of the CA that signed the server's certificate."
    )
    tls_is_insecure: bool = option(
        False, env="NATS_TLS_INSECURE", help="Accept any certificate of the server. For development."
    )
    tls_client_cert: str | None = option(None, env="NATS_TLS_CLIENT_CERT_PATH", help="PEM file of our certificate.")
    tls_client_key: str | None = option(None, env="NATS_TLS_CLIENT_KEY_PATH", help="PEM file of our key.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for url in self.urls:
            if urlsplit(url).scheme not in {"nats", "tls", "ws", "wss"}:
                raise ConfigError(f"NATS_SERVER: {url!r} is not of the form nats://host:port")
        if (self.username is None) != (self.password is None):
            raise ConfigError("NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD must be set together")
        if (self.tls_client_cert is None) != (self.tls_client_key is None):
            raise ConfigError("NATS_TLS_CLIENT_CERT_PATH and NATS_TLS_CLIENT_KEY_PATH must be set together")

    @property
    def urls(self) -> list[str]:
        urls = [url.strip() for url in self.server.split(",") if url.strip()]
        return [url if "://" in url else f"nats://{url}" for url in urls]

    def connect_options(self) -> dict[str, Any]:
        """What the client library is told. Raises ConfigError when a file of TLS cannot be read."""
        options: dict[str, Any] = {
            "servers": self.urls,
            "user": self.username,
            "password": self.password,
            "token": self.token,
        }
        if self._has_tls:
            options["tls"] = self._tls_context()
        return {name: value for name, value in options.items() if value is not None}

    @property
    def _has_tls(self) -> bool:
        return bool(self.tls_ca or self.tls_client_cert or self.tls_is_insecure)

    def _tls_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_client_cert is not None:
                context.load_cert_chain(self.tls_client_cert, self.tls_client_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the files that NATS_TLS_* name cannot be used: {error}") from error
        if self.tls_is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def nats_config() -> NatsConfig:
    """For programs that have no flags for it."""
    return NatsConfig.load([], prog="the connection to NATS")[0]
