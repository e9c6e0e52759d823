"""Hashes of token blocks, as every Dynamo 1.6.1 worker and router computes them.

    block hash      of one full block of tokens: what KV events carry as `tokens_hash`
    sequence hash   of a block and all before it: identifies a prefix

Tokens come as packed u32 LE, hashes are u64.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable

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
    values = array("I", token_ids)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def block_hashes(packed_tokens: bytes | memoryview, block_size: int, seed: int = SEED) -> list[int]:
    """Hashes of the full blocks; a rest shorter than `block_size` tokens has none."""
    step = 4 * block_size
    view = memoryview(packed_tokens)
    full = len(view) - len(view) % step
    return [xxh3_64_intdigest(view[start : start + step], seed) for start in range(0, full, step)]


def sequence_hashes(block_hashes: Iterable[int], parent: int | None = None) -> list[int]:
    """Chain block hashes. `parent` is the sequence hash of the block before the first, None at the start."""
    chain = []
    for block_hash in block_hashes:
        parent = block_hash if parent is None else next_sequence_hash(parent, block_hash)
        chain.append(parent)
    return chain


def next_sequence_hash(parent: int, block_hash: int) -> int:
    return xxh3_64_intdigest(_U64_PAIR.pack(parent, block_hash), SEED)
