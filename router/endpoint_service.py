"""All that a router needs to serve endpoints of its own: one thing for the server to open and to close."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dynamo.router.config import RouterConfig
from dynamo.router.core import Router
from dynamo.router.endpoints import RouterEndpoints
from dynamo.router.local_acceptor import LocalAcceptor, Send
from dynamo.shared.messages import RouterMessage
from dynamo.shared.network import routable_host
from dynamo.shared.request_plane.client import EngineClient, EngineLimits
from dynamo.shared.request_plane.stream import ResponseServer
from dynamo.shared.runtime import DistributedRuntime
from dynamo.shared.serving_config import serving_config


class EndpointService:
    """Made and used inside the running loop. `send` hands a message to the core; its answers go to `hear`."""

    def __init__(self, config: RouterConfig, core: Router, send: Send) -> None:
        serving = serving_config({"discovery_backend": config.discovery_backend})
        host = config.tcp_response_stream_host or serving.host or routable_host()
        self._responses = ResponseServer(host, 0, max_message_size=serving.max_message_size)
        self._engine = EngineClient(self._responses, EngineLimits(max_message_size=serving.max_message_size))
        self._local = LocalAcceptor(send)
        self._endpoints = RouterEndpoints(config, core, self._local, self._engine)
        self._runtime = DistributedRuntime(config=serving)

    @property
    def num_requests(self) -> Mapping[str, int]:
        """By endpoint."""
        return self._endpoints.num_requests

    async def open(self) -> None:
        """Raises OSError and DiscoveryError."""
        await self._responses.start()
        self._local.open()
        await self._endpoints.open(self._runtime)

    def hear(self, messages: Iterable[RouterMessage]) -> None:
        self._local.hear(messages)

    async def close(self) -> None:
        """Leave discovery, let running requests finish."""
        await self._runtime.wait_closed()
        self._engine.close()
        self._responses.stop()
