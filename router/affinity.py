"""Which worker a conversation is bound to, so that each turn finds the cache that the turns before it have filled.

A binding lasts until its session has been idle for the time to live: nothing of it runs and nothing new comes. A *soft*
binding is a preference, a *hard* one a constraint. Neither may lock a session onto a worker that no longer serves it
well, which `advise` sees to:

    the worker            soft   hard
    is fit                stay   stay
    is gone or failed     move   move
    is overloaded         move   wait, and move once that has lasted for OVERLOAD_PATIENCE_S
    has lost the cache    move   move, after as many turns in a row as MISSES_BEFORE_MOVING says

Replicas exchange bindings. The higher (sequence, writer) wins, so all agree in whatever order they hear of them. One
table is for the workers of one endpoint: the same session may use several models.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import NamedTuple

from msgspec import Struct

from dynamo.shared.replica_events import AffinityBinding

MAX_SESSIONS = 65_536
MAX_SESSION_ID_BYTES = 256
OVERLOAD_PATIENCE_S = 30.0
MISSES_BEFORE_MOVING = {"soft": 2, "hard": 4}
REPEAT_AFTER = 0.25  # of the time to live: replicas are told of a binding in use again

HASH_SIZE = 8


class Target(NamedTuple):
    instance_id: int
    dp_rank: int | None


class Condition(Enum):
    """Of the worker that a session is bound to, as this request finds it."""

    FIT = "fit"
    OVERLOADED = "overloaded"
    UNUSABLE = "unusable"  # gone, inhibited, not allowed, or has failed this very request


class Advice(Enum):
    STAY = "stay"
    WAIT = "wait"  # for this worker: refused as overloaded meanwhile
    MOVE = "move"  # the binding is dropped: choose among all, and bind anew


class _Session(Struct):
    target: Target
    version: tuple[int, int]  # sequence, writer
    used_at: float
    told_at: float
    overloaded_since: float | None = None
    num_prompt_blocks: int = 0  # of the last prompt
    last_block: bytes = b""  # its hash, which stands for the whole prompt
    num_misses: int = 0  # turns in a row
    judged: bytes = b""  # the last block of the prompt that was counted last


class SessionAffinity:
    """`router_id` names this replica; None says that there are no others to tell. `first_sequence` must be higher than
    any that an earlier process of this replica has used: the wall clock in nanoseconds."""

    def __init__(
        self,
        ttl_s: float,
        is_hard: bool = True,
        max_sessions: int = MAX_SESSIONS,
        router_id: int | None = None,
        first_sequence: int = 1,
    ) -> None:
        self.is_hard = is_hard
        self._ttl_s = ttl_s
        self._max_sessions = max_sessions
        self._router_id = router_id
        self._next_sequence = first_sequence
        self._max_misses = MISSES_BEFORE_MOVING["hard" if is_hard else "soft"]
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # the one used longest ago comes first
        self._num_running: dict[str, int] = {}  # requests of a session, wherever it was bound when they came
        self._by_instance: dict[int, set[str]] = {}
        self._untold: dict[str, None] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def take_counts(self) -> dict[str, int]:
        """Since the last call: bindings made (bound), ended by their session (ended), lost to the cap (evicted) or to
        idleness (expired), left because the worker was unusable, overloaded or had lost the cache (moved_*), and ids
        too long to bind (refused)."""
        counts, self._counts = self._counts, {}
        return counts

    # ---- one request

    def bound(self, session_id: str, now: float) -> Target | None:
        """Where the session is; asking counts as use."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        if self._is_idle(session_id, session, now):
            self._drop(session_id, "expired")
            return None
        self._touch(session_id, session, now)
        return session.target

    def peek(self, session_id: str, now: float) -> Target | None:
        """As `bound`, and leaves everything as it is."""
        session = self._sessions.get(session_id)
        return None if session is None or self._is_idle(session_id, session, now) else session.target

    def advise(
        self,
        session_id: str,
        condition: Condition,
        now: float,
        block_hashes: bytes = b"",
        cached_blocks: int | None = None,
    ) -> Advice:
        """What to do with a bound session; asking again for the same prompt changes nothing. `block_hashes` are the
        prompt's, `cached_blocks` what the bound worker has of it in any tier; None where nobody knows."""
        session = self._sessions.get(session_id)
        if session is None:
            return Advice.MOVE
        if session_id in self._num_running:
            cached_blocks = None  # those of the turn that runs may not be there yet
        reason = self._reason_to_move(session, condition, now, block_hashes, cached_blocks)
        if reason:
            self._drop(session_id, f"moved_{reason}")
            return Advice.MOVE
        return Advice.WAIT if condition is Condition.OVERLOADED else Advice.STAY

    def bind(
        self, session_id: str, instance_id: int, dp_rank: int | None, now: float, block_hashes: bytes = b""
    ) -> None:
        """A request of the session was placed there, and runs until `release`."""
        if len(session_id.encode()) > MAX_SESSION_ID_BYTES:
            self._count("refused")
            return
        target = Target(instance_id, dp_rank)
        session = self._sessions.get(session_id)
        if session is None or session.target != target:
            session = self._insert(session_id, target, self._next_version(), now, session)
            self._count("bound")
            self._tell(session_id, session, now)
        self._num_running[session_id] = self._num_running.get(session_id, 0) + 1
        session.num_prompt_blocks = len(block_hashes) // HASH_SIZE
        session.last_block = block_hashes[-HASH_SIZE:]
        self._touch(session_id, session, now)

    def release(self, session_id: str, now: float) -> None:
        """A request of the session is over."""
        num_left = self._num_running.pop(session_id, 0) - 1
        if num_left > 0:
            self._num_running[session_id] = num_left
        if (session := self._sessions.get(session_id)) is not None:
            self._touch(session_id, session, now)

    def end(self, session_id: str) -> bool:
        """The session says that it is over; whether it was bound. Replicas let it expire."""
        is_bound = session_id in self._sessions
        if is_bound:
            self._drop(session_id, "ended")
        return is_bound

    # ---- the fleet and the clock

    def forget_instance(self, instance_id: int) -> int:
        """The worker is gone: how many sessions were bound to it."""
        gone = list(self._by_instance.get(instance_id, ()))
        for session_id in gone:
            self._drop(session_id, "moved_unusable")
        return len(gone)

    def expire(self, now: float) -> int:
        """Drop idle bindings; how many."""
        num_expired = 0
        while self._sessions:
            session_id, session = next(iter(self._sessions.items()))
            if session.used_at + self._ttl_s > now:
                break
            if session_id in self._num_running:
                self._touch(session_id, session, now)
            else:
                self._drop(session_id, "expired")
                num_expired += 1
        return num_expired

    # ---- replicas

    def take_changes(self) -> list[AffinityBinding]:
        """What the other replicas should hear, since the last call: at most one binding per session."""
        untold, self._untold = self._untold, {}
        return [self._as_binding(key, self._sessions[key]) for key in untold if key in self._sessions]

    def snapshot(self) -> list[AffinityBinding]:
        """For a replica that has just joined."""
        return [self._as_binding(session_id, session) for session_id, session in self._sessions.items()]

    def apply_remote(self, binding: AffinityBinding, now: float) -> bool:
        """Another replica's binding; whether it counts: not if ours is newer. The caller leaves out what it said
        itself, and workers that it does not know."""
        if len(binding.session_id.encode()) > MAX_SESSION_ID_BYTES:
            return False
        self._next_sequence = max(self._next_sequence, binding.sequence + 1)
        target, version = Target(binding.worker_id, binding.dp_rank), (binding.sequence, binding.writer_id)
        session = self._sessions.get(binding.session_id)
        if session is not None and version < session.version and not self._is_idle(binding.session_id, session, now):
            return False
        if session is None or session.target != target:
            session = self._insert(binding.session_id, target, version, now, session)
        session.version = version
        session.used_at = session.told_at = now
        self._sessions.move_to_end(binding.session_id)
        return True

    # ---- inside

    def _reason_to_move(
        self, session: _Session, condition: Condition, now: float, block_hashes: bytes, cached_blocks: int | None
    ) -> str:
        if condition is Condition.UNUSABLE:
            return "unusable"
        if self._is_out_of_patience(session, condition, now):
            return "overloaded"
        if cached_blocks is not None and self._has_lost_cache(session, block_hashes, cached_blocks):
            return "uncached"
        return ""

    def _is_out_of_patience(self, session: _Session, condition: Condition, now: float) -> bool:
        if condition is Condition.FIT:
            session.overloaded_since = None
            return False
        if session.overloaded_since is None:
            session.overloaded_since = now
        return not self.is_hard or now - session.overloaded_since >= OVERLOAD_PATIENCE_S

    def _has_lost_cache(self, session: _Session, block_hashes: bytes, cached_blocks: int) -> bool:
        """A prompt that goes on from the last one should find that one cached. Less than half of it, turn after turn,
        is a worker that drops what it computes."""
        end = session.num_prompt_blocks * HASH_SIZE
        goes_on = end > 0 and block_hashes[end - HASH_SIZE : end] == session.last_block
        if not goes_on:
            return False
        if 2 * cached_blocks >= session.num_prompt_blocks:
            session.num_misses = 0
        elif session.judged != block_hashes[-HASH_SIZE:]:
            session.num_misses += 1
        session.judged = block_hashes[-HASH_SIZE:]
        return session.num_misses >= self._max_misses

    def _is_idle(self, session_id: str, session: _Session, now: float) -> bool:
        return session_id not in self._num_running and session.used_at + self._ttl_s <= now

    def _touch(self, session_id: str, session: _Session, now: float) -> None:
        session.used_at = now
        self._sessions.move_to_end(session_id)
        if now - session.told_at >= REPEAT_AFTER * self._ttl_s:
            self._tell(session_id, session, now)

    def _insert(
        self, session_id: str, target: Target, version: tuple[int, int], now: float, before: _Session | None
    ) -> _Session:
        """A new binding, perhaps in place of another."""
        if before is not None:
            self._forget_target(session_id, before)
        elif len(self._sessions) >= self._max_sessions:
            self._drop(next(iter(self._sessions)), "evicted")
        session = self._sessions[session_id] = _Session(target, version, now, now)
        self._by_instance.setdefault(target.instance_id, set()).add(session_id)
        return session

    def _next_version(self) -> tuple[int, int]:
        self._next_sequence += 1
        return self._next_sequence - 1, self._router_id or 0

    def _tell(self, session_id: str, session: _Session, now: float) -> None:
        session.told_at = now
        if self._router_id is not None:
            self._untold[session_id] = None

    def _as_binding(self, session_id: str, session: _Session) -> AffinityBinding:
        return AffinityBinding(session_id, *session.target, *session.version)

    def _drop(self, session_id: str, reason: str) -> None:
        self._forget_target(session_id, self._sessions.pop(session_id))
        self._untold.pop(session_id, None)
        self._count(reason)

    def _forget_target(self, session_id: str, session: _Session) -> None:
        instance_id = session.target.instance_id
        self._by_instance[instance_id].remove(session_id)
        if not self._by_instance[instance_id]:
            del self._by_instance[instance_id]

    def _count(self, event: str) -> None:
        self._counts[event] = self._counts.get(event, 0) + 1
