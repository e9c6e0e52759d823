"""The router's prefix index on one core: blocks stored per second, memory per block, and the time of one match.

python -m bench.router_index
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from dynamo.router.index import PrefixIndex
from dynamo.router.prefix_tree import pack
from dynamo.shared.hashing import sequence_hashes
from dynamo.shared.kv_events import (
    Change,
    KvEvent,
    Removed,
    RouterEvent,
    Stored,
    StoredBlock,
    decode_events,
    encode_events,
)

NUM_BLOCKS = 1_000_000
NO_CAP = 10**9
SHORT_PROMPT_BLOCKS = 32
PROMPT_BLOCKS = 3750  # 60,000 tokens in blocks of 16
NUM_RANKS = 100
EVENTS_PER_MESSAGE = 8
NUM_ROUNDS = 5  # the best counts: others may be using the machine


def main() -> None:
    rng = random.Random(0)
    print(f"{_bytes_per_block(rng):.0f} bytes per block")  # first, while the process has no memory to use again
    for blocks_per_event in (1, 8, 32, 256):
        print(f"{blocks_per_event:4} blocks per event: {_rates(rng, blocks_per_event)}")
    for num_lengths in (1, 4, 20, NUM_RANKS):
        print(f"{num_lengths:4} different prefixes of {NUM_RANKS} ranks: {_match_times(rng, num_lengths)}")


def _rates(rng: random.Random, blocks_per_event: int) -> str:
    num_events = NUM_BLOCKS // 4 // blocks_per_event
    events = [_stored(rng, blocks_per_event) for _ in range(num_events)]
    payloads = [encode_events(events[i : i + EVENTS_PER_MESSAGE]) for i in range(0, num_events, EVENTS_PER_MESSAGE)]
    removals = [RouterEvent(1, KvEvent(2, Change(removed=Removed(_names(event)[::-1])))) for event in events]
    rounds = []
    for _ in range(NUM_ROUNDS):
        index = PrefixIndex(NO_CAP)
        decoded = (event for payload in payloads for event in decode_events(payload))
        stores = (_seconds_of(index, iter(events)), _seconds_of(PrefixIndex(NO_CAP), decoded))
        rounds.append((*stores, _seconds_of(index, iter(removals))))
    best = map(min, zip(*rounds, strict=True))
    stored, with_decoding, removed = (num_events * blocks_per_event / seconds / 1e6 for seconds in best)
    return f"{stored:.2f} M stored/s, {with_decoding:.2f} M/s with decoding, {removed:.2f} M removed/s"


def _seconds_of(index: PrefixIndex, events: Iterator[RouterEvent]) -> float:
    gc.collect()
    started = time.process_time()
    for event in events:
        index.apply(0, event)
    return time.process_time() - started


def _bytes_per_block(rng: random.Random) -> float:
    index = PrefixIndex(NO_CAP)
    before = _resident_bytes()
    for _ in range(NUM_BLOCKS // SHORT_PROMPT_BLOCKS):
        index.store(0, "device", None, _hashes(rng, SHORT_PROMPT_BLOCKS), _hashes(rng, SHORT_PROMPT_BLOCKS))
    return (_resident_bytes() - before) / index.num_blocks


def _match_times(rng: random.Random, num_lengths: int) -> str:
    """Of prompts not looked at lately, in an index far larger than the processor's caches."""
    index = PrefixIndex(NO_CAP)
    prompts = [_known_prompt(rng, index, num_lengths) for _ in range(60)]
    for _ in range(NUM_BLOCKS // 500):
        index.store(rng.randrange(NUM_RANKS), "device", None, _hashes(rng, 500), _hashes(rng, 500))
    times = []
    for prompt in prompts:
        started = time.perf_counter()
        index.match(prompt, (1 << NUM_RANKS) - 1)
        times.append((time.perf_counter() - started) * 1e6)
    return f"median {statistics.median(times):.0f} us, worst of {len(times)} {max(times):.0f} us"


def _known_prompt(rng: random.Random, index: PrefixIndex, num_lengths: int) -> bytes:
    names, tokens_hashes = _hashes(rng, PROMPT_BLOCKS), _hashes(rng, PROMPT_BLOCKS)
    lengths = [rng.randint(1, PROMPT_BLOCKS) for _ in range(num_lengths)]
    for slot in range(NUM_RANKS):
        length = lengths[slot % num_lengths]
        index.store(slot, "device", None, names[:length], tokens_hashes[:length])
    return pack(sequence_hashes(tokens_hashes))


def _stored(rng: random.Random, num_blocks: int) -> RouterEvent:
    blocks = [StoredBlock(*pair) for pair in zip(_hashes(rng, num_blocks), _hashes(rng, num_blocks), strict=True)]
    return RouterEvent(1, KvEvent(1, Change(stored=Stored(blocks))))


def _names(event: RouterEvent) -> list[int]:
    change = event.event.data
    assert isinstance(change, Change)
    assert isinstance(change.stored, Stored)
    return [block.block_hash for block in change.stored.blocks]


def _hashes(rng: random.Random, num: int) -> list[int]:
    return [rng.getrandbits(64) for _ in range(num)]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
