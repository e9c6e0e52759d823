"""What routers tell each other of their load, and what our own replicas say beyond that.

Dynamo 1.6.1's routers know two topics in the scope of a worker endpoint: `ActiveSequenceEvent`s, several in a map over
ZeroMQ and one per message over NATS, and `AffinityBinding`s. A worker reports its prefills in the first as well, under
its own id as `router_id`. `ReplicaUpdate`s are ours alone. Sequence hashes are packed u64 LE in memory.
"""

from __future__ import annotations

import sys
from array import array
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds

ACTIVE_SEQUENCES_TOPIC = "active_sequences_events"
AFFINITY_TOPIC = "session_affinity_events"
REPLICA_TOPIC = "gateway_replica_events"

PREFILL_COMPLETED = "MarkPrefillCompleted"
FREE = "Free"

NumTokens: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 40)]  # sums of them must fit into i64
Sequence: TypeAlias = Annotated[int, Meta(ge=0, lt=(1 << 63) - 1)]  # the next one is u64 too

# --------------------------------------------------------------------------- Dynamo's


class PrefillLoad(Struct, gc=False):
    initial_effective_prefill_tokens: NumTokens
    expected_prefill_duration: Any = None


class AddRequest(Struct):
    """`token_sequence` is a msgpack array of sequence hashes (see `pack_hashes`), or null. No hint: nothing is left to
    prefill."""

    token_sequence: Raw
    track_prefill_tokens: bool = True
    expected_output_tokens: NumTokens | None = None
    prefill_load_hint: PrefillLoad | None = None

    @property
    def num_prefill_tokens(self) -> int:
        if self.prefill_load_hint is None or not self.track_prefill_tokens:
            return 0
        return self.prefill_load_hint.initial_effective_prefill_tokens


class Addition(Struct):
    """The variant of `data` that carries something; unset for variants that are not known."""

    add_request: AddRequest | UnsetType = field(default=UNSET, name="AddRequest")


class ActiveSequenceEvent(Struct):
    """A request was placed, or (`PREFILL_COMPLETED`, `FREE`) came so far. `router_id` says by whom."""

    request_id: str
    worker: WorkerRank
    data: Addition | str
    router_id: int
    lora_name: str | None = None


class ActiveSequenceBatch(Struct):
    events: list[ActiveSequenceEvent]


class AffinityBinding(Struct, frozen=True):
    """A session is bound to a rank. Of two bindings the one with the higher (sequence, writer_id) holds; Dynamo's
    sequences are nanoseconds since 1970. A binding that is used again is said again, unchanged."""

    session_id: str
    worker_id: int
    dp_rank: int | None
    sequence: Sequence
    writer_id: int


# --------------------------------------------------------------------------- ours


class ReplicaMessage(Struct, array_like=True, frozen=True):
    """Base of all messages between our replicas."""


class Position(ReplicaMessage, frozen=True):
    """A moment of the sender's: `publisher_id` has published so many envelopes with active sequences. A new `epoch`
    says that some were lost before they were published."""

    publisher_id: int
    num_published: int
    epoch: int


class Alive(ReplicaMessage, tag=1, frozen=True):
    """Said each second. `num_active` requests of the sender are running at this position."""

    position: Position
    num_active: int


class AskSnapshot(ReplicaMessage, tag=2, frozen=True):
    """To one replica: say again everything you know."""

    router_id: int


class RunningRequest(ReplicaMessage, frozen=True):
    """`num_prefill_tokens` is what its prompt still counts for."""

    request_id: str
    worker: WorkerRank
    block_hashes: bytes
    num_prefill_tokens: NumTokens
    expected_output_tokens: NumTokens | None = None
    lora_name: str | None = None


class VersionedThresholds(ReplicaMessage, frozen=True):
    """Of two the one with the higher (version, router_id) holds."""

    thresholds: Thresholds
    version: int
    router_id: int


