"""What Dynamo's standalone router serves on the request plane, below `<namespace>.router`:

    best_worker_id      token ids -> the worker that would be chosen; nothing is placed
    get_overlap_scores  {token_ids, ...} -> per rank and tier, the leading blocks of the prompt that it holds
    generate            a preprocessed request -> the answer of the worker that was chosen

All of them are about the workers of one endpoint, of whatever type: those that only prefill, too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from dynamo.router.config import RouterConfig
from dynamo.router.core import Router
from dynamo.router.cost import spread
from dynamo.router.forwarding import Forwarder
from dynamo.router.local_acceptor import GivenUp, LocalAcceptor, NotPlaced
from dynamo.router.table import LiveSet
from dynamo.shared.hashing import block_hashes, hash_seed, pack_tokens, sequence_hashes
from dynamo.shared.messages import Explained, Place, Refused, RoutingHints
from dynamo.shared.protocol import AgentContext, RouterConfigOverride, Routing
from dynamo.shared.request_plane import exceptions
from dynamo.shared.request_plane.client import EngineClient
from dynamo.shared.request_plane.context import Context
from dynamo.shared.runtime import DistributedRuntime

COMPONENT = "router"
DEFAULT_BLOCK_SIZE = 128  # what Dynamo's router assumes; here it only counts while there is no worker
DEFAULTS: dict[str, Any] = {  # of what workers insist on
    "model": "unknown",
    "stop_conditions": {},
    "sampling_options": {},
    "output_options": {},
    "eos_token_ids": [],
    "annotations": [],
}

T = TypeVar("T")
TokenId = Annotated[int, Meta(ge=0, lt=1 << 32)]
TokenIds = list[TokenId] | bytes  # packed u32 LE


class MediaObject(Struct):
    mm_hash: int


class BlockMedia(Struct):
    """The images and the like in one block."""

    mm_objects: list[MediaObject] = []


class Prompt(Struct, kw_only=True):
    """What prefixes are compared by. `cache_namespace` is what 1.6.1 calls a salt here."""

    token_ids: TokenIds
    router_config_override: RouterConfigOverride | None = None
    block_mm_infos: list[BlockMedia | None] | None = None
    lora_name: str | None = None
    cache_namespace: str | None = None

    @property
    def packed(self) -> bytes:
        return self.token_ids if isinstance(self.token_ids, bytes) else pack_tokens(self.token_ids)

    def block_hashes(self, block_size: int, *, is_eagle: bool) -> bytes:
        media = [[each.mm_hash for each in block.mm_objects] if block else [] for block in self.block_mm_infos or ()]
        seed = hash_seed(self.lora_name, self.cache_namespace)
        hashes = block_hashes(self.packed, block_size, seed, is_eagle=is_eagle, mm_hashes=media)
        return np.array(sequence_hashes(hashes), "<u8").tobytes()


class MediaRouting(Struct):
    """What a prompt with images is routed by, where that differs from what the engine gets."""

    routing_token_ids: TokenIds = []
    block_mm_infos: list[BlockMedia | None] = []


class GenerateRequest(Struct, kw_only=True):
    """The part of a preprocessed request that a router looks at. `dp_rank` is from older callers."""

    token_ids: TokenIds
    model: str = "unknown"
    routing: Routing | None = None
    dp_rank: int | None = None
    router_config_override: RouterConfigOverride | None = None
    agent_context: AgentContext | None = None
    mm_routing_info: MediaRouting | None = None

    @property
    def wishes(self) -> Routing:
        return Routing(dp_rank=self.dp_rank) if self.routing is None else self.routing

    @property
    def prompt(self) -> Prompt:
        media = self.mm_routing_info or MediaRouting()
        return Prompt(
            token_ids=media.routing_token_ids or self.token_ids,
            block_mm_infos=media.block_mm_infos,
            lora_name=self.wishes.lora_name,
            cache_namespace=self.wishes.cache_salt,
        )

    @property
    def hints(self) -> RoutingHints:
        wishes, session = self.wishes, self.agent_context
        return RoutingHints(
            priority_jump=wishes.priority_jump or 0.0,
            strict_priority=wishes.strict_priority or 0,
            expected_output_tokens=wishes.expected_output_tokens,
            session_id="" if session is None else session.session_id,
            is_session_final=session is not None and bool(session.session_final),
            allowed_worker_ids=wishes.allowed_worker_ids,
            constraints=wishes.routing_constraints,
            lora_name=wishes.lora_name,
            router_config=self.router_config_override,
        )


class RouterEndpoints:
    """`endpoint` is where the workers are, as in `dynamo.backend.generate`."""

    def __init__(self, config: RouterConfig, core: Router, local: LocalAcceptor, engine: EngineClient) -> None:
        assert config.endpoint is not None
        self.num_requests: Counter[str] = Counter()  # by endpoint
        self._core = core
        namespace, component, name = config.endpoint.split(".")
        self._namespace = config.namespace or namespace  # as in 1.6.1, for the workers too
        self._endpoint = f"{self._namespace}/{component}/{name}"
        self._block_size = config.router_block_size or DEFAULT_BLOCK_SIZE
        self._loop = asyncio.get_running_loop()
        self._forwarder = Forwarder(
            local, engine, core.table.workers.get, lambda: sum(each.requests for each in core.queue.depths().values())
        )

    async def open(self, runtime: DistributedRuntime) -> None:
        """Be found in discovery, and answer. The runtime's shutdown ends it."""
        handlers = (self.generate, self.best_worker_id, self.get_overlap_scores)
        for handler in handlers:
            await runtime.endpoint(f"{self._namespace}.{COMPONENT}.{handler.__name__}").open(handler)

    # ---- the endpoints

    async def best_worker_id(self, request: Any) -> AsyncGenerator[int, None]:
        """The request is the token ids themselves, as in 1.6.1, or an object as `get_overlap_scores` takes it."""
        self.num_requests["best_worker_id"] += 1
        prompt = _read(request if isinstance(request, dict) else {"token_ids": request}, Prompt)
        hints = RoutingHints(lora_name=prompt.lora_name, router_config=prompt.router_config_override)
        answer = self._core.inquiries.explain(self._place(prompt, "", hints), self._loop.time())
        if isinstance(answer, Refused):
            raise _as_dynamo(NotPlaced(answer))
        yield _best_of(answer)

    async def get_overlap_scores(self, request: Any) -> AsyncGenerator[dict[str, Any], None]:
        self.num_requests["get_overlap_scores"] += 1
        prompt = _read(request, Prompt)
        live = self._live("")
        hashes = self._hashes(prompt, live)
        yield {
            "block_size": self._block_size_of(live),
            "num_blocks": len(hashes) // 8,
            "workers": self._overlaps(hashes),
            "shared_cache": {"enabled": False, "total_hit_blocks": 0, "ranges": [], "error": None},
        }

    async def generate(self, request: Any, context: Context) -> AsyncGenerator[Any, None]:
        self.num_requests["generate"] += 1
        wanted = _read(request, GenerateRequest)
        live = self._live(wanted.model)
        place = self._place(wanted.prompt, wanted.model, wanted.hints, wanted.wishes, context.id())
        body = DEFAULTS | request | {"token_ids": _as_list(wanted.token_ids)}
        try:
            async with aclosing(self._forwarder.forward(place, body, context, self._block_size_of(live))) as items:
                async for item in items:
                    yield item
        except NotPlaced as refusal:
            raise _as_dynamo(refusal) from None
        except GivenUp:
            return

    # ---- prompts and workers

    def _place(
        self, prompt: Prompt, model: str, hints: RoutingHints, wishes: Routing | None = None, label: str = ""
    ) -> Place:
        wishes = wishes or Routing()
        return Place(
            0,
            model,
            len(prompt.packed) // 4,
            self._hashes(prompt, self._live(model)),
            instance_id=wishes.backend_instance_id,
            dp_rank=wishes.dp_rank,
            label=label,
            hints=hints,
            endpoint=self._endpoint,
        )

    def _live(self, model: str) -> LiveSet | None:
        """The set that decides how prompts are cut; None while there is no worker."""
        sets = self._core.table.at_endpoint(self._endpoint)
        return next((live for live in sets if model in live.names), sets[0] if sets else None)

    def _block_size_of(self, live: LiveSet | None) -> int:
        return self._block_size if live is None else live.block_size

    def _hashes(self, prompt: Prompt, live: LiveSet | None) -> bytes:
        is_eagle = live is not None and live.leader.card.runtime_config.enable_eagle
        return prompt.block_hashes(self._block_size_of(live), is_eagle=is_eagle)

    def _overlaps(self, hashes: bytes) -> list[dict[str, int | None]]:
        """Every tier counts with those above it; the extensions are what it adds to them."""
        fleet = self._core.fleet
        workers = sorted({i for live in self._core.table.at_endpoint(self._endpoint) for i in live.members})
        ranks = [(i, rank, slot) for i in workers for rank, slot in fleet.ranks.slots_of(i).items()]
        slots = np.array([slot for _worker, _rank, slot in ranks], np.int64)
        mask = sum(1 << slot for _worker, _rank, slot in ranks)
        found = fleet.match(hashes, mask, self._loop.time())
        device_blocks = spread(found.device, slots, mask).tolist()
        rows = []
        for (worker_id, dp_rank, slot), device in zip(ranks, device_blocks, strict=True):
            host = found.host.get(slot, 0)
            disk = found.disk.get(slot, 0) + found.external.get(slot, 0)
            rows.append(
                {
                    "worker_id": worker_id,
                    "dp_rank": dp_rank,
                    "device_blocks": device,
                    "host_pinned_blocks": device + host,
                    "disk_blocks": device + host + disk,
                    "host_pinned_extension_blocks": host,
                    "disk_extension_blocks": disk,
                    "shared_beyond_device_blocks": None,
                }
            )
        return rows


def _read(request: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(request, kind, builtin_types=(bytes,))  # no base64
    except msgspec.ValidationError as error:
        raise exceptions.InvalidArgument(f"the request cannot be read: {error}") from None


def _as_list(token_ids: TokenIds) -> list[int]:
    return np.frombuffer(token_ids, "<u4").tolist() if isinstance(token_ids, bytes) else token_ids


def _best_of(answer: Explained) -> int:
    """A full queue makes nobody less fit."""
    if answer.choice is not None:
        return answer.choice.instance_id
    compared = [row for row in answer.candidates if row.cost is not None]
    if not compared:
        raise exceptions.WorkerUnavailable(f"nobody can be chosen: {answer.outcome}")
    return min(compared, key=lambda row: row.cost or 0.0).instance_id


def _as_dynamo(refusal: NotPlaced) -> Exception:
    match refusal.code:
        case "invalid_value":
            return exceptions.InvalidArgument(str(refusal))
        case "overloaded" | "queue_full":
            return exceptions.HttpError(529, str(refusal))
        case _:
            return exceptions.WorkerUnavailable(str(refusal))
