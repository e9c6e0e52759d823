"""How much one turn of the event loop may do before others get theirs."""

from __future__ import annotations

MAX_MESSAGES_PER_TURN = 128
MAX_BYTES_PER_TURN = 64 << 10


class TurnBudget:
    """Messages and bytes of one turn."""

    __slots__ = ("_num_bytes", "_num_messages")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._num_messages = 0
        self._num_bytes = 0

    def spend(self, num_bytes: int) -> bool:
        """Whether one more message may be handled after this one."""
        self._num_messages += 1
        self._num_bytes += num_bytes
        return self._num_messages < MAX_MESSAGES_PER_TURN and self._num_bytes < MAX_BYTES_PER_TURN
