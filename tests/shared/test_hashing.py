"""Block hashes, against what Dynamo 1.6.1's `compute_block_hash_for_seq` gave for the same tokens."""

from __future__ import annotations

import struct

import pytest

from dynamo.shared.hashing import (
    block_hashes,
    hash_seed,
    pack_tokens,
    packed_sequence_hashes,
    sequence_hashes,
)

TOKENS = pack_tokens(range(100, 170))  # four blocks of 16 and a rest
PLAIN = [10823191264391160519, 1219978239041041138, 11579058346470406089, 15355247268704632839]
OF_ADAPTER = [682217097734764133, 12420995870712062137, 4754925088556477659, 4680185779759060202]
OF_EAGLE = [15764913023364366116, 14525195943889409934, 9830499605818052179, 16864792158148832149]
SALTED = [18167049635903018362, 18051114050417137021, 16062587088713341309, 14163269218275312639]


def test_full_blocks_have_hashes_and_a_rest_has_none() -> None:
    assert block_hashes(TOKENS, 16) == PLAIN
    assert block_hashes(pack_tokens(range(15)), 16) == []


def test_large_token_ids() -> None:
    assert block_hashes(pack_tokens([4_000_000_000] * 16), 16) == [282506075049429727]


def test_adapters_and_salts_share_no_blocks() -> None:
    assert block_hashes(TOKENS, 16, hash_seed(lora_name="ad")) == OF_ADAPTER
    assert block_hashes(TOKENS, 16, hash_seed(cache_salt="salt")) == SALTED
    assert hash_seed("", "") == hash_seed()


def test_a_sequence_hash_stands_for_all_blocks_before_it() -> None:
    chain = sequence_hashes(PLAIN)
    assert chain[0] == PLAIN[0]
    assert sequence_hashes(PLAIN[2:], parent=chain[1]) == chain[2:]


@pytest.mark.parametrize("is_eagle", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 15, 16, 17, 32, 33, 70])
def test_packed_sequence_hashes_are_the_chain_of_block_hashes(num_tokens: int, is_eagle: bool) -> None:
    tokens, seed = TOKENS[: 4 * num_tokens], hash_seed("ad", "salt")
    chain = sequence_hashes(block_hashes(tokens, 16, seed, is_eagle=is_eagle))
    assert packed_sequence_hashes(tokens, 16, seed, is_eagle=is_eagle) == struct.pack(f"<{len(chain)}Q", *chain)


def test_an_eagle_block_needs_the_token_that_follows_it() -> None:
    assert block_hashes(TOKENS, 16, is_eagle=True) == OF_EAGLE
    assert block_hashes(TOKENS[: 4 * 65], 16, is_eagle=True) == OF_EAGLE
    assert block_hashes(TOKENS[: 4 * 64], 16, is_eagle=True) == OF_EAGLE[:3]


def test_images_of_one_size_make_different_blocks() -> None:
    assert block_hashes(TOKENS, 16, mm_hashes=[[], [9, 5], [2**64 - 1]]) == [
        PLAIN[0],
        14359399451050823227,
        1023321562398549245,
        PLAIN[3],
    ]
    assert block_hashes(TOKENS, 16, mm_hashes=[[], [5, 9, 9]])[1] == 4967660323881164180
    assert block_hashes(TOKENS, 16, mm_hashes=[[], [], [], [], [7]]) == PLAIN
    of_all = block_hashes(TOKENS, 16, hash_seed("ad", "salt"), is_eagle=True, mm_hashes=[[7]])
    assert of_all == [8160935924947612966, 15797545703048093354, 16070104944587475092, 4837504966854245188]
