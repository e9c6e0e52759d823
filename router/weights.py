"""What the parts of a placement's cost weigh: the operator's choice, a worker set's own, a request's own."""

from __future__ import annotations

import math
from typing import Final

import msgspec
from msgspec import Struct, field

from dynamo.shared.card import CardError
from dynamo.shared.kv_router_options import KvRouterOptions
from dynamo.shared.protocol import RouterConfigOverride


class Weights(Struct, frozen=True, kw_only=True):
    """Credits and weights are in blocks per block or per request. The names on the wire are those of Dynamo's
    `KvRouterConfig`, and so are the defaults.

    `overlap_score_credit` is what a prompt block in a rank's device cache takes off its cost, the cache hit weights
    what one further down takes off, unless the former is 0; `overlap_score_credit_decay` lowers the former on ranks
    with more to prefill than the others. Without `assume_kv_reuse` running requests are taken to share no blocks.
    Raises ValueError for numbers that are negative or not finite, and for hit weights above 1: a block further down is
    not worth more than a computed one.
    """

    overlap_score_credit: float = 1.0
    overlap_score_credit_decay: float = 0.0
    prefill_load_scale: float = 1.0
    decode_active_request_weight: float = 0.0
    host_cache_hit_weight: float = 0.75
    disk_cache_hit_weight: float = 0.25
    router_temperature: float = 0.0
    shared_cache_multiplier: float = 0.0
    track_prefill_tokens: bool = field(default=True, name="router_track_prefill_tokens")
    track_active_blocks: bool = field(default=True, name="router_track_active_blocks")
    assume_kv_reuse: bool = field(default=True, name="router_assume_kv_reuse")

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, not {value}")
        for name in ("host_cache_hit_weight", "disk_cache_hit_weight"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")

    @classmethod
    def from_card(cls, router_config: bytes | msgspec.Raw) -> Weights | None:
        """What a worker set asks for in its card's `router_config`; what it leaves out has Dynamo's default, not the
        operator's choice. None if it asks for nothing. Raises CardError."""
        if not bytes(router_config):
            return None
        try:
            found = _decode_card(router_config)
        except msgspec.MsgspecError as error:
            raise CardError(f"router_config cannot be read: {error}") from None
        return None if found is None else found.kv_router_config

    @classmethod
    def from_options(cls, options: KvRouterOptions) -> Weights:
        """The operator's own. Raises ValueError."""
        by_load = options.load_aware
        return cls(
            overlap_score_credit=options.weight_credit,
            overlap_score_credit_decay=options.router_kv_overlap_score_credit_decay,
            prefill_load_scale=options.weight_scale,
            decode_active_request_weight=options.router_decode_active_request_weight,
            host_cache_hit_weight=options.router_host_cache_hit_weight,
            disk_cache_hit_weight=options.router_disk_cache_hit_weight,
            router_temperature=options.router_temperature,
            track_prefill_tokens=options.router_track_prefill_tokens or by_load,
            track_active_blocks=options.router_track_active_blocks or by_load,
            assume_kv_reuse=options.router_assume_kv_reuse and not by_load,
        )

    def overridden(self, by: RouterConfigOverride) -> Weights:
        """These weights with a request's own in their place."""
        own = {name: value for name in by.__struct_fields__ if (value := getattr(by, name)) is not None}
        return msgspec.structs.replace(self, **own) if own else self


_NUMBERS: Final = tuple(each.name for each in msgspec.structs.fields(Weights) if each.type is float)


class _RouterConfig(Struct):
    """`router_config` of a card, as far as the cost goes."""

    kv_router_config: Weights | None = None


_decode_card = msgspec.json.Decoder(_RouterConfig | None).decode
