"""Requests that run: what each counts for, and who has to hear of its end."""

from __future__ import annotations

from typing import NamedTuple

from dynamo.router.affinity import SessionAffinity
from dynamo.router.class_queue import PolicyClass
from dynamo.router.fleet import Fleet
from dynamo.router.placing import session_key
from dynamo.router.queue import PlacementQueue
from dynamo.router.replicas import ReplicaSync
from dynamo.router.selectors import Choice, Question
from dynamo.router.table import ModelTable
from dynamo.router.weights import Weights
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import ActiveRequest, Place
from dynamo.shared.replica_events import RunningRequest

Key = tuple[bytes, int]
"""(peer, request id)"""


class Note(NamedTuple):
    """Of a running request: its session, the class whose running requests are counted, where and as what replicas know
    it. Empty where nobody need hear of its end."""

    session_id: str = ""
    policy_class: str = ""
    shared: tuple[EndpointScope, str] | None = None


class Running:
    """`affinity` is None where sessions are ignored, `replicas` where there are none. With `tracks_load` off, nothing
    counts but the number of requests, which `Acceptors` has."""

    def __init__(
        self,
        table: ModelTable,
        fleet: Fleet,
        queue: PlacementQueue,
        affinity: SessionAffinity | None,
        replicas: ReplicaSync | None,
    ) -> None:
        self._table = table
        self._fleet = fleet
        self._queue = queue
        self._affinity = affinity
        self._replicas = replicas
        self._notes: dict[Key, Note] = {}
        self.tracks_load = True

    def begin(self, peer: bytes, question: Question, choice: Choice, policy_class: PolicyClass) -> None:
        key = (peer, question.place.request_id)
        self._count(key, question, choice)
        session_id = self._bind_session(question, choice) if self._affinity is not None else ""
        self._note(key, Note(session_id, self._count_class(policy_class), self._tell(question, choice)))

    def resume(self, peer: bytes, active: ActiveRequest, policy_class: PolicyClass | None, now: float) -> None:
        """Take in a request that runs already, as its acceptor tells. `policy_class` is None where nobody knows it."""
        slot = self._fleet.slot_for(active.instance_id, active.dp_rank)
        live = self._table.home_of(active.instance_id)
        if slot is None or live is None:
            return
        key = (peer, active.request_id)
        place = Place(
            active.request_id,
            live.model,
            active.num_tokens,
            active.block_hashes,
            label=active.label,
            hints=active.hints,
        )
        self._count_resumed(key, slot, place, active, live.block_size, now)
        worker = WorkerRank(*self._fleet.ranks[slot])
        num_prefill_tokens = 0 if active.is_prefill_completed else active.num_tokens
        shared = self._share(live.scope, place, worker, num_prefill_tokens, self._fleet.weights)
        session_id = self._resume_session(place, active, now)
        self._note(key, Note(session_id, self._count_class(policy_class), shared))

    def complete_prefill(self, key: Key) -> bool:
        """Whether that made room."""
        if not self._fleet.sequences.complete_prefill(key):
            return False
        note = self._notes.get(key)
        if self._replicas is not None and note is not None and note.shared is not None:
            self._replicas.prefill_completed(*note.shared)
        return True

    def grow_output(self, key: Key, num_blocks: int) -> None:
        self._fleet.sequences.grow_output(key, num_blocks)

    def end(self, key: Key, now: float) -> bool:
        """Whether that made room."""
        has_room = self._fleet.sequences.free(key)
        note = self._notes.pop(key, None)
        if note is None:
            return has_room
        if note.policy_class:
            self._queue.finished(note.policy_class)
        if note.session_id and self._affinity is not None:
            self._affinity.release(note.session_id, now)
        if note.shared is not None and self._replicas is not None:
            self._replicas.freed(*note.shared)
        return has_room or bool(note.policy_class)

    # ---- inside

    def _count(self, key: Key, question: Question, choice: Choice) -> None:
        slot = self._fleet.slot_for(choice.instance_id, choice.dp_rank)
        if slot is not None and self.tracks_load:
            weights, block_size = choice.weights or self._fleet.weights, question.live.block_size
            self._fleet.begin(key, slot, question.place, choice.cached_tokens, block_size, weights, question.now)

    def _count_resumed(
        self, key: Key, slot: int, place: Place, active: ActiveRequest, block_size: int, now: float
    ) -> None:
        if not self.tracks_load:
            return
        self._fleet.begin(key, slot, place, 0, block_size, self._fleet.weights, now)
        if active.is_prefill_completed:
            self._fleet.sequences.complete_prefill(key)
        if active.num_output_blocks:
            self._fleet.sequences.grow_output(key, active.num_output_blocks)

    def _count_class(self, policy_class: PolicyClass | None) -> str:
        """Its name, if it matters how many of the class run."""
        if policy_class is None or policy_class.max_running_requests is None:
            return ""
        self._queue.started(policy_class.name)
        return policy_class.name

    def _note(self, key: Key, note: Note) -> None:
        if any(note):
            self._notes[key] = note

    def _resume_session(self, place: Place, active: ActiveRequest, now: float) -> str:
        """The session to release later. One that ended with this request has ended already."""
        hints = place.hints
        if self._affinity is None or hints is None or not hints.session_id or hints.is_session_final:
            return ""
        session_id = session_key(place.model, hints.session_id)
        self._affinity.bind(session_id, active.instance_id, active.dp_rank, now, place.block_hashes)
        return session_id

    def _bind_session(self, question: Question, choice: Choice) -> str:
        """The session to release later; none if there is none, or if it has ended with this request."""
        place = question.place
        if self._affinity is None or place.hints is None or not (session_id := place.hints.session_id):
            return ""
        session_id = session_key(question.live.model, session_id)
        if place.hints.is_session_final:
            self._affinity.end(session_id)
            return ""
        self._affinity.bind(session_id, choice.instance_id, choice.dp_rank, question.now, place.block_hashes)
        return session_id

    def _tell(self, question: Question, choice: Choice) -> tuple[EndpointScope, str] | None:
        """Let replicas know of the request, and of what it brings into the worker's cache."""
        place, scope = question.place, question.live.scope
        slot = self._fleet.slot_for(choice.instance_id, choice.dp_rank)
        if slot is None:
            return None
        worker = WorkerRank(*self._fleet.ranks[slot])
        if self._replicas is not None and self._fleet.predicted is not None:
            self._replicas.predicted(scope, worker, place.block_hashes)
        num_prefill_tokens = max(0, place.num_tokens - choice.cached_tokens)
        return self._share(scope, place, worker, num_prefill_tokens, choice.weights or self._fleet.weights)

    def _share(
        self, scope: EndpointScope, place: Place, worker: WorkerRank, num_prefill_tokens: int, weights: Weights
    ) -> tuple[EndpointScope, str] | None:
        """Replicas know a request by the id that its worker knows too; one without is kept to ourselves."""
        if self._replicas is None or not place.label:
            return None
        hints = place.hints
        request = RunningRequest(
            place.label,
            worker,
            place.block_hashes if weights.track_active_blocks else b"",
            num_prefill_tokens,
            None if hints is None else hints.expected_output_tokens,
            None if hints is None else hints.lora_name,
        )
        self._replicas.added(scope, request, tracks_prefill=weights.track_prefill_tokens)
        return scope, place.label
