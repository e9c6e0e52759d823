"""KV events as Dynamo 1.6.1 publishes them, and the query by which a router catches up with a worker.

A worker numbers its events per (worker, dp_rank): 1, 2, 3 ... A router that sees a hole asks the worker's recovery
endpoint. Hashes are u64; see `hashing`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from dynamo.shared.event_plane import EndpointScope, Scope
from dynamo.shared.protocol import Instance

KV_EVENTS_TOPIC = "kv-events"
LOAD_TOPIC = "kv_metrics"
TIERS = ("device", "host_pinned", "disk", "external")
CLEARED: Final = "cleared"

Hash: TypeAlias = Annotated[int, Meta(ge=0)]  # u64; a decoder cannot state bounds above i64


class StoredBlock(Struct, gc=False):
    """`block_hash` is the engine's own name of the block and all before it, opaque to us; `tokens_hash` is the hash of
    its tokens alone."""

    block_hash: Hash
    tokens_hash: Hash
    mm_extra_info: Any = None


class Stored(Struct, gc=False):
    """Consecutive blocks; the first follows `parent_hash` (an engine hash), or starts a sequence."""

    blocks: list[StoredBlock]
    parent_hash: Hash | None = None
    start_position: int | None = None


class Removed(Struct, gc=False):
    block_hashes: list[Hash]


class Change(Struct, gc=False, omit_defaults=True):
    """Exactly one of both."""

    stored: Stored | UnsetType = UNSET
    removed: Removed | UnsetType = UNSET


class KvEvent(Struct, gc=False):
    """`data` is a `Change`, or the string `cleared`: the rank holds nothing any more."""

    event_id: int
    data: Change | Literal["cleared"]
    dp_rank: int = 0


class RouterEvent(Struct, gc=False):
    """One event of one worker. A missing tier means the device."""

    worker_id: int
    event: KvEvent
    storage_tier: str = "device"
    residency_domain: str | None = None


class LoadReport(Struct, omit_defaults=True):
    """What a rank says of its own load, on topic `kv_metrics`; None is not known to it."""

    worker_id: int
    dp_rank: int = 0
    active_decode_blocks: int | None = None
    active_prefill_tokens: int | None = None
    kv_used_blocks: int | None = None


class WorkerRank(Struct, frozen=True):
    worker_id: int
    dp_rank: int = 0


# --------------------------------------------------------------------------- recovery


class RecoveryTarget(Instance, tag=False):
    """The instance that answers recovery queries, as it is written inside a source."""


class SourceMetadata(Struct, omit_defaults=True):
    """`kv_state_endpoint` says whose blocks the events are about. Without a target nobody answers queries."""

    kv_state_endpoint: EndpointScope
    worker: WorkerRank
    publisher_id: int
    recovery_target: RecoveryTarget | None = None


class EventSource(Struct, tag_field="type", tag="EventSource"):
    """Value below `v1/event_sources`: who numbers the events of a rank, and where to ask for those one missed."""

    scope: Scope
    topic: str
    publisher_id: int
    metadata: SourceMetadata


class RecoveryQuery(Struct):
    """Events from `start_event_id` on; None asks for all that the rank holds."""

    worker_id: int
    dp_rank: int
    start_event_id: int | None = None
    end_event_id: int | None = None
    supports_tree_dump_failed: bool = True
    kind: str = "recovery"


class TreeDump(Struct):
    """Everything there is, as stored events with ids of their own; live events go on after `last_event_id`."""

    events: list[RouterEvent]
    last_event_id: int
    reset_scope: str = "all"  # what it replaces


class Events(Struct):
    """The events asked for, with their own ids."""

    events: list[RouterEvent]
    last_event_id: int


class TooNew(Struct):
    """The worker has not come so far yet."""

    requested_start: int | None = None
    requested_end: int | None = None
    newest_available: int | None = None


class InvalidRange(Struct):
    start_id: int
    end_id: int


class TreeDumpFailed(Struct):
    last_event_id: int
    message: str


class RecoveryAnswer(Struct, omit_defaults=True):
    """Exactly one of these, by its own name."""

    tree_dump: TreeDump | None = msgspec.field(default=None, name="TreeDump")
    events: Events | None = msgspec.field(default=None, name="Events")
    too_new: TooNew | None = msgspec.field(default=None, name="TooNew")
    invalid_range: InvalidRange | None = msgspec.field(default=None, name="InvalidRange")
    tree_dump_failed: TreeDumpFailed | None = msgspec.field(default=None, name="TreeDumpFailed")
    error: str | None = msgspec.field(default=None, name="Error")


encode_events = msgspec.msgpack.Encoder().encode  # list[RouterEvent] -> payload
decode_events = msgspec.msgpack.Decoder(list[RouterEvent]).decode
encode_load = msgspec.msgpack.Encoder().encode
decode_load = msgspec.msgpack.Decoder(LoadReport).decode
