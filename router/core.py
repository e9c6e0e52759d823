"""The router without IO and without a clock: discovery changes and messages in, placements and table changes out.

Its owner says what time it is, delivers what `receive` returns to the peer that sent, and the deltas to all peers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from dynamo.router.acceptors import Acceptors
from dynamo.router.admission import Admission
from dynamo.router.affinity import SessionAffinity
from dynamo.router.entries import read_registered, read_worker
from dynamo.router.event_sources import RESTORED_FOR_S, Cursor, EventSources
from dynamo.router.fleet import Fleet
from dynamo.router.index import PrefixIndex
from dynamo.router.index_snapshot import RankSnapshot
from dynamo.router.inquiries import Inquiries, placed, reason_of, receipt_of
from dynamo.router.overload import OverloadMonitor
from dynamo.router.placing import Placing, refused
from dynamo.router.predicted import PredictedIndex
from dynamo.router.queue import PlacementQueue, PolicyClass, QueueFull
from dynamo.router.ranks import ranks_of
from dynamo.router.remote_load import RemoteLoad
from dynamo.router.replica_host import ReplicaLimits
from dynamo.router.replicas import ReplicaSync
from dynamo.router.selectors import SELECTORS, Choice, Question
from dynamo.router.table import ModelTable
from dynamo.router.weights import Weights
from dynamo.shared.card import CardError, Registered
from dynamo.shared.discovery import INSTANCES, Change, Put
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.kv_events import LoadReport, WorkerRank
from dynamo.shared.messages import (
    AcceptorMessage,
    ActiveRequest,
    Candidate,
    Explain,
    Free,
    GetThresholds,
    Goodbye,
    Heartbeat,
    Hello,
    OutputGrown,
    Place,
    PrefillCompleted,
    Queued,
    Refused,
    RouterMessage,
    SetThresholds,
    Settings,
    TableDelta,
    Thresholds,
    ThresholdsAre,
    Welcome,
    WorkerFailed,
)
from dynamo.shared.protocol import RuntimeConfig
from dynamo.shared.replica_events import RunningRequest

if TYPE_CHECKING:
    from dynamo.router.policies import PolicyRunner  # with numpy

log = logging.getLogger("dynamo.router")

WAITED_TOO_LONG = "The request has waited too long for a worker with room."
SAY_HELLO = TableDelta(0)  # no table has the version before 0, so whoever gets this asks for the whole table


class Rules(Struct, frozen=True, kw_only=True):
    """What a router does. Namespaces: the prefix wins over the exact name; neither means all.

    `kv_cache_block_size` is what cards must say, if anything is said. Without `uses_kv_events` the prefix index is
    predicted from placements, each believed for `predicted_ttl_s`; with them that is added if it is set. `classes` are
    the queues; none of them queueing means that no request ever waits. `session_ttl_s` None ignores sessions.
    """

    router_mode: str = "round-robin"
    namespace: str | None = None
    namespace_prefix: str | None = None
    min_initial_workers: int = 0
    inhibited_duration_s: float = 5.0
    acceptor_expiry_s: float = 10.0
    max_acceptors: int = 1024
    max_active_per_acceptor: int = 65_536
    max_table_entries: int = 65_536
    kv_cache_block_size: int | None = None
    weights: Weights = Weights()
    tracks_output_blocks: bool = False
    uses_kv_events: bool = True
    has_durable_events: bool = False
    max_index_blocks: int = 8_000_000
    predicted_ttl_s: float | None = None
    predicted_policy: str = "ttl"
    thresholds: Thresholds = Thresholds("")
    classes: tuple[PolicyClass, ...] = (PolicyClass(),)
    overlap_refresh_after_s: float = 1.0
    session_ttl_s: float | None = None
    is_affinity_hard: bool = True
    max_sessions: int = 65_536
    router_id: int | None = None  # among replicas; None has none
    has_batches: bool = True  # whether replicas take several events in one message
    remote_request_expiry_s: float = 300.0
    first_sequence: int = 1  # of this router's session bindings

    def serves_namespace(self, namespace: str) -> bool:
        if self.namespace_prefix:
            return namespace.startswith(self.namespace_prefix)
        return not self.namespace or namespace == self.namespace

    @property
    def is_kv(self) -> bool:
        return self.router_mode == "kv"


OnDecision = Callable[[Question, Choice, str, list[Candidate], float], None]
"""(question, choice, reason, what was compared, seconds in the queue)"""


class Note(NamedTuple):
    """Of a running request: who must be told of its end. `shared` is where and as what replicas know it."""

    session_id: str = ""
    policy_class: str = ""
    shared: tuple[EndpointScope, str] | None = None


class Router:
    """`policy` is the operator's own way to choose; `on_decision` is told of every placement."""

    def __init__(
        self,
        rules: Rules,
        rng: random.Random,
        *,
        policy: PolicyRunner | None = None,
        on_decision: OnDecision | None = None,
    ) -> None:
        self.rules = rules
        self.acceptors = Acceptors(rules.max_acceptors, rules.max_active_per_acceptor, self._on_freed)
        self.fleet = Fleet(rng, self.acceptors.num_active, rules.weights, _index(rules), _predicted(rules), policy)
        self.sources = _sources(self.fleet, is_durable=rules.has_durable_events)
        self.table = ModelTable(lambda: SELECTORS[rules.router_mode](self.fleet))
        self.overload = OverloadMonitor(self.fleet.sequences, rules.thresholds)
        self.affinity = _affinity(rules)
        self.queue = PlacementQueue(rules.classes, rules.overlap_refresh_after_s)
        self.placing = Placing(self.table, self.fleet, self.overload, self.affinity, rng, weighs_cost=rules.is_kv)
        self.placing.has_enough_workers = rules.min_initial_workers <= 0
        self.admission = Admission(rules.classes, self.queue, self.placing, self.fleet)
        self.inquiries = Inquiries(self.table, self.fleet, self.placing, self.admission, self.overload)
        self.remote = RemoteLoad(self.table, self.fleet, self.overload, self.affinity)
        self.replicas = _replicas(rules, self.remote)
        self.malformed: dict[str, str] = {}  # discovery key -> what is wrong with its value
        self.num_left_out = 0  # discovery entries that the table had no room for
        self.num_turned_away = 0
        self._on_decision = on_decision
        self._now = 0.0  # of the last call that told the time
        self._outcomes: dict[str, int] = {}
        self._outgoing: dict[bytes, list[RouterMessage]] = {}
        self._has_room = False  # something ended since the queue was looked at
        self._kept: dict[tuple[int, int], RankSnapshot] = {}  # of ranks that have not come yet
        self._kept_until = 0.0
        self._notes: dict[tuple[bytes, int], Note] = {}  # of running requests that somebody must be told of at the end

    # ---- discovery

    def discover(self, bucket: str, changes: Iterable[Change], now: float = 0.0) -> None:
        """Apply a batch of `v1/instances` or `v1/mdc`; `take_delta` then says what it meant."""
        self._now = max(self._now, now)
        for change in changes:
            if not self.rules.serves_namespace(change.key.partition("/")[0]):
                continue
            try:
                self._apply(bucket, change)
            except CardError as error:
                self._note_malformed(bucket, change.key, str(error))
        for instance_id in self.table.settle():
            self._settle_ranks(instance_id)
        self.placing.has_enough_workers |= len(self.table.workers) >= self.rules.min_initial_workers
        self._has_room = True

    def take_delta(self) -> TableDelta | None:
        return self.table.take_delta()

    def _settle_ranks(self, instance_id: int) -> None:
        """Ranks are those of the routable workers; one whose ranks have changed starts anew."""
        live = self.table.home_of(instance_id) if instance_id in self.table.workers else None
        facts = live.registered[instance_id].card.runtime_config if live is not None else None
        if instance_id in self.fleet.ranks and (facts is None or not self._has_ranks(instance_id, facts)):
            self._worker_down(instance_id)
        if facts is not None:
            self.fleet.up(instance_id, facts)
            for slot in self.fleet.ranks.slots_of(instance_id).values():
                self.overload.set_capacity(slot, facts.total_kv_blocks, facts.max_num_batched_tokens)
            if self.sources is not None:
                self._unpack(instance_id)
                self.sources.worker_up(instance_id, self._now)

    def _has_ranks(self, instance_id: int, facts: RuntimeConfig) -> bool:
        return list(self.fleet.ranks.slots_of(instance_id)) == list(ranks_of(facts))

    def _worker_down(self, instance_id: int) -> None:
        if self.sources is not None:
            self.sources.worker_down(instance_id)
        for slot in self.fleet.down(instance_id):
            self.overload.forget(slot)
        if self.affinity is not None:
            self.affinity.forget_instance(instance_id)

    def _apply(self, bucket: str, change: Change) -> None:
        key = change.key
        if not isinstance(change, Put):
            self._drop(bucket, key)
            return
        is_known = self.table.has_instance(key) if bucket == INSTANCES else self.table.has_card(key)
        if not is_known and len(self.table) >= self.rules.max_table_entries:
            self._leave_out(key)
            return
        if bucket == INSTANCES:
            self.table.put_instance(key, read_worker(key, change.value))
        else:
            registered = read_registered(key, change.value)
            self._check_block_size(registered)
            self.table.put_card(key, registered)
        self.malformed.pop(f"{bucket}/{key}", None)

    def _check_block_size(self, registered: Registered) -> None:
        """A worker whose blocks are of another size would never match a prompt, and nobody would know why."""
        wanted, found = self.rules.kv_cache_block_size, registered.card.kv_cache_block_size
        if wanted is not None and found != wanted:
            raise CardError(
                f"its KV blocks hold {found} tokens, --kv-cache-block-size says {wanted}; give both the same"
            )

    def _drop(self, bucket: str, key: str) -> None:
        self.malformed.pop(f"{bucket}/{key}", None)
        if bucket == INSTANCES:
            self.table.drop_instance(key)
        else:
            self.table.drop_card(key)

    def _note_malformed(self, bucket: str, key: str, reason: str) -> None:
        """A value that cannot be read counts as none, so what the key meant before is gone too."""
        entry = f"{bucket}/{key}"
        is_news = self.malformed.get(entry) != reason
        self._drop(bucket, key)
        if len(self.malformed) < self.rules.max_table_entries:
            self.malformed[entry] = reason
        if is_news:
            log.warning("ignoring %s: %s", entry, reason)

    def _leave_out(self, key: str) -> None:
        self.num_left_out += 1
        if self.num_left_out == 1:
            log.error(
                "the table is full (%d entries), leaving out %s and whatever comes after it; "
                "raise --max-table-entries or scope the router with --namespace",
                self.rules.max_table_entries,
                key,
            )

    # ---- what a predecessor knew

    def restore(self, states: dict[Cursor, RankSnapshot], now: float) -> None:
        """Give ranks these blocks when they come; their events decide how long that holds."""
        if self.sources is not None:
            self._kept = {(cursor.worker_id, cursor.dp_rank): blocks for cursor, blocks in states.items()}
            self._kept_until = now + RESTORED_FOR_S
            self.sources.restore(states, now)

    def state_of(self, worker_id: int, dp_rank: int) -> tuple[Cursor, RankSnapshot] | None:
        """What `restore` takes; None while it is not complete."""
        slot = self.fleet.ranks.slot_of(worker_id, dp_rank)
        cursor = None if self.sources is None else self.sources.cursor_of(worker_id, dp_rank)
        if slot is None or cursor is None or self.fleet.index is None:
            return None
        return cursor, self.fleet.index.dump(slot)

    def _unpack(self, instance_id: int) -> None:
        assert self.fleet.index is not None
        for dp_rank, slot in self.fleet.ranks.slots_of(instance_id).items():
            blocks = self._kept.pop((instance_id, dp_rank), None)
            if blocks is not None:
                try:
                    self.fleet.index.load(slot, blocks)
                except ValueError as error:
                    log.warning("worker %x rank %d does not start warm: %s", instance_id, dp_rank, error)

    # ---- what workers say of themselves

    def report_load(self, report: LoadReport) -> None:
        """Reports of ranks that are not in the table are ignored."""
        slot = self.fleet.ranks.slot_of(report.worker_id, report.dp_rank)
        if slot is not None:
            self.overload.report(slot, report)

    # ---- acceptors

    def receive(self, peer: bytes, messages: Sequence[AcceptorMessage], now: float) -> None:
        """What one peer said, in order; `take_outgoing` then has the answers, which may be for others too."""
        self._now = now
        acceptor = self.acceptors.by_peer.get(peer)
        is_stranger = acceptor is None
        if acceptor is not None:
            acceptor.last_seen = now
        for message in messages:
            match message:
                case Place():
                    self._place(peer, message, now)
                case Free():
                    self._free(peer, message.request_id)
                case PrefillCompleted():
                    self._complete_prefill((peer, message.request_id))
                case OutputGrown():
                    self.fleet.sequences.grow_output((peer, message.request_id), message.num_blocks)
                case Hello():
                    is_stranger = False  # even when turned away: it must not be asked to knock again at once
                    self._greet(peer, message, now)
                case WorkerFailed():
                    self._inhibit(message, now)
                case Heartbeat():
                    pass
                case Explain():
                    self._say(peer, self.inquiries.explain(message.place, now))
                case GetThresholds():
                    self._say(peer, self.inquiries.thresholds(message.request_id, message.model))
                case SetThresholds():
                    self._set_thresholds(peer, message)
                case Goodbye():
                    self.forget(peer)
                    return
        if is_stranger:  # after the answers, so that the hello it provokes tells of them
            self._say(peer, SAY_HELLO)
        self._serve_queue(now)
        self._tell_bindings()

    def take_outgoing(self) -> dict[bytes, list[RouterMessage]]:
        """What is to be said to whom since the last call."""
        outgoing, self._outgoing = self._outgoing, {}
        return outgoing

    def forget(self, peer: bytes) -> None:
        """The peer is gone: free what it held, and what it waited for."""
        self.queue.remove_peer(peer)
        if (acceptor := self.acceptors.by_peer.get(peer)) is not None:
            self.acceptors.leave(acceptor)

    def tick(self, now: float) -> None:
        self._now = now
        for peer in self.acceptors.expire(now - self.rules.acceptor_expiry_s):
            self.queue.remove_peer(peer)
        self.table.end_inhibitions(now)
        if self.affinity is not None:
            self.affinity.expire(now)
        if self.fleet.predicted is not None:
            self.fleet.predicted.expire(now)
        for waiting in self.queue.expire(now):
            self._refuse(waiting.key[0], refused(waiting.place, "queue_full", WAITED_TOO_LONG))
        self.admission.refresh(now)
        if self._kept and now >= self._kept_until:
            self._kept.clear()
        self._has_room = True  # a worker may have become healthy, or its reported load less
        self._serve_queue(now)

    def take_outcomes(self) -> dict[str, int]:
        """How often a placement request ended as "placed" or with which refusal, since the last call."""
        outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def _say(self, peer: bytes, message: RouterMessage) -> None:
        self._outgoing.setdefault(peer, []).append(message)

    def _greet(self, peer: bytes, hello: Hello, now: float) -> None:
        acceptor = self.acceptors.greet(peer, hello, now)
        if acceptor is None:
            self.num_turned_away += 1
            if self.num_turned_away == 1:
                log.error("turned acceptor %s away: there are %d already", hello.acceptor, len(self.acceptors))
            return
        for active in hello.active:
            if active.request_id in acceptor.active:
                self._resume(peer, active, now)
        workers, sets = self.table.published()
        self._say(peer, Welcome(self.rules.router_mode, self.table.version, workers, sets, self.settings))

    @property
    def settings(self) -> Settings:
        return Settings(
            needs_block_hashes=self.rules.is_kv,
            tracks_prefill=self._tracks_load,
            tracks_output_blocks=self.rules.is_kv and self.rules.tracks_output_blocks,
        )

    @property
    def _tracks_load(self) -> bool:
        """Whether anything looks at more than the number of requests."""
        return self.rules.is_kv or self.overload.is_watching or any(each.is_queueing for each in self.rules.classes)

    def _inhibit(self, failure: WorkerFailed, now: float) -> None:
        duration_s = self.rules.inhibited_duration_s
        if duration_s > 0 and self.table.inhibit(failure.instance_id, now + duration_s):
            log.warning("not asking worker %x for %g s: %s", failure.instance_id, duration_s, failure.reason)

    # ---- placement

    def _place(self, peer: bytes, place: Place, now: float) -> None:
        self.table.end_inhibitions(now)
        question = self.placing.question(place, now)
        if isinstance(question, Refused):
            self._refuse(peer, question)
            return
        if self.admission.must_wait(question):
            self._enqueue(peer, question)
        else:
            self._start(peer, question, 0.0)

    def _enqueue(self, peer: bytes, question: Question) -> None:
        try:
            self.admission.enqueue(peer, question)
        except QueueFull as error:
            self._refuse(peer, refused(question.place, "queue_full", str(error)))
        else:
            self._say(peer, Queued(question.place.request_id))

    def _start(self, peer: bytes, question: Question, waited_s: float) -> None:
        """Choose, remember, answer."""
        place = question.place
        compared = question.live.selector.look(question) if self._on_decision is not None else []
        choice = question.live.selector.select(question)
        if choice is None:
            mode = self.rules.router_mode
            self._refuse(
                peer, refused(place, "invalid_value", f"In router mode {mode} a request must name its worker.")
            )
            return
        acceptor = self.acceptors.by_peer.get(peer)
        if acceptor is not None:
            if not self.acceptors.has_room(acceptor):
                self._refuse(peer, refused(place, "overloaded", "The gateway has too many requests in flight."))
                return
            self.acceptors.charge(acceptor, place.request_id, choice.instance_id)
            self._count_load(peer, question, choice)
            self._take_note(peer, question, choice)
        if self._on_decision is not None:
            self._on_decision(question, choice, reason_of(question, choice), compared, waited_s)
        self._count("placed")
        receipt = receipt_of(question, choice, waited_s) if question.wants_receipt else None
        self._say(peer, placed(question, choice, receipt))

    def _refuse(self, peer: bytes, refusal: Refused) -> None:
        self._count(refusal.code)
        self._say(peer, refusal)

    def _count(self, outcome: str) -> None:
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1

    def _free(self, peer: bytes, request_id: int) -> None:
        """A request that waits is taken back; one that runs makes room."""
        if not self.queue.remove((peer, request_id)) and (acceptor := self.acceptors.by_peer.get(peer)) is not None:
            self.acceptors.free(acceptor, request_id)

    def _on_freed(self, peer: bytes, request_id: int) -> None:
        key = (peer, request_id)
        self._has_room |= self.fleet.sequences.free(key)
        if (note := self._notes.pop(key, None)) is None:
            return
        if note.policy_class:
            self.queue.finished(note.policy_class)
            self._has_room = True
        if note.session_id and self.affinity is not None:
            self.affinity.release(note.session_id, self._now)
        if note.shared is not None and self.replicas is not None:
            self.replicas.freed(*note.shared)

    def _complete_prefill(self, key: tuple[bytes, int]) -> None:
        if not self.fleet.sequences.complete_prefill(key):
            return
        self._has_room = True
        note = self._notes.get(key)
        if self.replicas is not None and note is not None and note.shared is not None:
            self.replicas.prefill_completed(*note.shared)

    def _count_load(self, peer: bytes, question: Question, choice: Choice) -> None:
        place = question.place
        slot = self.fleet.slot_for(choice.instance_id, choice.dp_rank)
        if slot is not None and self._tracks_load:
            self.fleet.begin(
                (peer, place.request_id),
                slot,
                place,
                choice.cached_tokens,
                question.live.block_size,
                choice.weights or self.rules.weights,
                question.now,
            )

    def _resume(self, peer: bytes, active: ActiveRequest, now: float) -> None:
        """Count a request that runs already, as its acceptor tells."""
        slot = self.fleet.slot_for(active.instance_id, active.dp_rank)
        live = self.table.home_of(active.instance_id)
        if slot is None or live is None or not self._tracks_load:
            return
        key = (peer, active.request_id)
        place = Place(active.request_id, live.model, active.num_tokens, active.block_hashes)
        self.fleet.begin(key, slot, place, 0, live.block_size, self.rules.weights, now)
        if active.is_prefill_completed:
            self.fleet.sequences.complete_prefill(key)
        if active.num_output_blocks:
            self.fleet.sequences.grow_output(key, active.num_output_blocks)

    def _take_note(self, peer: bytes, question: Question, choice: Choice) -> None:
        """Bind its session, count it in its class and tell replicas of it, until it is freed."""
        place, policy_class = question.place, self.admission.class_of(question.place)
        session_id = place.hints.session_id if self.affinity is not None and place.hints is not None else ""
        limited = policy_class.name if policy_class.max_running_requests is not None else ""
        note = Note(
            self._bind_session(session_id, question, choice) if session_id else "",
            limited,
            self._share(question, choice),
        )
        if limited:
            self.queue.started(limited)
        if any(note):
            self._notes[peer, place.request_id] = note

    def _share(self, question: Question, choice: Choice) -> tuple[EndpointScope, str] | None:
        place, scope = question.place, question.live.scope
        if self.replicas is None or not place.label:
            return None
        weights = choice.weights or self.rules.weights
        worker = WorkerRank(choice.instance_id, choice.dp_rank or 0)
        request = RunningRequest(
            place.label,
            worker,
            place.block_hashes if weights.track_active_blocks else b"",
            max(0, place.num_tokens - choice.cached_tokens),
            None if place.hints is None else place.hints.expected_output_tokens,
            None if place.hints is None else place.hints.lora_name,
        )
        self.replicas.added(scope, request, tracks_prefill=weights.track_prefill_tokens)
        if self.fleet.predicted is not None:
            self.replicas.predicted(scope, worker, place.block_hashes)
        return scope, place.label

    def _bind_session(self, session_id: str, question: Question, choice: Choice) -> str:
        """Returns the session to release later; none if it has ended with this request."""
        assert self.affinity is not None
        place = question.place
        if place.hints is not None and place.hints.is_session_final:
            self.affinity.end(session_id)
            return ""
        self.affinity.bind(session_id, choice.instance_id, choice.dp_rank, question.now, place.block_hashes)
        return session_id

    def _serve_queue(self, now: float) -> None:
        if not self._has_room:
            return
        self._has_room = False
        for waiting, question in self.admission.startable(now):
            peer, _request_id = waiting.key
            if isinstance(question, Refused):
                self._refuse(peer, question)
            else:
                self._start(peer, question, now - waiting.arrived_at)

    def _set_thresholds(self, peer: bytes, message: SetThresholds) -> None:
        before = self.settings
        answer = self.inquiries.set_thresholds(message)
        self._say(peer, answer)
        if self.replicas is not None and isinstance(answer, ThresholdsAre):
            for thresholds in answer.thresholds:
                self.replicas.thresholds_set(thresholds)
        self._announce_settings(before)

    def _announce_settings(self, before: Settings) -> None:
        if self.settings != before:
            for each in self.acceptors.by_peer:
                self._say(each, self.settings)
        self._has_room = True

    # ---- replicas

    def heard_replicas(self, now: float) -> None:
        """After `replicas` was fed: what it means for who waits here, and for what acceptors are to tell."""
        self._now = now
        self._has_room = True
        if self.remote.has_new_thresholds:
            self.remote.has_new_thresholds = False
            for each in self.acceptors.by_peer:
                self._say(each, self.settings)
        self._serve_queue(now)

    def _tell_bindings(self) -> None:
        if self.replicas is None or self.affinity is None:
            return
        for binding in self.affinity.take_changes():
            if (scope := self.remote.scope_of(binding.worker_id)) is not None:
                self.replicas.bound(scope, binding)


def _replicas(rules: Rules, host: RemoteLoad) -> ReplicaSync | None:
    if rules.router_id is None:
        return None
    limits = ReplicaLimits(request_expiry_s=rules.remote_request_expiry_s)
    return ReplicaSync(rules.router_id, host, limits, has_batches=rules.has_batches)


def _index(rules: Rules) -> PrefixIndex | None:
    return PrefixIndex(rules.max_index_blocks) if rules.is_kv and rules.uses_kv_events else None


def _sources(fleet: Fleet, *, is_durable: bool) -> EventSources | None:
    if fleet.index is None:
        return None
    return EventSources(fleet.index, fleet.ranks.slot_of, is_durable=is_durable)


def _predicted(rules: Rules) -> PredictedIndex | None:
    if not rules.is_kv or rules.predicted_ttl_s is None:
        return None
    return PredictedIndex(rules.predicted_ttl_s, policy=rules.predicted_policy)


def _affinity(rules: Rules) -> SessionAffinity | None:
    if rules.session_ttl_s is None:
        return None
    return SessionAffinity(
        rules.session_ttl_s, rules.is_affinity_hard, rules.max_sessions, rules.router_id, rules.first_sequence
    )