class SnapshotSlice(ReplicaMessage, tag=3, frozen=True):
    """A part of what the sender knew at a position: slice `index` of snapshot `number`. Envelopes with active sequences
    that were published before are in it, those after it change it."""

    number: int
    index: int
    is_last: bool
    position: Position
    requests: list[RunningRequest] = []
    thresholds: list[VersionedThresholds] = []
    bindings: list[AffinityBinding] = []


class ThresholdsSet(ReplicaMessage, tag=4, frozen=True):
    """Somebody has set the thresholds of a model."""

    versioned: VersionedThresholds


class Predicted(ReplicaMessage, tag=5, frozen=True):
    """These blocks are expected in the cache of a rank, for a request was placed there."""

    worker: WorkerRank
    block_hashes: bytes


class Leaving(ReplicaMessage, tag=6, frozen=True):
    """An orderly exit: nothing of the sender's runs any more."""


class ReplicaUpdate(Struct, array_like=True, frozen=True):
    """One payload."""

    router_id: int
    messages: list[Alive | AskSnapshot | SnapshotSlice | ThresholdsSet | Predicted | Leaving]


# --------------------------------------------------------------------------- bytes

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_binding = msgspec.msgpack.Decoder(AffinityBinding).decode
decode_update = msgspec.msgpack.Decoder(ReplicaUpdate).decode
_decode_event = msgspec.msgpack.Decoder(ActiveSequenceEvent).decode
_decode_batch = msgspec.msgpack.Decoder(ActiveSequenceBatch).decode
_decode_integers = msgspec.msgpack.Decoder(list[Annotated[int, Meta(ge=0)]]).decode

_BATCH_HEAD = b"\x81\xa6events"
_UPDATE_HEAD = b"\x92"
_MAP_OF_ONE = 0x81
_U64 = 0xCF


def decode_active_sequences(payload: bytes) -> list[ActiveSequenceEvent]:
    """Either form. Raises msgspec.DecodeError (ValidationError among them)."""
    if payload[:1] == bytes((_MAP_OF_ONE,)):
        return _decode_batch(payload).events
    return [_decode_event(payload)]


def join_events(events: list[bytes]) -> bytes:
    """The payload of several encoded events."""
    return b"".join((_BATCH_HEAD, array_head(len(events)), *events))


def join_update(router_id: int, messages: list[bytes]) -> bytes:
    """The payload of several encoded messages."""
    return b"".join((_UPDATE_HEAD, encode(router_id), array_head(len(messages)), *messages))


def array_head(num: int) -> bytes:
    """How a msgpack array of so many elements starts."""
    if num < 16:
        return bytes((0x90 | num,))
    return b"\xdc" + num.to_bytes(2) if num < 1 << 16 else b"\xdd" + num.to_bytes(4)


def pack_hashes(block_hashes: bytes) -> Raw:
    """Packed u64 LE -> a msgpack array of uint64, without a Python int per hash.

    Every element takes nine bytes, 0xcf and the hash in big-endian; slices move one byte of each hash at a time.
    """
    num = len(block_hashes) >> 3
    body = bytearray(b"\xcf\0\0\0\0\0\0\0\0") * num
    for byte in range(8):
        body[8 - byte :: 9] = block_hashes[byte::8]
    return Raw(array_head(num) + body)


def unpack_hashes(token_sequence: Raw) -> bytes:
    """The way back; null is no hashes. Small numbers take fewer bytes: an array that holds one is read one by one."""
    packed = bytes(token_sequence)
    if packed == b"\xc0":
        return b""
    num, start = _read_array_head(packed)
    body = packed[start:]
    if len(body) != 9 * num or body[::9].count(_U64) != num:
        return _pack_integers(_decode_integers(packed))
    block_hashes = bytearray(8 * num)
    for byte in range(8):
        block_hashes[byte::8] = body[8 - byte :: 9]
    return bytes(block_hashes)


def _read_array_head(packed: bytes) -> tuple[int, int]:
    """Number of elements, and where they start."""
    end = {0xDC: 3, 0xDD: 5}.get(packed[0], 1)
    return (packed[0] & 0x0F if end == 1 else int.from_bytes(packed[1:end])), end


def _pack_integers(values: list[int]) -> bytes:
    packed = array("Q", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
