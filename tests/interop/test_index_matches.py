"""The same KV events give the same matches as in the index of the real Dynamo 1.6.1."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from dynamo.router.index import PrefixIndex
from dynamo.router.prefix_tree import pack
from dynamo.shared.hashing import block_hashes, pack_tokens, packed_sequence_hashes, sequence_hashes
from dynamo.shared.kv_events import Change, KvEvent, Removed, RouterEvent, Stored, StoredBlock
from tests.interop.anchor import ANCHOR_PYTHON, LOOPBACK

NUM_WORKERS = 4
NUM_RANKS = 2
NUM_EVENTS = 400
BLOCK_SIZE = 4
MAX_START = 4
TIER_OF = {"GPU": "device", "CPU": "host_pinned", "DISK": "disk", "EXTERNAL": "external"}
Prompt = tuple[int, ...]


class Engine:
    """A rank that stores prompts, as its parent knows them or not, and evicts ends of prompts first.

    All engines give a prompt the same name: in 1.6.1 a rank cannot remove a block, nor go on from one, by another name
    than the first rank gave it. Now and then an engine stores what it has, names a parent that it has not, removes a
    block that it has not, or starts afresh.
    """

    def __init__(self, rng: random.Random, worker_id: int, dp_rank: int) -> None:
        self.worker_id, self.dp_rank = worker_id, dp_rank
        self._rng = rng
        self._held: set[Prompt] = set()
        self._event_id = 0

    def event(self) -> RouterEvent:
        acts: list[Callable[[], Change | Literal["cleared"]]] = [self._store, self._remove, self._clear]
        act = self._rng.choices(acts, (20, 10, 0.2))[0]
        self._event_id += 1
        return RouterEvent(self.worker_id, KvEvent(self._event_id, act(), self.dp_rank))

    def _store(self) -> Change:
        is_odd = self._rng.random() < 0.05
        start = (99,) if is_odd else self._rng.choice([(), *sorted(self._held)])
        tokens = [self._rng.randint(1, 3) for _ in range(self._rng.randint(1, 6))]
        prompts = [(*start, *tokens[: i + 1]) for i in range(len(tokens))]
        if not is_odd:
            self._held.update(prompts)
        blocks = [StoredBlock(self._name(prompt), prompt[-1]) for prompt in prompts]
        return Change(stored=Stored(blocks, self._name(start) if start else None))

    def _remove(self) -> Change:
        removed = []
        for _ in range(self._rng.randint(1, 5)):
            ends = sorted(self._held - {prompt[:-1] for prompt in self._held})
            if ends:
                removed.append(self._rng.choice(ends))
                self._held.remove(removed[-1])
        if not removed or self._rng.random() < 0.05:
            removed = [(98,)]
        return Change(removed=Removed([self._name(prompt) for prompt in removed]))

    def _clear(self) -> Literal["cleared"]:
        self._held.clear()
        return "cleared"

    def _name(self, prompt: Prompt) -> int:
        return hash(prompt) % 2**64


class RadixTree:
    """The one of the real Dynamo."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [ANCHOR_PYTHON, "-P", str(Path(__file__).with_name("radix_tree.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._questions, self._answers = self._process.stdin, self._process.stdout

    def apply(self, event: RouterEvent) -> bool:
        return bool(self._ask("apply", event.worker_id, msgspec.to_builtins(event.event)))

    def match(self, prompt: list[int]) -> list[list[int]]:
        found: list[list[int]] = self._ask("match", prompt)
        return found

    def close(self) -> None:
        self._questions.close()
        self._process.wait(timeout=10)
        self._answers.close()

    def _ask(self, *question: Any) -> Any:
        print(json.dumps(question), file=self._questions, flush=True)
        return json.loads(self._answers.readline())


@pytest.fixture
def tree() -> Iterator[RadixTree]:
    tree = RadixTree()
    yield tree
    tree.close()


def slot_of(worker_id: int, dp_rank: int) -> int:
    return worker_id * NUM_RANKS + dp_rank


def match(index: PrefixIndex, prompt: list[int]) -> list[list[int]]:
    """As RadixTree answers."""
    lengths: dict[int, int] = {}
    for ranks, num_blocks in index.match(pack(sequence_hashes(prompt)), -1).device:
        lengths.update({slot: num_blocks for slot in range(NUM_WORKERS * NUM_RANKS) if ranks >> slot & 1})
    return [[*divmod(slot, NUM_RANKS), num_blocks] for slot, num_blocks in sorted(lengths.items())]


@pytest.mark.parametrize("seed", range(5))
def test_random_events_of_several_workers(tree: RadixTree, seed: int) -> None:
    rng = random.Random(seed)
    index = PrefixIndex(100_000)
    engines = [Engine(rng, worker, rank) for worker in range(NUM_WORKERS) for rank in range(NUM_RANKS)]
    num_matched = 0
    for _ in range(NUM_EVENTS):
        engine = rng.choice(engines)
        event = engine.event()
        num_unknown = index.num_unknown_removals
        is_known = index.apply(slot_of(engine.worker_id, engine.dp_rank), event)
        assert tree.apply(event) == (is_known and index.num_unknown_removals == num_unknown)
        prompt = [rng.randint(1, 3) for _ in range(rng.randint(1, 8))]
        assert match(index, prompt) == tree.match(prompt)
        num_matched += len(tree.match(prompt))
    assert num_matched > NUM_EVENTS


