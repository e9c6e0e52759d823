"""The mocker's core: a continuous-batching scheduler over a paged KV cache, with made-up tokens and made-up time.

No IO and no clock: `submit` and `abort` sequences, call `step` for as long as there is work. A step says what it
produced and how long a device would have taken; whoever calls waits that long before handing the tokens out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec import Struct

from dynamo.shared.hashing import SEED, block_hashes, pack_tokens, sequence_hashes
from dynamo.shared.kv_events import StoredBlock
from dynamo.worker.kv_cache import BlockPool, KvListener
from dynamo.worker.latency import LatencyModel


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    block_size: int = 64
    num_blocks: int = 16384
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_num_waiting: int = 8192
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True

    @property
    def max_num_tokens(self) -> int:
        """The longest sequence that the cache can hold."""
        return self.num_blocks * self.block_size


class SchedulerFull(Exception):
    """Too many sequences are waiting already."""


class SequenceTooLong(Exception):
    """It would not fit into an empty cache."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One request and how far it is: its first `len(committed)` blocks are full and hashed, the others anonymous."""

    prompt: list[int]
    text: Iterator[int]  # endless
    max_tokens: int
    min_tokens: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    hash_seed: int = SEED
    output: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    num_cached_tokens: int | None = None  # of the prompt, found in the cache at the first admission
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_anonymous: int = 0
    committed: list[int] = field(default_factory=list)  # sequence hashes
    hashed: list[StoredBlock] = field(default_factory=list)  # every full block so far, committed or not

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def num_uncomputed(self) -> int:
        return len(self.prompt) + len(self.output) - self.num_computed

    @property
    def num_blocks(self) -> int:
        return len(self.committed) + self.num_anonymous

    def hash_full_blocks(self, block_size: int) -> None:
        """Bring `hashed` up to date."""
        start = len(self.hashed) * block_size
        if self.num_tokens - start < block_size:
            return
        own = block_hashes(pack_tokens(self._tokens_from(start)), block_size, self.hash_seed)
        chained = sequence_hashes(own, self.hashed[-1].block_hash if self.hashed else None)
        self.hashed += map(StoredBlock, chained, own)

    def _tokens_from(self, start: int) -> list[int]:
        beyond_prompt = start - len(self.prompt)
        return self.output[beyond_prompt:] if beyond_prompt >= 0 else self.prompt[start:] + self.output

    def append(self, token_id: int) -> None:
        self.output.append(token_id)
        self.finish_reason = self._finish_reason(token_id)

    def _finish_reason(self, token_id: int) -> str | None:
        if len(self.output) >= self.min_tokens:
            if token_id in self.eos_token_ids:
                return "eos"
            if token_id in self.stop_token_ids:
                return "stop"
        return "length" if len(self.output) >= self.max_tokens else None


class Step(Struct, frozen=True, gc=False):
    """`advanced` got one token each, the last of their `output`; those with a `finish_reason` are over."""

    advanced: list[Sequence]
    duration_s: float


