"""How fast the router's prefix index follows KV events, and what a block costs it in memory. Prints figures as JSON.

Ranks store prompts of 512 blocks, in events of some size, and evict them as engines do: the oldest prompt first and of
it the end first. Names and hashes are random numbers of 64 bits.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.figures import Figure, print_figures
from dynamo.router.index import PrefixIndex
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

PROMPT_BLOCKS = 512
BLOCKS_PER_EVENT = (1, 16, 512)  # of an answer that grows, a short prompt, a chunk of a long one
EVENTS_PER_MESSAGE = 16
REMOVED_PER_EVENT = 16
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

Payloads = list[bytes]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.router_index")
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument(
        "--memory-of-holders", type=int, help="measure only the memory, of blocks that so many ranks hold"
    )
    args = parser.parse_args()
    if args.memory_of_holders:
        print_figures(memory(args.blocks, args.memory_of_holders))
    else:
        print_figures([figure for size in BLOCKS_PER_EVENT for figure in speed(args.blocks, size)])


def speed(num_blocks: int, blocks_per_event: int) -> Iterator[Figure]:
    """Of one rank that stores them all and evicts them all again."""
    prompts = _prompts(num_blocks)
    stored = _messages([event for prompt in prompts for event in _stored(prompt, blocks_per_event)])
    removed = _messages([event for prompt in prompts for event in _removed(prompt)])
    index = PrefixIndex(2 * num_blocks)
    of_events = f"{blocks_per_event} per event"
    decoding_s, storing_s = _apply(index, stored)
    assert index.num_blocks == num_blocks
    yield Figure(
        f"stored blocks/s, {of_events}", num_blocks / storing_s, at_least=1e6 if blocks_per_event > 1 else None
    )
    yield Figure(f"stored blocks/s, {of_events}, with decoding", num_blocks / (storing_s + decoding_s))
    decoding_s, removing_s = _apply(index, removed)
    assert index.num_blocks == 0
    yield Figure(f"removed blocks/s, {of_events}", num_blocks / removing_s)
    yield Figure(f"removed blocks/s, {of_events}, with decoding", num_blocks / (removing_s + decoding_s))


def memory(num_blocks: int, num_holders: int) -> Iterator[Figure]:
    stored = _messages([event for prompt in _prompts(num_blocks) for event in _stored(prompt, PROMPT_BLOCKS)])
    index = PrefixIndex(2 * num_blocks * num_holders)
    before = _resident_bytes()
    for slot in range(num_holders):
        _apply(index, stored, slot)
    used = _resident_bytes() - before
    assert index.num_blocks == num_blocks
    holders = "1 rank holds it" if num_holders == 1 else f"{num_holders} ranks hold it"
    yield Figure(f"bytes per block, {holders}", used / num_blocks, at_most=250 if num_holders == 1 else None)


class _Prompt:
    """Names and token hashes of consecutive blocks."""

    def __init__(self, draw: random.Random, num_blocks: int) -> None:
        self.names = [draw.getrandbits(64) for _ in range(num_blocks)]
        self.tokens_hashes = [draw.getrandbits(64) for _ in range(num_blocks)]


def _prompts(num_blocks: int) -> list[_Prompt]:
    draw = random.Random(1)
    return [_Prompt(draw, min(PROMPT_BLOCKS, num_blocks - at)) for at in range(0, num_blocks, PROMPT_BLOCKS)]


def _stored(prompt: _Prompt, blocks_per_event: int) -> Iterator[Change]:
    blocks = [StoredBlock(name, hashed) for name, hashed in zip(prompt.names, prompt.tokens_hashes, strict=True)]
    for at in range(0, len(blocks), blocks_per_event):
        yield Change(stored=Stored(blocks[at : at + blocks_per_event], prompt.names[at - 1] if at else None))


def _removed(prompt: _Prompt) -> Iterator[Change]:
    names = prompt.names[::-1]
    for at in range(0, len(names), REMOVED_PER_EVENT):
        yield Change(removed=Removed(names[at : at + REMOVED_PER_EVENT]))


def _messages(changes: Sequence[Change]) -> Payloads:
    events = [RouterEvent(1, KvEvent(i, change)) for i, change in enumerate(changes)]
    return [encode_events(events[at : at + EVENTS_PER_MESSAGE]) for at in range(0, len(events), EVENTS_PER_MESSAGE)]


def _apply(index: PrefixIndex, payloads: Payloads, slot: int = 0) -> tuple[float, float]:
    """Seconds of CPU for decoding and for applying."""
    decoding_s = applying_s = 0.0
    for payload in payloads:
        started = time.process_time()
        events = decode_events(payload)
        decoded = time.process_time()
        for event in events:
            index.apply(slot, event)
        decoding_s += decoded - started
        applying_s += time.process_time() - decoded
    return decoding_s, applying_s


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE


if __name__ == "__main__":
    main()
