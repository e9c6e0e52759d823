"""The memory of a rank's events, without sockets."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dynamo.shared.kv_events import Change, RecoveryQuery, Removed, RouterEvent, Stored, StoredBlock
from dynamo.worker.held_blocks import MAX_BLOCKS_PER_EVENT, HeldBlocks
from dynamo.worker.kv_outbox import MAX_BATCH_BLOCKS, MAX_OUTGOING_EVENTS, KvOutbox
from dynamo.worker.local_indexer import MAX_RECENT_BLOCKS, LocalIndexer
from tests.worker.router_view import Held, held_after, removed_by, stored_by

Operation = tuple[str, str, int | None, list[int]]  # kind, tier, parent, blocks

TIERS = ("device", "host_pinned")
names = st.integers(1, 12)
tiers = st.sampled_from(TIERS)
stores = st.tuples(st.just("stored"), tiers, st.none() | names, st.lists(names, min_size=1, max_size=4, unique=True))
removals = st.tuples(st.just("removed"), tiers, st.none(), st.lists(names, min_size=1, max_size=4))
others: st.SearchStrategy[Operation] = st.sampled_from([("take", "device", None, []), ("cleared", "device", None, [])])
operations = st.lists(stores | stores | removals | removals | others, max_size=40)


def stored(*hashes: int, parent: int | None = None) -> Stored:
    return Stored([StoredBlock(name, 10 * name) for name in hashes], parent)


def everything(outbox: KvOutbox) -> list[RouterEvent]:
    dump = outbox.answer(RecoveryQuery(0, 0)).tree_dump
    assert dump is not None
    return dump.events


@given(operations)
def test_events_and_dumps_tell_the_same(script: list[Operation]) -> None:
    outbox, told = KvOutbox(0), []
    references: dict[str, Counter[int]] = {tier: Counter() for tier in TIERS}
    for kind, tier, parent, hashes in script:
        match kind:
            case "stored":
                outbox.stored(tier, stored(*hashes, parent=parent))
                references[tier].update(hashes)
            case "removed":
                outbox.removed(tier, hashes)
                references[tier] -= Counter(hashes)
            case "cleared":
                outbox.cleared()
                references = {tier: Counter() for tier in TIERS}
            case "take":
                told += outbox.take()
    told += outbox.take()
    assert [event.event.event_id for event in told] == list(range(1, len(told) + 1))
    present = {tier: set(counts) for tier, counts in references.items() if counts}
    assert names_in(held_after(told)) == present
    assert held_after(everything(outbox)) == held_after(told)


def names_in(held: Held) -> dict[str, set[int]]:
    return {tier: set(blocks) for tier, blocks in held.items()}


@given(operations)
def test_parents_are_told_before_their_children(script: list[Operation]) -> None:
    held = HeldBlocks(100)
    for kind, tier, parent, hashes in script:
        if kind == "stored" and parent not in hashes:
            held.store(tier, stored(*hashes, parent=parent))
        elif kind == "removed":
            held.release(tier, hashes)
    told: set[tuple[str, int]] = set()
    later: set[tuple[str, int]] = set()  # parents that were missing when a child was told
    for tier, chain in held.dump():
        if chain.parent_hash is not None and (tier, chain.parent_hash) not in told:
            later.add((tier, chain.parent_hash))
        told |= {(tier, block.block_hash) for block in chain.blocks}
    assert len(told) == len(held)
    assert all(is_below_a_circle(held, tier, name) for tier, name in later & told)  # an engine's mistake


def is_below_a_circle(held: HeldBlocks, tier: str, name: int) -> bool:
    blocks = held._tiers[tier]
    ancestor: int | None = name
    for _ in range(len(blocks)):
        ancestor = blocks[ancestor].parent_hash if ancestor in blocks else None
    return ancestor in blocks


def test_chains_are_told_in_pieces_of_bounded_length() -> None:
    outbox = KvOutbox(0)
    outbox.stored("device", stored(*range(1, 2501)))
    outbox.take()
    assert [len(stored_by(event)) for event in everything(outbox)] == [
        MAX_BLOCKS_PER_EVENT,
        MAX_BLOCKS_PER_EVENT,
        2500 - 2 * MAX_BLOCKS_PER_EVENT,
    ]
    assert [event.event.event_id for event in everything(outbox)] == [0, 1, 2]


def test_a_fork() -> None:
    outbox = KvOutbox(0)
    outbox.stored("device", stored(1, 2))
    outbox.stored("device", stored(3, 4, parent=1))
    outbox.take()
    assert [stored_by(event) for event in everything(outbox)] == [[1], [2], [3, 4]]


def test_blocks_beyond_the_bound_are_told_but_not_remembered() -> None:
    indexer = LocalIndexer(0, max_blocks=3)
    event = indexer.apply("device", Change(stored=stored(1, 2, 3, 4)))
    assert event is not None
    assert stored_by(event) == [1, 2, 3, 4]
    assert (len(indexer), indexer.num_forgotten) == (3, 1)
    gone = indexer.apply("device", Change(removed=Removed([4])))
    assert gone is not None
    assert removed_by(gone) == [4]


def test_events_are_those_of_the_worker_once_it_is_known() -> None:
    indexer = LocalIndexer(2)
    before = indexer.apply("device", Change(stored=stored(1)))
    indexer.identify(42)
    after = indexer.apply("device", Change(stored=stored(2)))
    assert before is not None
    assert after is not None
    assert (before.worker_id, after.worker_id, after.event.dp_rank) == (42, 42, 2)
    assert indexer.prepare_answer(RecoveryQuery(0, 2))().error
    assert indexer.prepare_answer(RecoveryQuery(42, 2))().tree_dump


def test_what_waits_to_be_told_is_bounded() -> None:
    outbox = KvOutbox(0)
    num_stored = 3 * MAX_BATCH_BLOCKS
    assert [outbox.stored("device", stored(name)) for name in range(num_stored)].count(True) == 1
    events = outbox.take()
    assert events[-1].event.event_id == num_stored
    assert len(events) + outbox.num_dropped == num_stored
    assert len(events) <= MAX_OUTGOING_EVENTS
    assert outbox.removed("device", [1])


def test_recent_events_of_many_blocks_are_fewer() -> None:
    indexer = LocalIndexer(0)
    for first in range(0, 2 * MAX_RECENT_BLOCKS, 1000):
        indexer.apply("device", Change(stored=stored(*range(first, first + 1000))))
    kept = MAX_RECENT_BLOCKS // 1000
    recent = indexer.prepare_answer(RecoveryQuery(0, 0, indexer.last_event_id - kept + 1))().events
    assert recent is not None
    assert len(recent.events) == kept
    assert indexer.prepare_answer(RecoveryQuery(0, 0, indexer.last_event_id - kept))().tree_dump
