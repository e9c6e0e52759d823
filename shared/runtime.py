"""The runtime of a worker process: its lease, its endpoints and their life. Call shapes are those of `dynamo.runtime`.

runtime = DistributedRuntime(discovery_backend="file")
endpoint = runtime.endpoint("dynamo.backend.generate")
await register_llm(ModelInput.Tokens, ModelType.Chat, endpoint, "model/", worker_type=WorkerType.Aggregated)
await endpoint.serve_endpoint(generate)     # until runtime.shutdown()
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from dynamo.shared.discovery import CARDS, INSTANCES, key_of
from dynamo.shared.discovery.registry import make_discovery
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.event_plane.publisher import EventPublisher
from dynamo.shared.nats import NatsConnection
from dynamo.shared.protocol import Instance
from dynamo.shared.request_plane.call_home import Handler
from dynamo.shared.request_plane.codec import CODECS
from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.server import Codecs, RequestServer
from dynamo.shared.serving_config import ServingConfig, serving_config

logger = logging.getLogger(__name__)

# Between the withdrawal and the first refusal: frontends that have not yet seen it still send requests.
PROPAGATION_S = 0.25

DEVICE_TYPE = "cuda"  # what 1.6.1 says on any machine; only device-aware-weighted routing reads it

P = ParamSpec("P")
T = TypeVar("T")


class RuntimeClosed(Exception):
    """Asked of a runtime that was shut down."""


class DistributedRuntime:
    """One per process. The variables of `ServingConfig` fill in what the arguments leave open."""

    def __init__(
        self,
        event_loop: asyncio.AbstractEventLoop | None = None,
        discovery_backend: str | None = None,
        request_plane: str | None = None,
        *,
        config: ServingConfig | None = None,
    ) -> None:
        given = {"discovery_backend": discovery_backend, "request_plane": request_plane}
        self._config = config or serving_config({name: value for name, value in given.items() if value})
        self._discovery = make_discovery(self._config.discovery_backend)
        self._server = RequestServer(self._config)
        self._endpoints: set[Endpoint] = set()
        self._published: set[tuple[str, str]] = set()
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_open = False
        self._nats: NatsConnection | None = None
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self.closed = asyncio.Event()

    async def open(self) -> None:
        """Take the lease and listen; done by itself when the first endpoint is served or the first model registered.

        Raises DiscoveryError when the store cannot be reached, OSError when the address cannot be bound, RuntimeClosed
        when `shutdown` came first.
        """
        if self._closing is not None:
            raise RuntimeClosed("the runtime has been shut down")
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        await asyncio.wait([self._opening])
        if self._opening.cancelled():
            raise RuntimeClosed("the runtime was shut down before it was open")
        self._opening.result()

    async def _open(self) -> None:
        await self._discovery.open()
        await self._server.open()
        self._is_open = True
        logger.info("instance %x listens on %s", self._discovery.lease_id, self._server.address)

    def namespace(self, name: str) -> Namespace:
        return Namespace(self, name)

    def endpoint(self, path: str) -> Endpoint:
        """`namespace.component.endpoint`, with or without `dyn://`."""
        parts = path.removeprefix("dyn://").split(".")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"endpoint {path!r}: expected namespace.component.endpoint")
        return Endpoint(self, *parts)

    @property
    def instance_id(self) -> int:
        if not self._is_open:
            raise RuntimeError("this process has no identity yet: await runtime.open() first")
        return self._discovery.lease_id

    @property
    def is_local(self) -> bool:
        """Whether only this host can see what is published here."""
        return self._discovery.is_local

    def shutdown(self) -> None:
        """Start to drain: withdraw everything, let running requests finish, give the lease back."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def wait_closed(self) -> None:
        self.shutdown()
        assert self._closing is not None
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if self._opening is not None:
                self._opening.cancel()
                await asyncio.wait([self._opening])
            await self._withdraw_all()
            for endpoint in self._endpoints:
                endpoint.refuse()
            await self._server.drain(self._config.graceful_shutdown_timeout_s)
            for close in reversed(self._closers):
                await close()
            await self._server.close()
            await self._discovery.close()
        finally:
            self.closed.set()

    async def _withdraw_all(self) -> None:
        """Cards first: a model that is gone is asked for no longer, an instance that is gone is asked in vain."""
        if not self._published:
            return
        logger.info("draining %d requests", self._server.num_in_flight)
        for bucket, key in sorted(self._published, key=lambda entry: entry[0] != CARDS):
            await self.withdraw(bucket, key)
        await asyncio.sleep(PROPAGATION_S)

    async def publish(self, bucket: str, key: str, value: bytes) -> None:
        if self._closing is not None:  # nobody should come any more
            return
        self._published.add((bucket, key))
        await self._discovery.publish(bucket, key, value)

    async def withdraw(self, bucket: str, key: str) -> None:
        self._published.discard((bucket, key))
        await self._discovery.withdraw(bucket, key)

    def event_publisher(self, scope: EndpointScope, topic: str) -> EventPublisher:
        """On the event plane that this process was told to use. The publishers of a process share its connection to
        NATS."""
        return EventPublisher(self, scope, topic, self._config.event_plane, nats=self._shared_nats())

    def _shared_nats(self) -> NatsConnection | None:
        if self._config.event_plane == "nats" and self._nats is None:
            self._nats = NatsConnection()
            self._closers.insert(0, self._nats.close)  # the last: others still have something to say
        return self._nats

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Await `close()` at shutdown, when no request runs any more and discovery can still be reached."""
        self._closers.append(close)

    def attach(self, endpoint: Endpoint, path: str, handler: Handler, codecs: Codecs) -> str:
        """Let requests for `path` reach the handler; returns the transport address of the endpoint."""
        self._server.add(path, handler, codecs)
        self._endpoints.add(endpoint)
        return f"{self._server.address}/{path}"

    def detach(self, path: str, *, cancel: bool) -> None:
        self._server.remove(path)
        if cancel:
            self._server.cancel(path)


class Namespace:
    def __init__(self, runtime: DistributedRuntime, name: str) -> None:
        self._runtime = runtime
        self.name = name

    def component(self, name: str) -> Component:
        return Component(self._runtime, self.name, name)


class Component:
    def __init__(self, runtime: DistributedRuntime, namespace: str, name: str) -> None:
        self._runtime = runtime
        self.namespace = namespace
        self.name = name

    def endpoint(self, name: str) -> Endpoint:
        return Endpoint(self._runtime, self.namespace, self.name, name)


class Endpoint:
    """Where one handler is served by this process."""

    def __init__(self, runtime: DistributedRuntime, namespace: str, component: str, name: str) -> None:
        self.runtime = runtime
        self.namespace = namespace
        self.component = component
        self.name = name
        self.target = ""  # address and path, once it is served
        self._waits_for_running = True
        self._instance: Instance | None = None

    @property
    def scope(self) -> EndpointScope:
        """What events about this endpoint's workers are filed under."""
        return EndpointScope(self.namespace, self.component, self.name)

    @property
    def instance(self) -> Instance:
        """As it is listed in discovery. Raises RuntimeError unless the endpoint is being served."""
        if self._instance is None:
            raise RuntimeError(f"endpoint {self.name} is not served: call serve_endpoint first")
        return self._instance

    def connection_id(self) -> int:
        """Identity of this process in discovery. Known once the runtime is open."""
        return self.runtime.instance_id

    def key(self, suffix: str | None = None) -> str:
        return key_of(self.namespace, self.component, self.name, self.connection_id(), suffix)

    @property
    def _path(self) -> str:
        return f"{self.connection_id():x}/{self.namespace}/{self.component}/{self.name}"

    async def serve_endpoint(
        self,
        handler: Callable[..., AsyncIterator[Any]],
        graceful_shutdown: bool = True,
        metrics_labels: list[tuple[str, str]] | None = None,
        health_check_payload: dict[str, Any] | None = None,
    ) -> None:
        """Serve `handler(request)` or `handler(request, context)`, an async generator, until the runtime is shut down.

        `graceful_shutdown=False` cancels running requests at shutdown instead of waiting for them. `metrics_labels` and
        `health_check_payload` are accepted for compatibility; they speak to a status server that this SDK has not.
        """
        try:
            await self.open(handler, graceful_shutdown)
            await self.runtime.closed.wait()
        except asyncio.CancelledError:
            await self.unregister_endpoint_instance()
            raise
        finally:
            self.refuse()

    async def open(
        self, handler: Callable[..., AsyncIterator[Any]], graceful_shutdown: bool = True, codecs: Codecs = CODECS
    ) -> None:
        """The first half of `serve_endpoint`: returns once requests can come. The runtime's shutdown ends it."""
        await self.runtime.open()
        self._waits_for_running = graceful_shutdown
        self.target = self.runtime.attach(self, self._path, _with_context(handler), codecs)
        self._instance = Instance(
            self.namespace,
            self.component,
            self.name,
            self.connection_id(),
            {"tcp": self.target},
            device_type=DEVICE_TYPE,
            request_plane_codec="msgpack",
        )
        await self.register_endpoint_instance()

    async def register_endpoint_instance(self) -> None:
        """Be listed in discovery (again). Raises RuntimeError unless the endpoint is being served."""
        await self.runtime.publish(INSTANCES, self.key(), msgspec.json.encode(self.instance))

    async def unregister_endpoint_instance(self) -> None:
        """Leave discovery without ending to serve, as a sleeping worker does."""
        if self._instance is None:
            return
        await self.runtime.withdraw(INSTANCES, self.key())

    def refuse(self) -> None:
        """Take no further requests."""
        if self._instance is None:
            return
        self.runtime.detach(self._path, cancel=not self._waits_for_running)