class Scheduler:
    def __init__(self, config: SchedulerConfig, latency: LatencyModel, listener: KvListener | None = None) -> None:
        self._config = config
        self._latency = latency
        self.pool = BlockPool(config.num_blocks, listener, keeps_finished=config.enable_prefix_caching)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # oldest first

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def submit(self, sequence: Sequence) -> None:
        """Raises SchedulerFull or SequenceTooLong."""
        if len(self._waiting) >= self._config.max_num_waiting:
            raise SchedulerFull(f"{len(self._waiting)} requests are waiting already")
        # One that runs alone then always finds room, so preemption comes to an end.
        if len(sequence.prompt) + sequence.max_tokens > self._config.max_num_tokens:
            raise SequenceTooLong(
                f"{len(sequence.prompt)} prompt tokens and {sequence.max_tokens} of output do not fit a KV cache of "
                f"{self._config.max_num_tokens} tokens"
            )
        self._waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; nothing happens when it is over already."""
        if sequence in self._running:
            del self._running[sequence]
            self._release(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def step(self) -> Step:
        """Compute one batch: first what runs already, then whom the rest of the token budget lets in."""
        batch: list[tuple[Sequence, int]] = []
        budget = self._continue_running(batch, self._config.max_num_batched_tokens)
        self._admit_waiting(batch, budget)
        duration_s = self._duration_s(batch)
        return Step([sequence for sequence, num_tokens in batch if self._compute(sequence, num_tokens)], duration_s)

    def _duration_s(self, batch: list[tuple[Sequence, int]]) -> float:
        num_decodes = sum(1 for sequence, _ in batch if sequence.output)
        num_prefill_tokens = sum(num_tokens for sequence, num_tokens in batch if not sequence.output)
        return self._latency.step_s(num_prefill_tokens, num_decodes, self.pool.num_used / self.pool.num_blocks)

    def _continue_running(self, batch: list[tuple[Sequence, int]], budget: int) -> int:
        """Returns what is left of the budget; nothing after a preemption, so that nobody takes the room just made."""
        running = tuple(self._running)
        for sequence in running:
            if budget == 0:
                break
            num_tokens = min(sequence.num_uncomputed, budget)
            if sequence in self._running and self._reserve(sequence, num_tokens):
                batch.append((sequence, num_tokens))
                budget -= num_tokens
        return budget if len(running) == len(self._running) else 0

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Find room for its next tokens, preempting the newest until there is; False when that was itself."""
        num_new = self._blocks_for(sequence.num_computed + num_tokens) - sequence.num_blocks
        if num_new <= 0:
            return True
        while not self.pool.allocate(num_new):
            if self._preempt_newest() is sequence:
                return False
        sequence.num_anonymous += num_new
        return True

    def _preempt_newest(self) -> Sequence:
        victim, _ = self._running.popitem()
        self._release(victim)
        victim.num_computed = 0
        self._waiting.appendleft(victim)
        return victim

    def _admit_waiting(self, batch: list[tuple[Sequence, int]], budget: int) -> None:
        while self._waiting and budget > 0 and len(self._running) < self._config.max_num_seqs:
            sequence = self._waiting[0]
            cached = self._cached_prefix(sequence)
            num_cached_tokens = len(cached) * self._config.block_size
            num_tokens = min(sequence.num_tokens - num_cached_tokens, budget)
            if num_tokens < sequence.num_tokens - num_cached_tokens and not self._config.enable_chunked_prefill:
                if batch:
                    return
                num_tokens = sequence.num_tokens - num_cached_tokens  # longer than any budget: let it run alone
            num_new = self._blocks_for(num_cached_tokens + num_tokens) - len(cached)
            if not self.pool.can_reuse(cached, num_new):
                return
            self._waiting.popleft()
            self._admit(sequence, cached, num_new)
            batch.append((sequence, num_tokens))
            budget -= num_tokens

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Leading blocks that need not be computed; the last token always is, for it yields the next."""
        sequence.hash_full_blocks(self._config.block_size)
        if not self._config.enable_prefix_caching:
            return []
        usable = (sequence.num_tokens - 1) // self._config.block_size
        prefix = [block.block_hash for block in sequence.hashed[:usable]]
        return prefix[: self.pool.match(prefix)]

    def _admit(self, sequence: Sequence, cached: list[int], num_new: int) -> None:
        self.pool.reuse(cached)
        self.pool.allocate(num_new)
        sequence.committed = cached
        sequence.num_anonymous = num_new
        sequence.num_computed = len(cached) * self._config.block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
        self._running[sequence] = None

    def _compute(self, sequence: Sequence, num_tokens: int) -> bool:
        """Fill the cache with its next tokens; True when that gave a new one."""
        sequence.num_computed += num_tokens
        if sequence.num_computed // self._config.block_size > len(sequence.committed):
            self._commit_full_blocks(sequence)
        if sequence.num_uncomputed:
            return False
        sequence.append(next(sequence.text))
        if sequence.finish_reason:
            del self._running[sequence]
            self._release(sequence)
        return True

    def _commit_full_blocks(self, sequence: Sequence) -> None:
        sequence.hash_full_blocks(self._config.block_size)
        num_committed = len(sequence.committed)
        full = sequence.hashed[num_committed : sequence.num_computed // self._config.block_size]
        self.pool.commit(sequence.committed[-1] if sequence.committed else None, full)
        sequence.committed += [block.block_hash for block in full]
        sequence.num_anonymous -= len(full)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.committed, sequence.num_anonymous)
        sequence.committed, sequence.num_anonymous = [], 0

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._config.block_size)
