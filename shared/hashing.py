"""Hashes of token blocks, as every Dynamo 1.6.1 worker and router computes them.

    block hash      of one full block of tokens: what KV events carry as `tokens_hash`
    sequence hash   of a block and all before it: identifies a prefix

Tokens come as packed u32 LE, hashes are u64.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat

from xxhash import xxh3_64_intdigest

SEED = 1337
_U64_MASK = 2**64 - 1
_U64_PAIR = struct.Struct("<QQ")


def hash_seed(lora_name: str | None = None, cache_salt: str | None = None) -> int:
    """Requests of different adapters or salts share no blocks; an empty name is no name."""
    seed = SEED
    if lora_name:
        seed += xxh3_64_intdigest(lora_name.encode(), 0)
    if cache_salt:
        seed += xxh3_64_intdigest(cache_salt.encode(), 1)
    return seed & _U64_MASK


def pack_tokens(token_ids: Iterable[int]) -> bytes:
    return _little_endian(array("I", token_ids))


def _little_endian(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def block_hashes(
    packed_tokens: bytes | memoryview,
    block_size: int,
    seed: int = SEED,
    *,
    is_eagle: bool = False,
    mm_hashes: Sequence[Sequence[int]] = (),
) -> list[int]:
    """Hashes of the full blocks; a rest shorter than `block_size` tokens has none. With Eagle a block is hashed with
    with the token that follows it. `mm_hashes` are those of the multimodal objects in each block, the first blocks
    first: images of one size have the same tokens."""
    if not any(mm_hashes):
        return list(_block_hashes(packed_tokens, block_size, seed, is_eagle))
    blocks = zip(_blocks(packed_tokens, block_size, is_eagle), chain(mm_hashes, repeat(())), strict=False)
    return [xxh3_64_intdigest(_with_objects(block, own), seed) for block, own in blocks]


def packed_sequence_hashes(
    packed_tokens: bytes | memoryview, block_size: int, seed: int = SEED, *, is_eagle: bool = False
) -> bytes:
    """Sequence hashes of the full blocks as packed u64 LE: what placement is asked with."""
    hashes = _block_hashes(packed_tokens, block_size, seed, is_eagle)
    if (parent := next(hashes, None)) is None:
        return b""
    digest, pair = xxh3_64_intdigest, _U64_PAIR.pack
    packed = array("Q", (parent,))
    packed.extend([parent := digest(pair(parent, block_hash), SEED) for block_hash in hashes])
    return _little_endian(packed)


def _block_hashes(packed_tokens: bytes | memoryview, block_size: int, seed: int, is_eagle: bool) -> Iterator[int]:
    return map(xxh3_64_intdigest, _blocks(packed_tokens, block_size, is_eagle), repeat(seed))


def _blocks(packed_tokens: bytes | memoryview, block_size: int, is_eagle: bool) -> Sequence[bytes | memoryview]:
    step = 4 * block_size
    if is_eagle:
        window = step + 4
        return [packed_tokens[at : at + window] for at in range(0, len(packed_tokens) - window + 1, step)]
    # One call for all of them; a Struct of its own, because the module would keep the last hundred of these formats.
    return struct.Struct(f"{step}s" * (len(packed_tokens) // step)).unpack_from(packed_tokens)


def _with_objects(block: bytes | memoryview, mm_hashes: Sequence[int]) -> bytes:
    return bytes(block) + _little_endian(array("Q", sorted(mm_hashes)))


def sequence_hashes(block_hashes: Iterable[int], parent: int | None = None) -> list[int]:
    """Chain block hashes. `parent` is the sequence hash of the block before the first, None at the start."""
    digest, pair = xxh3_64_intdigest, _U64_PAIR.pack
    hashes = []
    for block_hash in block_hashes:
        parent = block_hash if parent is None else digest(pair(parent, block_hash), SEED)
        hashes.append(parent)
    return hashes
