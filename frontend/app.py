"""The HTTP surface: routes, request ids, probes and the model list. Inference itself is in `inference`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from dynamo.frontend.admin import Admin
from dynamo.frontend.api_docs import ApiDocs
from dynamo.frontend.api_routes import MESSAGES, Routes
from dynamo.frontend.error_formats import ErrorFormats
from dynamo.frontend.inference import JSON, Handler, Inference, RequestIds
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.openai_answers import Model, model_response, models_response
from dynamo.frontend.router_client import RouterClient
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.shared.errors import (
    ClientDisconnected,
    DynamoError,
    InternalError,
    MethodNotAllowed,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    RouteNotFound,
    Unauthorized,
    UnsupportedFeature,
)
from dynamo.shared.messages import WorkerSet
from dynamo.shared.metrics import CONTENT_TYPE, render
from dynamo.shared.request_plane.client import fresh_uuid

log = logging.getLogger("dynamo.http")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,256}")
_MODELS = "/v1/models/"


class App:
    """`await app(exchange)` answers it. Raises nothing but ClientDisconnected and cancellation."""

    def __init__(
        self,
        inference: Inference,
        models: ModelRegistry,
        router: RouterClient,
        admin: Admin,
        save_metrics: Callable[[], None],
        metrics_directory: Path,
        overload_status_code: int,
        errors: ErrorFormats,
        api: Routes,
    ) -> None:
        self._inference = inference
        self._models = models
        self._router = router
        self._save_metrics = save_metrics
        self._metrics_directory = metrics_directory
        self._overload_status_code = overload_status_code
        self._errors = errors
        self._routes: Routes = {
            **api,
            "/v1/models": {"GET": self._list_models},
            _MODELS: {"GET": self._model_or_ready},
            "/health": {"GET": self._health},
            "/live": {"GET": self._live},
            "/metrics": {"GET": self._metrics},
            **admin.routes(),
        }
        docs = ApiDocs(self._routes)
        self._routes |= {
            "/openapi.json": {"GET": docs.openapi},
            "/docs": {"GET": docs.to_page},
            "/docs/": {"GET": docs.page},
        }
        self._below = sorted((path for path in self._routes if path.endswith("/")), key=len, reverse=True)

    async def __call__(self, exchange: Exchange) -> None:
        """Every answer carries `x-request-id`: the client's own if it is a sane one, else ours."""
        request_id = fresh_uuid()
        given = exchange.header("x-request-id")
        ids = RequestIds(request_id, given if given is not None and _REQUEST_ID.fullmatch(given) else request_id)
        headers = b"x-request-id: %b\r\n" % ids.shown.encode()
        if exchange.path.startswith(MESSAGES):
            headers += b"request-id: %b\r\n" % ids.shown.encode()  # where Anthropic's clients look for it
        try:
            await self._handler(exchange)(exchange, headers, ids)
        except ClientDisconnected:
            raise
        except DynamoError as error:
            self._respond_error(exchange, headers, ids, error)
        except Exception:
            log.exception("request %s (%s): %s %s failed", ids.own, ids.shown, exchange.method, exchange.path)
            self._respond_error(exchange, headers, ids, InternalError())

    def _handler(self, exchange: Exchange) -> Handler:
        path, method = exchange.path, exchange.method
        methods = self._routes.get(path) or self._methods_below(path)
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise MethodNotAllowed(method, path, ", ".join(methods).replace("GET", "GET, HEAD"))
        return handler

    def _methods_below(self, path: str) -> dict[str, Handler]:
        for folder in self._below:
            if path.startswith(folder) and path != folder:
                return self._routes[folder]
        raise RouteNotFound(f"There is nothing at {path}.")

    def _respond_error(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds, error: DynamoError) -> None:
        if exchange.is_started:
            exchange.abort()
            return
        if error.retry_after_s is not None:
            headers += b"retry-after: %d\r\n" % error.retry_after_s
        if isinstance(error, MethodNotAllowed):
            headers += b"allow: %b\r\n" % error.allow.encode()
        if isinstance(error, UnsupportedFeature):
            headers += b"x-should-retry: false\r\n"  # which OpenAI's and Anthropic's clients heed
        if isinstance(error, Unauthorized):
            headers += b"www-authenticate: Bearer\r\n"
        status = self._overload_status_code if error.status == Overloaded.status else error.status
        exchange.respond(status, JSON + headers, self._errors.body_at(exchange.path, error, ids.shown))

    # ---- models

    async def _list_models(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        exchange.respond(200, JSON + headers, models_response(self._entries()))

    async def _model_or_ready(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        answer = self._model_ready if exchange.path.endswith("/ready") else self._model
        await answer(exchange, headers, ids)

    async def _model(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        name = exchange.path.removeprefix(_MODELS)
        for entry in self._entries():
            if entry.id == name:
                exchange.respond(200, JSON + headers, model_response(entry))
                return
        if self._models.knows(name):
            raise ModelNotReady(f"The model {name!r} is registered but not ready; {_MODELS}{name}/ready says why.")
        raise ModelNotFound(name)

    async def _model_ready(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        name = exchange.path.removeprefix(_MODELS).removesuffix("/ready")
        exchange.respond(200, JSON + headers, msgspec.json.encode(self._models.readiness(name)))

    def _entries(self) -> list[Model]:
        return [
            Model(id=name, created=self._models.created, context_window=model.max_context_length)
            for name, model in self._models.ready_models()
        ]

    # ---- probes

    async def _live(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        exchange.respond(200, JSON + headers, b'{"status":"live","message":"Service is live"}')

    async def _health(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        """200 with or without workers, as 1.6.1; 503 while draining. `router` says whether placement is by the
        router."""
        is_draining = self._inference.is_draining
        body = {
            "status": "not_ready" if is_draining else "healthy",
            **({"stage": "draining"} if is_draining else {}),
            "endpoints": sorted({f"dyn://{s.namespace}.{s.component}.{s.endpoint}" for s in self._sets()}),
            "instances": self._instances(),
            "router": "connected" if self._router.is_connected else "away",
        }
        exchange.respond(503 if is_draining else 200, JSON + headers, json.dumps(body).encode())

    async def _metrics(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        self._save_metrics()
        body = render(self._metrics_directory)
        exchange.respond(200, b"content-type: %b\r\n" % CONTENT_TYPE.encode() + headers, body)

    def _sets(self) -> list[WorkerSet]:
        return list(self._router.table.worker_sets.values())

    def _instances(self) -> list[dict[str, object]]:
        workers = self._router.table.workers
        found: dict[int, dict[str, object]] = {}
        for worker_set in self._sets():
            for instance_id in worker_set.members:
                if (worker := workers.get(instance_id)) is not None:
                    found[instance_id] = {
                        "component": worker_set.component,
                        "endpoint": worker_set.endpoint,
                        "namespace": worker_set.namespace,
                        "instance_id": instance_id,
                        "transport": {"tcp": f"{worker.address}/{worker.path}"},
                        "device_type": worker.device_type or None,
                        "request_plane_codec": worker.codec,
                    }
        return [found[instance_id] for instance_id in sorted(found)]
