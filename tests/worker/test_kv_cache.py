from __future__ import annotations

from dynamo.shared.kv_events import StoredBlock
from dynamo.worker.kv_cache import BlockPool
from tests.worker.events import Record


def blocks(*hashes: int) -> list[StoredBlock]:
    return [StoredBlock(hash, hash * 10) for hash in hashes]


def filled(pool: BlockPool, *hashes: int) -> None:
    """A sequence that computed these blocks and ended."""
    assert pool.allocate(len(hashes))
    pool.commit(None, blocks(*hashes))
    pool.release(list(hashes), 0)


def test_a_finished_sequence_leaves_its_blocks_in_the_cache() -> None:
    pool = BlockPool(8)
    filled(pool, 1, 2, 3)
    assert (pool.num_used, pool.num_cached, pool.num_available) == (0, 3, 8)
    assert pool.match([1, 2, 3, 4]) == 3
    assert pool.match([1, 9, 3]) == 1


def test_without_prefix_caching_they_are_gone() -> None:
    record = Record()
    pool = BlockPool(8, record, keeps_finished=False)
    filled(pool, 1, 2)
    assert pool.match([1, 2]) == 0
    assert record.present == set()


def test_the_least_recently_used_goes_first_and_of_a_sequence_its_tail() -> None:
    record = Record()
    pool = BlockPool(4, record)
    filled(pool, 1, 2)
    filled(pool, 3, 4)
    assert pool.allocate(1)
    assert record.events[-1] == ("removed", None, [2])
    assert pool.allocate(2)
    assert record.events[-1] == ("removed", None, [1, 4])
    assert record.present == {3}


def test_reuse_makes_recent() -> None:
    record = Record()
    pool = BlockPool(4, record)
    filled(pool, 1, 2)
    filled(pool, 3, 4)
    pool.reuse([1, 2])
    pool.release([1, 2], 0)
    assert pool.allocate(2)
    assert record.present == {1, 2}


def test_used_blocks_are_never_evicted() -> None:
    pool = BlockPool(4)
    filled(pool, 1, 2)
    pool.reuse([1])
    assert not pool.allocate(4)
    assert pool.allocate(3)
    assert pool.match([1]) == 1
    assert pool.num_available == 0


def test_reviving_cached_blocks_takes_room() -> None:
    pool = BlockPool(4)
    filled(pool, 1, 2)
    assert pool.can_reuse([1, 2], 2)
    assert not pool.can_reuse([1, 2], 3)


def test_equal_blocks_are_one() -> None:
    record = Record()
    pool = BlockPool(8, record)
    for _ in range(2):
        assert pool.allocate(2)
    pool.commit(None, blocks(1, 2))
    pool.commit(None, blocks(1, 2))
    assert pool.num_used == 2
    assert record.events == [("stored", None, [1, 2])]
    pool.release([1, 2], 0)
    assert pool.num_used == 2  # of the other sequence
    pool.release([1, 2], 0)
    assert pool.num_used == 0


def test_a_merged_block_is_the_parent_of_what_follows() -> None:
    record = Record()
    pool = BlockPool(8, record)
    filled(pool, 1)
    assert pool.allocate(3)
    pool.commit(None, blocks(1, 2, 3))
    assert record.events[-1] == ("stored", 1, [2, 3])


def test_only_an_idle_cache_is_cleared() -> None:
    record = Record()
    pool = BlockPool(8, record)
    filled(pool, 1, 2)
    pool.reuse([1])
    assert not pool.clear()
    assert record.present == {1, 2}
    pool.release([1], 0)
    assert pool.clear()
    assert (pool.num_cached, pool.num_available, record.present) == (0, 8, set())
