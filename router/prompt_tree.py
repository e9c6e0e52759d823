"""Which ranks are working on which prompts: a radix tree over sequence hashes whose nodes count requests per rank.

A sequence hash names a block and all before it, so two prompts with the same hash at one position agree on everything
up to there. Where two paths part is therefore found by bisection, and no operation looks at every block of a prompt.
"""

from __future__ import annotations

HASH_SIZE = 8


class Node:
    """A run of blocks that all requests going through it share.

    `edge` holds their packed hashes. `num_through` counts the requests that end here or further down, per slot, and
    `slots` is the mask of its keys. `num_ending` counts those that end here, of all slots.
    """

    __slots__ = ("children", "edge", "num_ending", "num_through", "parent", "slots")

    def __init__(self, parent: Node | None, edge: bytes) -> None:
        self.parent = parent
        self.edge = edge
        self.children: dict[bytes, Node] = {}  # by their first hash
        self.num_through: dict[int, int] = {}
        self.slots = 0
        self.num_ending = 0

    @property
    def num_blocks(self) -> int:
        return len(self.edge) // HASH_SIZE

    def enter(self, slot: int) -> bool:
        """Count one request more; True if it is the slot's first."""
        count = self.num_through.get(slot, 0)
        self.num_through[slot] = count + 1
        if count:
            return False
        self.slots |= 1 << slot
        return True

    def leave(self, slot: int) -> bool:
        """Count one request less; True if it was the slot's last."""
        if (count := self.num_through[slot]) > 1:
            self.num_through[slot] = count - 1
            return False
        del self.num_through[slot]
        self.slots ^= 1 << slot
        return True


class PromptTree:
    """A node has requests ending in it or at least two children, so there are fewer than two nodes per request."""

    def __init__(self) -> None:
        self._root = Node(None, b"")

    def hold(self, prompt: bytes, slot: int) -> tuple[Node, int]:
        """A request of `slot` with these packed hashes begins: where it ends in the tree, for `release`, and how many
        of its blocks no other request of the slot has."""
        node, offset, num_new = self._root, 0, 0
        while offset < len(prompt):
            node = self._step(node, prompt, offset)
            offset += len(node.edge)
            if node.enter(slot):
                num_new += node.num_blocks
        node.num_ending += 1
        return node, num_new

    def release(self, end: Node, slot: int) -> int:
        """The request is over: how many blocks the slot has no longer."""
        end.num_ending -= 1
        num_gone = 0
        node: Node | None = end
        while node is not None and node.parent is not None:
            parent = node.parent
            if node.leave(slot):
                num_gone += node.num_blocks
            _tidy(node, parent)
            node = parent
        return num_gone

    def num_exclusive(self, end: Node, slot: int) -> int:
        """Of the blocks of a request that ends here: the last ones that no other request of its slot shares."""
        num_exclusive = 0
        node: Node | None = end
        while node is not None and node.num_through.get(slot) == 1:
            num_exclusive += node.num_blocks
            node = node.parent
        return num_exclusive

    def match(self, prompt: bytes, candidates: int) -> list[tuple[int, int]]:
        """How many leading blocks of the prompt the slots of `candidates` are working on: (slots, num_blocks) with
        growing numbers and each mask within the one before; whom the first leaves out has none."""
        found: list[tuple[int, int]] = []
        node, offset = self._root, 0
        while offset < len(prompt):
            child = node.children.get(prompt[offset : offset + HASH_SIZE])
            if child is None or not (slots := child.slots & candidates):
                break
            common = _common_length(child.edge, prompt, offset)
            offset += common
            if found and found[-1][0] == slots:
                found.pop()
            found.append((slots, offset // HASH_SIZE))
            if common < len(child.edge):
                break
            node = child
        return found

    def __len__(self) -> int:
        """The number of nodes; counts them one by one."""
        total, pending = 0, [self._root]
        while pending:
            children = pending.pop().children.values()
            total += len(children)
            pending.extend(children)
        return total

    def _step(self, node: Node, prompt: bytes, offset: int) -> Node:
        """The child whose edge goes on as the prompt does at `offset`; made, or cut off a longer one, if need be."""
        first = prompt[offset : offset + HASH_SIZE]
        child = node.children.get(first)
        if child is None:
            node.children[first] = child = Node(node, prompt[offset:])
            return child
        common = _common_length(child.edge, prompt, offset)
        return child if common == len(child.edge) else _split(child, node, common)


def _common_length(edge: bytes, prompt: bytes, offset: int) -> int:
    """How many bytes `edge` and the rest of the prompt have in common, knowing that their first hashes are equal."""
    end = min(len(edge), len(prompt) - offset)
    if edge[end - HASH_SIZE : end] == prompt[offset + end - HASH_SIZE : offset + end]:
        return end
    equal, unequal = 1, end // HASH_SIZE  # so many blocks are equal, and so many are not
    while unequal - equal > 1:
        middle = (equal + unequal) // 2
        stop = middle * HASH_SIZE
        if edge[stop - HASH_SIZE : stop] == prompt[offset + stop - HASH_SIZE : offset + stop]:
            equal = middle
        else:
            unequal = middle
    return equal * HASH_SIZE


def _split(node: Node, parent: Node, length: int) -> Node:
    """Put a new node with the first `length` bytes of the edge above `node`, which stays the end of its requests."""
    upper = Node(parent, node.edge[:length])
    upper.num_through = node.num_through.copy()
    upper.slots = node.slots
    node.parent, node.edge = upper, node.edge[length:]
    upper.children[node.edge[:HASH_SIZE]] = node
    parent.children[upper.edge[:HASH_SIZE]] = upper
    return upper


def _tidy(node: Node, parent: Node) -> None:
    """Take the node out if nothing goes through it, or join it with its only child if nothing ends in it."""
    if not node.slots:
        del parent.children[node.edge[:HASH_SIZE]]
    elif not node.num_ending and len(node.children) == 1:
        (child,) = node.children.values()
        child.parent, child.edge = parent, node.edge + child.edge
        parent.children[child.edge[:HASH_SIZE]] = child
