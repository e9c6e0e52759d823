"""Which worker is asked after one has failed, and what: a request moves on with the tokens it has so far.

    nothing begun     another worker is asked the same, up to MAX_DISPATCH_ATTEMPTS
    begun             another is asked to continue: prompt and output so far, the rest of max_tokens; `limit` times

Guided decoding never moves: the state of the engine's grammar cannot be rebuilt. Nor does a request that is pinned to
its worker. The choices of n > 1 do: each is a call of its own here, so each has only one output to take along.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from dynamo.frontend.kept_output import NO_LIMIT, KeptOutput
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.placement import PlacementWish
from dynamo.frontend.prepared import Errand
from dynamo.frontend.router_client import RouterClient
from dynamo.shared.errors import CannotConnect, WorkerError
from dynamo.shared.request_plane.client import WorkerAtCapacity

MAX_DISPATCH_ATTEMPTS = 4  # workers that are offered a request before any begins it


class MigrationRules(Struct, frozen=True):
    """`limit` 0 never moves what a worker has begun. Beyond `max_seq_len` tokens of prompt and output a request stays
    where it is, and its output is kept no longer."""

    limit: int = 3
    max_seq_len: int | None = None

    def room_for_output(self, errand: Errand) -> int | None:
        """Tokens of output with which it may still move, below 0 for too long a prompt; None if it never moves."""
        if not self.limit or errand.is_guided or errand.wishes.instance_id is not None:
            return None
        return NO_LIMIT if self.max_seq_len is None else self.max_seq_len - errand.num_tokens


class Journey:
    """One choice's way from worker to worker. `wish` says where it may be placed next, `asked` what is sent there."""

    def __init__(
        self,
        errand: Errand,
        wish: PlacementWish,
        rules: MigrationRules,
        router: RouterClient,
        record: RequestRecord,
        hash_blocks: Callable[[Errand], None],
    ) -> None:
        self.asked = errand
        self.wish = wish
        self.output = KeptOutput(rules.room_for_output(errand))
        self._errand = errand
        self._rules = rules
        self._router = router
        self._record = record
        self._hash_blocks = hash_blocks
        self._num_unbegun = 0
        self._num_moves = 0

    def goes_on(self, instance_id: int, error: WorkerError) -> bool:
        """After this worker has failed: whether to ask another, which `wish` and `asked` are ready for then."""
        self.wish.excluded.append(instance_id)
        is_unbegun = isinstance(error, CannotConnect | WorkerAtCapacity)
        if not (self._may_ask_again() if is_unbegun else self._may_move(error)):
            return False
        if not is_unbegun:
            self._num_moves += 1
        self._record.note_migration("ongoing_request" if self.output else "new_request", error.code or "failed")
        if self.output:
            self.asked = self._errand.continued(self.output.packed())
            self._hash_blocks(self.asked)
            self.wish.num_tokens, self.wish.block_hashes = self.asked.num_tokens, self.asked.block_hashes
        return True

    def _may_ask_again(self) -> bool:
        self._num_unbegun += 1
        return self._num_unbegun < MAX_DISPATCH_ATTEMPTS and self._router.can_place_elsewhere(self.wish)

    def _may_move(self, error: WorkerError) -> bool:
        if not error.is_migratable or not self._rules.limit:
            return False
        if self.output.keep is None:
            return False
        if self._num_moves < self._rules.limit and self._router.can_place_elsewhere(self.wish):
            return True
        self._record.is_migration_exhausted = True
        return False
