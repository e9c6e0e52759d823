"""The load of running requests: tokens to prefill, KV blocks and requests of every slot."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Final

from msgspec import Struct

from dynamo.router.prompt_tree import Node, PromptTree


class _Request(Struct, gc=False):
    slot: int
    num_tokens: int
    prefill_tokens: int  # 0 once the prefill is over
    block_size: int
    expected_output_tokens: int | None
    end: Node | None  # where its prompt ends in the tree; None if it shares nothing
    num_own_blocks: int  # those outside the tree: the output, and the prompt of a request that shares nothing
    num_output_blocks: int = 0
    discount: float = 0.0  # what its exclusive blocks weigh less than their number


class ActiveSequences:
    """The arrays are indexed by slot; blocks that several requests of a rank have in common count once.

    `prefill_tokens` are prompt tokens not yet computed. `blocks` weighs a request's exclusive blocks (its output, and
    the end of its prompt that no other request of the rank shares) by the share of the expected output still to come,
    as of its last output block. Requests are few next to their blocks: nothing here costs time per block.
    """

    def __init__(self) -> None:
        self.prefill_tokens = array("q")
        self.blocks = array("d")
        self.num_requests = array("q")
        self._tree: Final = PromptTree()
        self._requests: dict[Hashable, _Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._requests

    def reserve(self, num_slots: int) -> None:
        """Make room for slots below `num_slots`, in new arrays: someone may hold views of the old ones."""
        num_more = num_slots - len(self.num_requests)
        if num_more > 0:
            self.prefill_tokens = self.prefill_tokens + array("q", bytes(8 * num_more))
            self.blocks = self.blocks + array("d", bytes(8 * num_more))
            self.num_requests = self.num_requests + array("q", bytes(8 * num_more))

    def add(
        self,
        key: Hashable,
        slot: int,
        block_hashes: bytes,
        num_tokens: int,
        prefill_tokens: int,
        block_size: int,
        expected_output_tokens: int | None,
        *,
        shares_blocks: bool = True,
    ) -> None:
        """A request begins on a reserved slot; one of the same key ends.

        `block_hashes` are the packed sequence hashes of the prompt's full blocks; without any, no blocks are counted.
        Without `shares_blocks` all full blocks of `num_tokens` are counted, whatever else the rank runs.
        """
        self.free(key)
        if shares_blocks:
            end, num_blocks = self._tree.hold(block_hashes, slot)
            request = _Request(slot, num_tokens, prefill_tokens, block_size, expected_output_tokens, end, 0)
        else:
            num_blocks = num_tokens // block_size
            request = _Request(slot, num_tokens, prefill_tokens, block_size, expected_output_tokens, None, num_blocks)
        self._requests[key] = request
        self.prefill_tokens[slot] += prefill_tokens
        self.blocks[slot] += num_blocks
        self.num_requests[slot] += 1

    def complete_prefill(self, key: Hashable) -> bool:
        """Its first token has come; True if that changed the load."""
        request = self._requests.get(key)
        if request is None or not request.prefill_tokens:
            return False
        self.prefill_tokens[request.slot] -= request.prefill_tokens
        request.prefill_tokens = 0
        return True

    def grow_output(self, key: Hashable, num_blocks: int = 1) -> None:
        """The output has reached into `num_blocks` further blocks."""
        request = self._requests.get(key)
        if request is None:
            return
        request.num_own_blocks += num_blocks
        request.num_output_blocks += num_blocks
        discount = self._discount(request)
        self.blocks[request.slot] += num_blocks + request.discount - discount
        request.discount = discount

    def free(self, key: Hashable) -> bool:
        """The request is over; False if it was not known."""
        request = self._requests.pop(key, None)
        if request is None:
            return False
        slot = request.slot
        num_blocks = request.num_own_blocks
        if request.end is not None:
            num_blocks += self._tree.release(request.end, slot)
        self.prefill_tokens[slot] -= request.prefill_tokens
        self.num_requests[slot] -= 1
        if self.num_requests[slot]:
            self.blocks[slot] += request.discount - num_blocks
        else:
            self.blocks[slot] = 0.0  # fractions do not add up to exactly nothing
        return True

    def drop(self, slot: int) -> None:
        """The rank is gone: its requests are over."""
        for key in [key for key, request in self._requests.items() if request.slot == slot]:
            self.free(key)

    def match(self, block_hashes: bytes, candidates: int) -> list[tuple[int, int]]:
        """How many leading blocks of a prompt are in running requests: (mask of slots, number of blocks), the numbers
        growing and each mask within the one before. Slots in none of the masks have no block of it."""
        return self._tree.match(block_hashes, candidates)

    def _discount(self, request: _Request) -> float:
        if not request.expected_output_tokens:
            return 0.0
        num_exclusive = request.num_own_blocks
        if request.end is not None:
            num_exclusive += self._tree.num_exclusive(request.end, request.slot)
        return num_exclusive * min(1.0, _num_generated(request) / request.expected_output_tokens)


def _num_generated(request: _Request) -> int:
    """Tokens of output when its newest block was begun; the first may fill up the prompt's last block."""
    num_blocks_before = -(-request.num_tokens // request.block_size) + request.num_output_blocks - 1
    return num_blocks_before * request.block_size + 1 - request.num_tokens