def test_a_hole(tree: RadixTree) -> None:
    """Both end before it. When it is filled we remember what follows; 1.6.1 has forgotten that."""
    index = PrefixIndex(1000)
    blocks = [StoredBlock(100 + i, i) for i in range(1, 5)]
    for data in (Change(stored=Stored(blocks)), Change(removed=Removed([102]))):
        event = RouterEvent(0, KvEvent(1, data))
        assert index.apply(0, event)
        assert tree.apply(event)
    assert match(index, [1, 2, 3, 4]) == tree.match([1, 2, 3, 4]) == [[0, 0, 1]]
    filled = RouterEvent(0, KvEvent(3, Change(stored=Stored(blocks[1:2], 101))))
    assert index.apply(0, filled)
    assert tree.apply(filled)
    assert match(index, [1, 2, 3, 4]) == [[0, 0, 4]]
    assert tree.match([1, 2, 3, 4]) == [[0, 0, 2]]


def test_ranks_that_name_a_block_differently(tree: RadixTree) -> None:
    """Each can remove it by its own name; 1.6.1 knows the first."""
    index = PrefixIndex(1000)
    for worker_id in (0, 1):
        names = (100 + worker_id, 200 + worker_id)
        event = RouterEvent(worker_id, KvEvent(1, Change(stored=Stored(list(map(StoredBlock, names, (1, 2)))))))
        assert index.apply(slot_of(worker_id, 0), event)
        assert tree.apply(event)
    assert match(index, [1, 2]) == tree.match([1, 2]) == [[0, 0, 2], [1, 0, 2]]
    removed = RouterEvent(1, KvEvent(2, Change(removed=Removed([201]))))
    assert index.apply(slot_of(1, 0), removed)
    assert not tree.apply(removed)
    assert match(index, [1, 2]) == [[0, 0, 2], [1, 0, 1]]
    assert tree.match([1, 2]) == [[0, 0, 2], [1, 0, 2]]


class TieredEngine:
    """One rank that moves blocks between tiers in any order, as long as the device loses the ends of prompts first."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._held: dict[str, set[Prompt]] = {medium: set() for medium in TIER_OF}

    def event(self) -> list[Any]:
        medium = self._rng.choice(list(TIER_OF))
        return self._remove(medium) if self._held[medium] and self._rng.random() < 0.4 else self._store(medium)

    def prompt(self) -> list[int]:
        """Token ids; nearly always the beginning is held somewhere."""
        start = self._rng.choice([(), *sorted(set().union(*self._held.values()))])
        return tokens_of((*start, *self._rng.choices((1, 2), k=3)))

    def _store(self, medium: str) -> list[Any]:
        held = self._held[medium]
        anywhere = sorted(self._held["GPU"] if medium == "GPU" else set().union(*self._held.values()))
        ends = [(), *anywhere] if medium == "GPU" else [(), *anywhere, *(prompt[:-1] for prompt in anywhere)]
        start = self._rng.choice([prompt for prompt in ends if len(prompt) < MAX_START])
        tokens = self._rng.choices((1, 2), k=self._rng.randint(1, 4))
        prompts = [(*start, *tokens[: i + 1]) for i in range(len(tokens))]
        held.update(prompts)
        names = [name_of(prompt) for prompt in prompts]
        parent = name_of(start) if start else None
        return ["BlockStored", names, parent, tokens_of(tokens), BLOCK_SIZE, None, medium]

    def _remove(self, medium: str) -> list[Any]:
        held = self._held[medium]
        removed = self._rng.choice(sorted(held - {prompt[:-1] for prompt in held} if medium == "GPU" else held))
        held.remove(removed)
        return ["BlockRemoved", [name_of(removed)], medium]


def tokens_of(blocks: Sequence[int]) -> list[int]:
    return [block for block in blocks for _ in range(BLOCK_SIZE)]


def name_of(prompt: Prompt) -> int:
    return int("".join(map(str, prompt)), 3)


def publish(index: PrefixIndex, event: list[Any]) -> None:
    if event[0] == "BlockRemoved":
        index.remove(0, TIER_OF[event[2]], event[1])
    else:
        _, names, parent, token_ids, _, _, medium = event
        index.store(0, TIER_OF[medium], parent, names, block_hashes(pack_tokens(token_ids), BLOCK_SIZE))


def match_tiers(index: PrefixIndex, token_ids: list[int]) -> list[int]:
    """As 1.6.1 answers."""
    device, host, disk, external = index.match(packed_sequence_hashes(pack_tokens(token_ids), BLOCK_SIZE), 1)
    lengths = [device[-1][1] if device else 0, host.get(0, 0), disk.get(0, 0) + external.get(0, 0)]
    return list(accumulate(lengths))


@pytest.mark.parametrize("seed", range(3))
def test_random_events_of_all_tiers(seed: int) -> None:
    rng = random.Random(seed)
    engine, index = TieredEngine(rng), PrefixIndex(100_000)
    steps: list[tuple[str, list[Any]]] = []
    expected = []
    for _ in range(300):
        event = engine.event()
        publish(index, event)
        steps.append(("publish", event))
        if rng.random() < 0.5:
            prompt = engine.prompt()
            steps.append(("match", prompt))
            expected.append(match_tiers(index, prompt))
    assert sum(found[0] < found[1] < found[2] for found in expected) > 5
    assert ask_tiered_index(steps) == expected


def ask_tiered_index(steps: list[tuple[str, list[Any]]]) -> Any:
    done = subprocess.run(
        [ANCHOR_PYTHON, "-P", str(Path(__file__).with_name("tiered_index.py"))],
        input=json.dumps(steps),
        env={**os.environ, **LOOPBACK, "DYN_LOG": "off"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
