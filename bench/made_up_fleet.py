"""A fleet in router mode kv that exists only in discovery, and what its workers hold.

A prompt is a system prompt that everybody holds, then a conversation of which few workers hold more or less, then what
nobody has seen: packed sequence hashes, like those an acceptor sends.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import msgspec

from dynamo.shared.discovery import CARDS, INSTANCES, Put, key_of
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.hashing import sequence_hashes
from dynamo.shared.kv_events import Change, KvEvent, RouterEvent, Stored, StoredBlock

MODEL = "bench"
BLOCK_SIZE = 16
SCOPE = EndpointScope("bench", "backend", "generate")
NUM_FAMILIES = 8  # system prompts
FAMILY_BLOCKS = 32
CONVERSATIONS_PER_WORKER = 8
HOLDERS_PER_CONVERSATION = 4
NEW_SHARE = 0.25  # of a prompt is new


def worker_ids(num_workers: int) -> range:
    return range(1, num_workers + 1)


def entries(num_workers: int) -> Iterator[tuple[str, Put]]:
    """(bucket, entry) of each worker's endpoint and card."""
    for worker in worker_ids(num_workers):
        place = {
            "namespace": SCOPE.namespace,
            "component": SCOPE.component,
            "endpoint": SCOPE.name,
            "instance_id": worker,
        }
        address = f"127.0.0.1:{9000 + worker}/{worker:x}/{SCOPE.name}"
        instance = {"type": "Endpoint", **place, "transport": {"tcp": address}, "request_plane_codec": "msgpack"}
        card = {
            "display_name": MODEL,
            "slug": MODEL,
            "worker_type": "aggregated",
            "kv_cache_block_size": BLOCK_SIZE,
            "runtime_config": {"total_kv_blocks": 1 << 16, "max_num_batched_tokens": 8192},
        }
        key = key_of(SCOPE.namespace, SCOPE.component, SCOPE.name, worker, None)
        yield INSTANCES, Put(key, msgspec.json.encode(instance))
        yield CARDS, Put(key, msgspec.json.encode({"type": "Model", **place, "card_json": card}))


class Conversations:
    """What `num_workers` hold of prompts of `num_tokens`, and such prompts; the same ones for the same arguments."""

    def __init__(self, num_workers: int, num_tokens: int, max_blocks: int) -> None:
        self._draw = random.Random(1)
        self._num_workers = num_workers
        self._num_blocks = num_tokens // BLOCK_SIZE
        num_known = max(1, int(self._num_blocks * (1 - NEW_SHARE)))
        families = [self._hashes(min(FAMILY_BLOCKS, num_known)) for _ in range(NUM_FAMILIES)]
        affordable = max_blocks // (num_known * HOLDERS_PER_CONVERSATION)
        wanted = num_workers * CONVERSATIONS_PER_WORKER // HOLDERS_PER_CONVERSATION
        self._families = families
        self._conversations = [self._conversation(num_known) for _ in range(max(8, min(wanted, affordable)))]

    def events(self) -> dict[int, list[RouterEvent]]:
        """By worker: the system prompts at all of them, and of each conversation its beginning at some."""
        held: dict[int, list[list[int]]] = {worker: [*self._families] for worker in worker_ids(self._num_workers)}
        for hashes in self._conversations:
            shortest = min(FAMILY_BLOCKS, len(hashes))
            for worker in self._draw.sample(worker_ids(self._num_workers), HOLDERS_PER_CONVERSATION):
                held[worker].append(hashes[: self._draw.randint(shortest, len(hashes))])
        return {
            worker: [_stored(worker, number, hashes) for number, hashes in enumerate(all_hashes, 1)]
            for worker, all_hashes in held.items()
        }

    def prompt(self) -> bytes:
        """Packed sequence hashes of one more prompt."""
        known = self._draw.choice(self._conversations)
        return _packed([*known, *self._hashes(self._num_blocks - len(known))])

    def _conversation(self, num_blocks: int) -> list[int]:
        family = self._draw.choice(self._families)
        return [*family, *self._hashes(num_blocks - len(family))]

    def _hashes(self, num: int) -> list[int]:
        return [self._draw.getrandbits(64) for _ in range(num)]


def _packed(block_hashes: list[int]) -> bytes:
    return array("Q", sequence_hashes(block_hashes)).tobytes()


def _stored(worker: int, event_id: int, block_hashes: list[int]) -> RouterEvent:
    """Engines name blocks as they like: here after their sequence hash and the worker."""
    names = [(hashed + worker) % 2**64 for hashed in sequence_hashes(block_hashes)]
    blocks = [StoredBlock(name, hashed) for name, hashed in zip(names, block_hashes, strict=True)]
    return RouterEvent(worker, KvEvent(event_id, Change(stored=Stored(blocks))))
