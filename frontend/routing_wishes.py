"""Where a request wants to go and how urgently: headers and `nvext` become what the worker and the router are told."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from dynamo.frontend.openai_requests import AgentHints, ChatCompletionRequest, JsonObject, NvExt
from dynamo.frontend.routing_headers import NO_ROUTING_HEADERS, RoutingHeaders
from dynamo.shared.messages import RoutingHints
from dynamo.shared.protocol import AgentContext, RouterConfigOverride, Routing

POLICY_CLASS = "policy-class"  # the metadata that names a queue of the router

_NO_NVEXT = NvExt()
_NO_HINTS = AgentHints()
_ORDINARY = RoutingHints()
_TRIGGERS = {"user": "user_message", "tool": "tool_result"}


class RoutingWishes(Struct, frozen=True):
    """`routing` and what follows `hints` up to `timestamp_ms` are for the worker, `hints` for the router. `instance_id`
    pins the request; `pinned_by` is the field or header that a refusal is about."""

    routing: Routing
    hints: RoutingHints | None
    agent_context: AgentContext | None
    router_config: RouterConfigOverride | None
    metadata: dict[str, str]
    latency_targets: JsonObject | None
    timestamp_ms: float | None
    instance_id: int | None
    pinned_by: str

    @property
    def cache_salt(self) -> str | None:
        return self.routing.cache_salt

    @property
    def dp_rank(self) -> int | None:
        return self.routing.dp_rank


_ANYWHERE = RoutingWishes(Routing(), None, None, None, {}, None, None, None, "nvext.backend_instance_id")


class Wishing(Protocol):
    """A request of any API that asks workers."""

    @property
    def cache_salt(self) -> str | None: ...

    @property
    def priority(self) -> int | None: ...

    @property
    def nvext(self) -> NvExt | None: ...


def routing_wishes(request: Wishing, headers: RoutingHeaders, lora_name: str | None = None) -> RoutingWishes:
    is_plain = request.nvext is None and not request.cache_salt and request.priority is None
    if is_plain and headers is NO_ROUTING_HEADERS and not lora_name:
        return _ANYWHERE
    nvext = request.nvext or _NO_NVEXT
    routing = _routing(request, nvext, headers, lora_name)
    hints = _hints(nvext, headers, routing)
    return RoutingWishes(
        routing=routing,
        hints=None if hints == _ORDINARY else hints,
        agent_context=None if headers.session is None else replace(headers.session, input_trigger=_trigger(request)),
        router_config=nvext.router_config_override,
        metadata=headers.metadata,
        latency_targets=nvext.router,
        timestamp_ms=nvext.request_timestamp_ms,
        instance_id=routing.backend_instance_id if routing.decode_worker_id is None else routing.decode_worker_id,
        pinned_by=_pinned_by(nvext, headers),
    )


def _routing(request: Wishing, nvext: NvExt, headers: RoutingHeaders, lora_name: str | None) -> Routing:
    hints = nvext.agent_hints or _NO_HINTS
    priority = _first(headers.priority, hints.priority)
    if priority is None and request.priority is not None:
        priority = -request.priority  # vLLM's lower is earlier, Dynamo's higher is
    return Routing(
        backend_instance_id=_first(headers.worker_id, nvext.backend_instance_id),
        prefill_worker_id=_first(headers.prefill_worker_id, nvext.prefill_worker_id),
        decode_worker_id=_first(headers.worker_id, nvext.decode_worker_id),
        dp_rank=_first(headers.dp_rank, nvext.dp_rank),
        prefill_dp_rank=_first(headers.prefill_dp_rank, nvext.prefill_dp_rank),
        expected_output_tokens=hints.osl,
        lora_name=lora_name,
        cache_salt=headers.tenant or nvext.cache_salt or request.cache_salt or None,
        priority=priority,
        priority_jump=hints.latency_sensitivity if priority is None else max(0.0, float(priority)),
        strict_priority=_first(headers.strict_priority, hints.strict_priority),
        allowed_worker_ids=nvext.allowed_worker_ids,
        routing_constraints=nvext.routing_constraints,
    )


def _hints(nvext: NvExt, headers: RoutingHeaders, routing: Routing) -> RoutingHints:
    session = headers.session
    return RoutingHints(
        priority_jump=routing.priority_jump or 0.0,
        strict_priority=routing.strict_priority or 0,
        policy_class=headers.metadata.get(POLICY_CLASS, ""),
        expected_output_tokens=routing.expected_output_tokens,
        session_id="" if session is None else session.session_id,
        is_session_final=session is not None and bool(session.session_final),
        allowed_worker_ids=routing.allowed_worker_ids,
        constraints=routing.routing_constraints,
        lora_name=routing.lora_name,
        router_config=nvext.router_config_override,
    )


def _first(header: int | None, field: int | None) -> int | None:
    return field if header is None else header


def _pinned_by(nvext: NvExt, headers: RoutingHeaders) -> str:
    if headers.worker_from:
        return headers.worker_from
    if nvext.decode_worker_id is not None:
        return "nvext.decode_worker_id"
    if nvext.backend_instance_id is not None:
        return "nvext.backend_instance_id"
    if headers.dp_rank_from or nvext.dp_rank is not None:
        return headers.dp_rank_from or "nvext.dp_rank"
    if nvext.allowed_worker_ids is not None:
        return "nvext.allowed_worker_ids"
    return "nvext.routing_constraints" if nvext.routing_constraints is not None else "nvext.backend_instance_id"


def _trigger(request: Wishing) -> str:
    """What the last message is: the user's, or the answer of a tool that the model has called."""
    if not isinstance(request, ChatCompletionRequest):
        return "other"
    return _TRIGGERS.get(request.messages[-1]["role"], "other")
