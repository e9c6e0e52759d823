"""Blocks as an engine names them, and the hashes of their tokens that routers know them by."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, repeat

from msgspec import Struct, field

from dynamo.shared.hashing import block_hashes, hash_seed, pack_tokens
from dynamo.shared.kv_events import Stored, StoredBlock

log = logging.getLogger("dynamo.kv_events")

U64_MASK = 2**64 - 1
PAD_VALUE_BASE = 1_000_000
PAD_VALUE_MASK = 2**30 - 1


class MmObject(Struct, gc=False):
    """An image, video or other object in the prompt; `offsets` are [start, end) in tokens of the block."""

    mm_hash: int
    offsets: list[list[int]] = field(default_factory=list)


class BlockMmInfo(Struct, gc=False):
    mm_objects: list[MmObject]


class EngineStored(Struct, tag_field="type", tag="stored"):
    """Consecutive blocks that an engine has filled. Hashes are the engine's, signed or not; `num_block_tokens` and
    `block_mm_infos` go with `block_hashes`. With Eagle the token after the last block comes too."""

    token_ids: list[int]
    num_block_tokens: list[int]
    block_hashes: list[int]
    parent_hash: int | None = None
    block_mm_infos: list[BlockMmInfo | None] | None = None
    lora_name: str | None = None
    is_eagle: bool | None = None
    cache_salt: str | None = None


class EngineRemoved(Struct, tag_field="type", tag="removed"):
    block_hashes: list[int]


def unsigned(engine_hash: int) -> int:
    return engine_hash & U64_MASK


class BlockHasher:
    """`placeholders` are the tokens that stand for images and videos in the prompts of the model, where it has some:
    routers expect values made of the objects' hashes in their place."""

    def __init__(self, block_size: int, placeholders: frozenset[int] = frozenset()) -> None:
        self._block_size = block_size
        self._placeholders = placeholders
        self.num_refused = 0  # blocks that cannot be told of

    def stored(self, blocks: EngineStored) -> Stored:
        """Up to the first block that is not full, or whose tokens are missing; none when one is its own ancestor.
        Raises ValueError for tokens that are no u32."""
        names = [unsigned(engine_hash) for engine_hash in blocks.block_hashes[: self._num_full(blocks)]]
        parent_hash = None if blocks.parent_hash is None else unsigned(blocks.parent_hash)
        if len({parent_hash, *names}) <= len(names):
            self._note_refused(len(names), "it is its own ancestor")
            return Stored([])
        infos = list(blocks.block_mm_infos or ())[: len(names)]
        token_ids, mm_hashes = self._routed_tokens(blocks.token_ids, infos)
        try:
            packed = pack_tokens(token_ids)
        except (OverflowError, TypeError) as error:
            raise ValueError(f"token_ids: expected integers from 0 to 2**32 - 1: {error}") from None
        seed = hash_seed(blocks.lora_name, blocks.cache_salt)
        own = block_hashes(packed, self._block_size, seed, is_eagle=bool(blocks.is_eagle), mm_hashes=mm_hashes)
        num_left_out = len(blocks.block_hashes) - min(len(names), len(own))
        self._note_refused(num_left_out, f"it has not the {self._block_size} tokens that the publisher was told")
        return Stored(list(map(StoredBlock, names, own, chain(infos, repeat(None)))), parent_hash)

    def _num_full(self, blocks: EngineStored) -> int:
        sizes = blocks.num_block_tokens
        return next((at for at, size in enumerate(sizes) if size != self._block_size), len(sizes))

    def _routed_tokens(
        self, token_ids: list[int], infos: Sequence[BlockMmInfo | None]
    ) -> tuple[list[int], list[list[int]]]:
        """The tokens to hash, and for each block the objects that they do not show."""
        unseen = [[unsigned(found.mm_hash) for found in info.mm_objects] if info else [] for info in infos]
        if not self._placeholders or not any(unseen):
            return token_ids, unseen
        token_ids = [*token_ids]
        for at, mm_hashes in enumerate(unseen):
            own = slice(at * self._block_size, (at + 1) * self._block_size)
            shown = list(self._show(token_ids[own], mm_hashes))
            if shown:
                token_ids[own], unseen[at] = shown, []
        return token_ids, unseen

    def _show(self, token_ids: list[int], mm_hashes: list[int]) -> Iterator[int]:
        """The n-th run of placeholders becomes the n-th object. Nothing, where there are not as many of both."""
        runs = [(is_run, list(run)) for is_run, run in groupby(token_ids, self._placeholders.__contains__)]
        if sum(is_run for is_run, _ in runs) != len(mm_hashes):
            return
        values = map(pad_value, mm_hashes)
        for is_run, run in runs:
            yield from repeat(next(values), len(run)) if is_run else run

    def _note_refused(self, count: int, reason: str) -> None:
        if count and not self.num_refused:
            log.warning("an engine's block is not published, for %s; further ones are only counted", reason)
        self.num_refused += count


def pad_value(mm_hash: int) -> int:
    return PAD_VALUE_BASE + (mm_hash & PAD_VALUE_MASK)