def _with_context(handler: Callable[..., AsyncIterator[Any]]) -> Handler:
    """Handlers may leave the context out, as Dynamo's may."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(handler).parameters
    if "context" in parameters or sum(p.kind in kinds for p in parameters.values()) >= 2:
        return handler

    def without_context(request: Any, _context: Context) -> AsyncIterator[Any]:
        return handler(request)

    return without_context


def dynamo_worker() -> Callable[
    [Callable[Concatenate[DistributedRuntime, P], Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]
]:
    """Decorate `async def worker(runtime, ...)`: it gets an open runtime, which is drained when it returns."""

    def decorate(
        function: Callable[Concatenate[DistributedRuntime, P], Awaitable[T]],
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            runtime = DistributedRuntime()
            await runtime.open()
            try:
                return await function(runtime, *args, **kwargs)
            finally:
                await runtime.wait_closed()

        return run

    return decorate


def dynamo_endpoint(request_model: type[Any], response_model: type[Any]) -> Callable[[T], T]:
    """Decorate a handler: its request arrives as `request_model` (a pydantic model, msgspec struct or dataclass).

    Raises ValueError, which the client sees as an invalid argument, when the body does not fit.
    `response_model` only documents.
    """

    def decorate(handler: Any) -> Any:
        @functools.wraps(handler)
        async def serve(*args: Any) -> AsyncIterator[Any]:
            at = len(args) - (2 if isinstance(args[-1], Context) else 1)
            async for item in handler(*args[:at], _convert(args[at], request_model), *args[at + 1 :]):
                yield item

        return serve

    return decorate


def _convert(request: Any, model: type[Any]) -> Any:
    try:
        if hasattr(model, "model_validate"):
            return model.model_validate(request)
        return msgspec.convert(request, model)
    except ValueError as error:
        raise ValueError(f"request does not fit {model.__name__}: {error}") from None
