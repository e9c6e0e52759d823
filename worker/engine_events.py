"""KV events as engines themselves publish them, vLLM and SGLang of several versions.

A batch is msgpack: `[time, events, data_parallel_rank]`, or a map of these. An event is `[type, value, ...]`, or a map
with its `type`. Later versions append fields, and engines leave out those that they do not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from dynamo.worker.engine_blocks import BlockMmInfo, MmObject

CACHE_SALT_PREFIX = "dynamo-cache-salt:"  # what Dynamo's vLLM worker puts before a salt, so that it can be told
HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

EngineHash = int | bytes
ExtraKeys = list[list[Any] | None]


class NotABatch(ValueError):
    """The message holds no events that can be read."""


class EngineEvent(Struct, tag_field="type", kw_only=True):
    """`medium` says on which kind of memory, `group_idx` and `kv_cache_spec_kind` for which layers of the model."""

    medium: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    locality: str | None = None
    source_kind: str | None = None


class BlockStored(EngineEvent, tag="BlockStored"):
    block_hashes: list[EngineHash]
    token_ids: list[Any]
    block_size: int
    parent_block_hash: EngineHash | None = None
    lora_name: str | None = None
    cache_salt: str | None = None
    extra_keys: ExtraKeys | None = None
    block_mm_infos: list[BlockMmInfo | None] | None = None


class BlockRemoved(EngineEvent, tag="BlockRemoved"):
    block_hashes: list[EngineHash]


class AllBlocksCleared(EngineEvent, tag="AllBlocksCleared"):
    pass


class Ignored(EngineEvent, tag="Ignored"):
    pass


AnyEvent = BlockStored | BlockRemoved | AllBlocksCleared | Ignored

POSITIONS = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": ("source_kind",),
}
APPENDED = (
    ("group_idx", int),
    ("kv_cache_spec_kind", str),
    ("kv_cache_spec_sliding_window", int),
    ("locality", str),
    ("source_kind", str),
)


class EngineBatch(Struct):
    """`events` as they came, for `decode_event`: one that cannot be read spoils no other."""

    events: list[Any]
    data_parallel_rank: int | None = None


def decode_batch(payload: bytes) -> EngineBatch:
    """Raises NotABatch."""
    try:
        match msgspec.msgpack.decode(payload):
            case [_, list(events), *rest]:
                return msgspec.convert({"events": events, "data_parallel_rank": rest[0] if rest else None}, EngineBatch)
            case {"events": list()} as batch:
                return msgspec.convert(batch, EngineBatch)
            case other:
                raise NotABatch(f"a batch of KV events is no {type(other).__name__} like this")
    except (msgspec.MsgspecError, RecursionError) as error:
        raise NotABatch(str(error)) from None


def decode_event(event: Any) -> AnyEvent:
    """Raises NotABatch."""
    try:
        decoded: AnyEvent = msgspec.convert(_named(event) if isinstance(event, list) else event, AnyEvent)
    except (msgspec.ValidationError, RecursionError) as error:
        raise NotABatch(str(error)) from None
    return decoded


def _named(event: list[Any]) -> dict[str, Any]:
    tag, *values = event or [None]
    names = POSITIONS.get(tag, ()) if isinstance(tag, str) else ()
    fields = {"type": tag, **dict(zip(names, values, strict=False)), **_appended(values[len(names) :])}
    if isinstance(metadata := fields.get("lora_name"), dict):  # SGLang's, in the place of the name
        fields |= {"lora_name": None, "cache_salt": metadata.get("cache_salt")}
    return fields


def _appended(values: Sequence[Any]) -> dict[str, Any]:
    """By position; older engines left out what they had not, so there the kind of value has to tell."""
    if all(value is None or isinstance(value, kind) for value, (_, kind) in zip(values, APPENDED, strict=False)):
        return {name: value for value, (name, _) in zip(values, APPENDED, strict=False)}
    fields: dict[str, Any] = {}
    for value in values:
        match value:
            case int():
                fields.setdefault("group_idx", value)
            case str():
                fields.setdefault("kv_cache_spec_kind", value)
            case list():
                fields["block_mm_infos"] = value
    return fields


def engine_hash(value: EngineHash) -> int:
    """A u64. Of a byte string the last eight bytes, as vLLM shortens it when it publishes numbers."""
    return (int.from_bytes(value[-8:], "big") if isinstance(value, bytes) else value) & (2**64 - 1)


def flat_tokens(token_ids: list[Any]) -> tuple[list[int], bool]:
    """With Eagle engines send pairs of a token and the next: then the token after the last comes along, and True.
    Raises NotABatch."""
    if not token_ids or not isinstance(token_ids[0], list):
        return token_ids, False
    try:
        return [first for first, _ in token_ids] + [token_ids[-1][1]], True
    except (TypeError, ValueError):
        raise NotABatch("token_ids: some are pairs, and some are not") from None


def cache_salt(event: BlockStored) -> str | None:
    """As a field, or hidden in the keys of the first block. An adapter of the same name comes before it."""
    if event.cache_salt is not None or not event.extra_keys:
        return event.cache_salt or None
    keys = [key for key in event.extra_keys[0] or () if isinstance(key, str)]
    if event.lora_name in keys:
        keys.remove(event.lora_name)
    found = next((key for key in keys if key.startswith(CACHE_SALT_PREFIX)), "")
    return found.removeprefix(CACHE_SALT_PREFIX) or None


def mm_infos(event: BlockStored) -> list[BlockMmInfo | None] | None:
    """The multimodal objects of each block."""
    if event.block_mm_infos is not None or event.extra_keys is None:
        return event.block_mm_infos
    return [_mm_info(keys or (), event.lora_name) for keys in event.extra_keys]


def _mm_info(keys: Sequence[Any], lora_name: str | None) -> BlockMmInfo | None:
    hashes = [_mm_hash(key) for key in keys if key != lora_name]
    objects = [MmObject(mm_hash) for mm_hash in hashes if mm_hash is not None]
    return BlockMmInfo(objects) if objects else None


def _mm_hash(key: Any) -> int | None:
    """An identifier with its offset, or a bare digest; any other text may be the name of an adapter, or a salt."""
    match key:
        case str() if _is_digest(key):
            return int(key[:16], 16)
        case [str(identifier), int()] if identifier:
            return int(identifier[:16], 16) if _is_digest(identifier) else xxh3_64_intdigest(identifier.encode(), 0)
    return None


def _is_digest(text: str) -> bool:
    return len(text) == 64 and HEX_DIGITS.issuperset(text)
