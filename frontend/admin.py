"""Routes for operators: when workers count as busy, and what the router would do with a request.

The thresholds are at `/busy_threshold` too, the path of 1.6.1.
"""

from __future__ import annotations

import hmac
from functools import partial
from time import perf_counter
from typing import Annotated, Any, TypeAlias
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta, Struct

from dynamo.frontend.explain import explanation
from dynamo.frontend.inference import JSON, Handler, RequestIds, require_json
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.mouths import ChatMouth, CompletionMouth, Mouth
from dynamo.frontend.openai_diagnosis import explain as diagnose
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.router_client import RouterClient
from dynamo.frontend.routing_headers import RoutingHeaderReader
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.shared.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestError,
    RouteNotFound,
    Unauthorized,
    Unprocessable,
)
from dynamo.shared.messages import Thresholds

Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ThresholdsBody(Struct, kw_only=True):
    """Body and answer of `/busy_threshold`. Fractions are of a worker's KV blocks and of its
    `max_num_batched_tokens`."""

    model: Annotated[str, Meta(min_length=1)]
    active_decode_blocks_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    active_prefill_tokens_threshold: Tokens | None = None
    active_prefill_tokens_threshold_frac: Annotated[float, Meta(ge=0)] | None = None

    @property
    def asks_only(self) -> bool:
        return (
            self.active_decode_blocks_threshold is None
            and self.active_prefill_tokens_threshold is None
            and self.active_prefill_tokens_threshold_frac is None
        )


class Replacement(ThresholdsBody, forbid_unknown_fields=True):
    """Body of a PUT: what it leaves out is switched off, so a misspelt name must not pass."""


class AdminAccess:
    """Who may use these routes: everybody, whoever has the key, or nobody."""

    def __init__(self, is_enabled: bool, api_key: str | None) -> None:
        self._is_enabled = is_enabled
        self._api_key = api_key.encode() if api_key else None

    def check(self, exchange: Exchange) -> None:
        """Raises RouteNotFound or Unauthorized."""
        if not self._is_enabled:
            raise RouteNotFound("The admin routes are switched off (--disable-frontend-admin-api).")
        if self._api_key is None:
            return
        scheme, _, given = (exchange.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._api_key):
            raise Unauthorized("This route takes the admin key, as in `Authorization: Bearer KEY`.")


class Admin:
    def __init__(
        self, access: AdminAccess, router: RouterClient, pipeline: Pipeline, routing_headers: RoutingHeaderReader
    ) -> None:
        self._access = access
        self._router = router
        self._pipeline = pipeline
        self._routing_headers = routing_headers

    def routes(self) -> dict[str, dict[str, Handler]]:
        thresholds: dict[str, Handler] = {
            "GET": self._all_thresholds,
            "POST": partial(self._set_thresholds, replaces=False),
            "PUT": partial(self._set_thresholds, replaces=True),
        }
        explain: dict[str, Handler] = {"GET": self._explain_prompt, "POST": self._explain_body}
        routes: dict[str, dict[str, Handler]] = {
            "/busy_threshold": {method: partial(_with_plain_errors, handler) for method, handler in thresholds.items()},
            "/v1/admin/busy_threshold": thresholds,
            "/v1/admin/router/explain": explain,
        }
        return {
            path: {method: partial(self._guarded, handler) for method, handler in methods.items()}
            for path, methods in routes.items()
        }

    async def _guarded(self, handler: Handler, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        self._access.check(exchange)
        await handler(exchange, headers, ids)

    # ---- busy thresholds

    async def _all_thresholds(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        found = [_body_of(one) for one in await self._router.thresholds()]
        exchange.respond(200, JSON + headers, msgspec.json.encode({"thresholds": found}))

    async def _set_thresholds(
        self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds, *, replaces: bool
    ) -> None:
        """POST leaves what is not named and reads back when nothing is; PUT switches off what is not named."""
        body = await _read_thresholds(exchange, Replacement if replaces else ThresholdsBody)
        if body.asks_only and not replaces:
            found = await self._router.thresholds(body.model)
        else:
            found = await self._router.set_thresholds(_thresholds_of(body), replaces=replaces)
        if not found:
            raise ModelNotFound(body.model)
        exchange.respond(200, JSON + headers, msgspec.json.encode(_body_of(found[0])))

    # ---- explain

    async def _explain_prompt(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        query = parse_qs(exchange.query, keep_blank_values=True)
        body = {name: query[name][0] for name in ("model", "prompt") if name in query}
        await self._explain(msgspec.json.encode(body), exchange, headers, ids)

    async def _explain_body(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        require_json(exchange)
        await self._explain(await exchange.read_body(), exchange, headers, ids)

    async def _explain(self, body: bytes, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        mouth = _mouth_for(body)
        record = RequestRecord(ids.own, ids.shown, "explain", perf_counter())
        batch = await mouth.prepare(self._pipeline, mouth.decode(body), record, self._routing_headers.read(exchange))
        if any(prepared.token_ids is not batch[0].token_ids for prepared in batch):
            raise InvalidRequest("One prompt at a time can be explained.", "prompt")
        explained = await self._pipeline.explain(batch[0])
        exchange.respond(200, JSON + headers, explanation(record.model, batch[0].num_tokens, explained))


async def _with_plain_errors(handler: Handler, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
    """What is wrong with a request is a plain string at this path of 1.6.1."""
    try:
        await handler(exchange, headers, ids)
    except RequestError as error:
        exchange.respond(error.status, JSON + headers, msgspec.json.encode({"error": error.message}))


def _mouth_for(body: bytes) -> Mouth[Any]:
    """What is no object at all is a completion's business to refuse."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return CompletionMouth()
    return ChatMouth() if "messages" in fields else CompletionMouth()


async def _read_thresholds(exchange: Exchange, kind: type[ThresholdsBody]) -> ThresholdsBody:
    """A field that is missing or of another type is a 422, as in 1.6.1; one out of range a 400."""
    require_json(exchange)
    body = await exchange.read_body()
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as failure:
        error = diagnose(failure, body, kind)
    if error.code in ("missing_field", "invalid_type"):
        error = Unprocessable(error.message, error.param, error.code)
    raise error


def _thresholds_of(body: ThresholdsBody) -> Thresholds:
    return Thresholds(
        body.model,
        body.active_decode_blocks_threshold,
        body.active_prefill_tokens_threshold,
        body.active_prefill_tokens_threshold_frac,
    )


def _body_of(thresholds: Thresholds) -> ThresholdsBody:
    return ThresholdsBody(
        model=thresholds.model,
        active_decode_blocks_threshold=thresholds.active_decode_blocks_threshold,
        active_prefill_tokens_threshold=thresholds.active_prefill_tokens_threshold,
        active_prefill_tokens_threshold_frac=thresholds.active_prefill_tokens_threshold_frac,
    )
