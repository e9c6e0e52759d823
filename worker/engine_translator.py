"""From an engine's KV events to what routers are told."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from dynamo.shared.kv_events import Stored
from dynamo.worker.engine_blocks import BlockHasher, EngineStored
from dynamo.worker.engine_events import (
    AllBlocksCleared,
    AnyEvent,
    BlockRemoved,
    BlockStored,
    Ignored,
    NotABatch,
    cache_salt,
    decode_batch,
    decode_event,
    engine_hash,
    flat_tokens,
    mm_infos,
)

log = logging.getLogger("dynamo.kv_events")

TIER_OF_MEDIUM = {
    None: "device",
    "": "device",
    "GPU": "device",
    "DEVICE": "device",
    "CPU": "host_pinned",
    "CPU_PINNED": "host_pinned",
    "CPU_TIER1": "host_pinned",
    "CPU_TIER2": "disk",
    "DISK": "disk",
    "NVME": "disk",
    "STORAGE": "disk",
    "EXTERNAL": "external",
    "NETWORK": "external",
    "REMOTE": "external",
    "SHARED": "external",
}
MAIN_ATTENTION = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
MAX_GROUPS = 1024
MAX_SALTED_BLOCKS = 1 << 18


class KvSink(Protocol):
    """`KvEventPublisher`, for one."""

    def stored(self, stored: Stored, tier: str = ...) -> None: ...

    def removed(self, block_hashes: list[int], tier: str = ...) -> None: ...

    def cleared(self) -> None: ...


class EngineTranslator:
    """Feeds the sink from the batches of one rank. Counts what it had to leave out: events that it could not read, of
    another rank, and those that say nothing about the prefixes that a worker can reuse on its own."""

    def __init__(self, hasher: BlockHasher, dp_rank: int, sink: KvSink) -> None:
        self._hasher = hasher
        self._dp_rank = dp_rank
        self._sink = sink
        self._groups = AttentionGroups()
        self._salts = SaltedBlocks()
        self.num_malformed = 0
        self.num_foreign = 0
        self.num_filtered = 0

    def push(self, payload: bytes) -> None:
        """Never raises."""
        try:
            batch = decode_batch(payload)
        except NotABatch as error:
            self.note_malformed(error)
            return
        if batch.data_parallel_rank not in (None, self._dp_rank):
            self._note_foreign(batch.data_parallel_rank)
            return
        for event in batch.events:
            try:
                self._translate(decode_event(event))
            except ValueError as error:
                self.note_malformed(error)

    def clear(self) -> None:
        """The engine began anew."""
        self._salts.clear()
        self._sink.cleared()

    def note_malformed(self, error: Exception) -> None:
        self.num_malformed += 1
        if self.num_malformed == 1:
            log.error(
                "dropped a KV event of the engine, so routers misjudge what rank %d holds: %s. Further ones are only "
                "counted",
                self._dp_rank,
                error,
            )

    def _translate(self, event: AnyEvent) -> None:
        if isinstance(event, BlockStored):
            self._groups.learn(event)
        tier = TIER_OF_MEDIUM.get(event.medium)
        is_own = event.locality in (None, "LOCAL") and event.source_kind is None
        if tier is None or not is_own or isinstance(event, Ignored) or not self._groups.is_main(event):
            self.num_filtered += 1
            return
        match event:
            case BlockStored():
                self._stored(event, tier)
            case BlockRemoved(block_hashes=block_hashes):
                names = list(map(engine_hash, block_hashes))
                self._salts.forget(names)
                self._sink.removed(names, tier)
            case AllBlocksCleared():
                self.clear()

    def _stored(self, event: BlockStored, tier: str) -> None:
        names = list(map(engine_hash, event.block_hashes))
        parent_hash = None if event.parent_block_hash is None else engine_hash(event.parent_block_hash)
        try:
            salt = self._salts.follow(parent_hash, names, cache_salt(event))
        except AmbiguousSalt:
            self.num_filtered += 1
            return
        token_ids, is_eagle = flat_tokens(event.token_ids)
        sizes = [event.block_size] * len(names)
        blocks = EngineStored(
            token_ids, sizes, names, parent_hash, mm_infos(event), event.lora_name, is_eagle, cache_salt=salt
        )
        self._sink.stored(self._hasher.stored(blocks), tier)

    def _note_foreign(self, dp_rank: int | None) -> None:
        self.num_foreign += 1
        if self.num_foreign == 1:
            log.error(
                "dropped KV events of rank %s that came to the publisher of rank %d, further ones are only counted; is "
                "its zmq_endpoint that of another rank?",
                dp_rank,
                self._dp_rank,
            )


class AttentionGroups:
    """Which groups of layers keep whole prefixes. Only the first event of a group may say what it is."""

    def __init__(self) -> None:
        self._is_main: dict[int, bool] = {}

    def learn(self, event: BlockStored) -> None:
        if event.group_idx is not None and event.kv_cache_spec_kind is not None and len(self._is_main) < MAX_GROUPS:
            self._is_main[event.group_idx] = event.kv_cache_spec_kind in MAIN_ATTENTION

    def is_main(self, event: AnyEvent) -> bool:
        if event.kv_cache_spec_kind is not None:
            return event.kv_cache_spec_kind in MAIN_ATTENTION
        if event.group_idx is None:
            return True
        return self._is_main.get(event.group_idx, event.group_idx == 0)


class AmbiguousSalt(Exception):
    """The parent was stored under two salts, and the child does not say which is its own."""


class SaltedBlocks:
    """Engines name the salt with the first block of a prompt only; its children inherit it. An unknown parent has none.
    Beyond MAX_SALTED_BLOCKS the oldest is forgotten."""

    def __init__(self) -> None:
        self._salts: dict[int, str | None] = {}  # None: several

    def follow(self, parent_hash: int | None, block_hashes: Iterable[int], salt: str | None) -> str | None:
        """The salt of these blocks. Raises AmbiguousSalt."""
        if salt is None and parent_hash in self._salts:
            salt = self._salts[parent_hash]
            if salt is None:
                raise AmbiguousSalt
        for block_hash in block_hashes:
            if block_hash in self._salts:
                self._salts[block_hash] = salt if self._salts[block_hash] == salt else None
            elif salt is not None:
                self._salts[block_hash] = salt
        while len(self._salts) > MAX_SALTED_BLOCKS:
            del self._salts[next(iter(self._salts))]
        return salt

    def forget(self, block_hashes: Iterable[int]) -> None:
        for block_hash in block_hashes:
            if self._salts.get(block_hash) is not None:
                del self._salts[block_hash]

    def clear(self) -> None:
        self._salts.clear()
