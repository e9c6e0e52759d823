"""The router without IO and without a clock: discovery changes and messages in, placements and table changes out.

Its owner says what time it is, delivers what `receive` returns to the peer that sent, and the deltas to all peers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dynamo.router.acceptors import Acceptors
from dynamo.router.admission import Admission, Profiles
from dynamo.router.class_queue import PolicyClass, QueueFull
from dynamo.router.event_sources import EventSources
from dynamo.router.fleet import Fleet
from dynamo.router.inquiries import Inquiries, placed, reason_of, receipt_of
from dynamo.router.overload import OverloadMonitor
from dynamo.router.placing import Placing, refused
from dynamo.router.queue import PlacementQueue, Waiting
from dynamo.router.registrar import Registrar
from dynamo.router.remote_load import RemoteLoad, as_told
from dynamo.router.rules import Rules, make_affinity, make_index, make_predicted, make_replicas
from dynamo.router.running import Running
from dynamo.router.selectors import SELECTORS, Choice, Question
from dynamo.router.table import ModelTable
from dynamo.router.tally import Tallies
from dynamo.router.workers import Workers
from dynamo.shared.discovery import Change
from dynamo.shared.kv_events import LoadReport
from dynamo.shared.messages import (
    AcceptorMessage,
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
    ThresholdsAre,
    Welcome,
    WorkerFailed,
)

if TYPE_CHECKING:
    from dynamo.router.policies import PolicyRunner  # with numpy

log = logging.getLogger("dynamo.router")

FAILED = "The router hit an internal error; its log has the details."
WAITED_TOO_LONG = "The request has waited too long for a worker with room."
SAY_HELLO = TableDelta(0)  # no table has the version before 0, so whoever gets this asks for the whole table

OnDecision = Callable[[Question, Choice, str, list[Candidate], float], None]
"""(question, choice, reason, what was compared, seconds in the queue)"""


class Router:
    """`policies` are the operator's own ways to choose, by worker type; `on_decision` is told of every placement.
    `clock` counts the seconds that matching takes, and nothing is decided by it."""

    def __init__(
        self,
        rules: Rules,
        rng: random.Random,
        *,
        policies: Mapping[str, PolicyRunner] | None = None,
        on_decision: OnDecision | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.rules = rules
        self.acceptors = Acceptors(rules.max_acceptors, rules.max_active_per_acceptor, self._on_freed, self._on_left)
        self.fleet = Fleet(
            rng,
            self.acceptors.num_active,
            rules.weights,
            make_index(rules),
            make_predicted(rules),
            role_weights=rules.role_weights,
            policies=policies,
            clock=clock,
        )
        self.sources = _sources(self.fleet, rules)
        self.table = ModelTable(lambda: SELECTORS[rules.router_mode](self.fleet))
        self.overload = OverloadMonitor(self.fleet.sequences, rules.thresholds)
        self.affinity = make_affinity(rules)
        self.remote = RemoteLoad(self.table, self.fleet, self.overload, self.affinity)
        self.replicas = make_replicas(rules, self.remote)
        self.registrar = Registrar(rules, self.table)
        self.workers = Workers(self.table, self.fleet, self.overload, self.sources, self.affinity)
        self.placing = Placing(self.table, self.fleet, self.overload, self.affinity, rng, weighs_cost=rules.is_kv)
        self.placing.has_enough_workers = rules.min_initial_workers <= 0
        profiles = Profiles(rules.policy_class, rules.policy_file)
        self.queue = PlacementQueue(profiles.classes, rules.overlap_refresh_after_s)
        self.admission = Admission(profiles, self.queue, self.placing, self.fleet)
        self.running = Running(self.table, self.fleet, self.queue, self.affinity, self.replicas)
        self.inquiries = Inquiries(self.table, self.fleet, self.placing, self.admission, self.overload)
        self.tallies = Tallies()
        self.num_placed = 0
        self.num_turned_away = 0
        self._on_decision = on_decision
        self._now = 0.0  # of the last call that told the time
        self._outcomes: dict[str, int] = {}  # of placements since somebody asked
        self._outgoing: dict[bytes, list[RouterMessage]] = {}
        self._has_room = False  # something ended since the queue was looked at
        self.running.tracks_load = self._tracks_load

    # ---- discovery

    def discover(self, bucket: str, changes: Iterable[Change], now: float = 0.0) -> None:
        """Apply a batch of `v1/instances` or `v1/mdc`; `take_delta` then says what it meant."""
        self._now = max(self._now, now)
        self.workers.settle(self.registrar.apply(bucket, changes), self._now)
        self.placing.has_enough_workers |= len(self.table.workers) >= self.rules.min_initial_workers
        self._has_room = True

    def take_delta(self) -> TableDelta | None:
        return self.table.take_delta()

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
            if isinstance(message, Hello):
                is_stranger = False  # even when turned away: it must not be asked to knock again at once
            self._receive_one(peer, message, now)
            if isinstance(message, Goodbye):
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
        if (acceptor := self.acceptors.by_peer.get(peer)) is not None:
            self.acceptors.leave(acceptor)
        else:
            self.queue.remove_peer(peer)

    def tick(self, now: float) -> None:
        self._now = now
        self.acceptors.expire(now - self.rules.acceptor_expiry_s)
        self.table.end_inhibitions(now)
        if self.affinity is not None:
            self.affinity.expire(now)
        if self.fleet.predicted is not None:
            self.fleet.predicted.expire(now)
        for waiting in self.queue.expire(now):
            self._refuse(waiting.key[0], refused(waiting.place, "queue_full", WAITED_TOO_LONG))
        self.admission.refresh(now)
        self.workers.tick(now)
        self._has_room = True  # a worker may have become healthy, or its reported load less
        self._serve_queue(now)

    def take_outcomes(self) -> dict[str, int]:
        """How often a placement request ended as "placed" or with which refusal, since the last call."""
        outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def drop_counts(self) -> None:
        """Nobody asks for what was counted."""
        self.take_outcomes()
        self.tallies.take()
        self.tallies.take_waits()
        self.acceptors.take_ended()

    def _receive_one(self, peer: bytes, message: AcceptorMessage, now: float) -> None:
        """A bug that one message meets is not to cost the others of its batch."""
        try:
            self._handle(peer, message, now)
        except Exception:  # top of a request
            log.exception("could not handle a message of kind %s", type(message).__name__)
            match message:
                case Place():
                    self._refuse(peer, refused(message, "internal_error", FAILED))
                case Explain():
                    self._say(peer, refused(message.place, "internal_error", FAILED))

    def _handle(self, peer: bytes, message: AcceptorMessage, now: float) -> None:
        match message:
            case Place():
                self._place(peer, message, now)
            case Free():
                self._free(peer, message.request_id)
            case PrefillCompleted():
                self._has_room |= self.running.complete_prefill((peer, message.request_id))
            case OutputGrown():
                self.running.grow_output((peer, message.request_id), message.num_blocks)
            case Hello():
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
            if self.acceptors.resume(acceptor, active.request_id, active.instance_id):
                live = self.table.home_of(active.instance_id)
                self.running.resume(peer, active, self.admission.class_resumed(live, active.hints), now)
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
        return self.rules.is_kv or self.overload.is_watching or self.admission.is_queueing

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
        policy_class = self.admission.class_of(question)
        if self.admission.must_wait(question, policy_class):
            self._enqueue(peer, question, policy_class)
        else:
            self._start(peer, question, policy_class, 0.0)

    def _enqueue(self, peer: bytes, question: Question, policy_class: PolicyClass) -> None:
        try:
            self.admission.enqueue(peer, question, policy_class)
        except QueueFull as error:
            self.tallies.of(question.live).note_turned_away(policy_class.name, error.reason)
            self._refuse(peer, refused(question.place, "queue_full", str(error)))
        else:
            self._say(peer, Queued(question.place.request_id))

    def _start(self, peer: bytes, question: Question, policy_class: PolicyClass, waited_s: float) -> None:
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
            self.running.begin(peer, question, choice, policy_class)
        reason = reason_of(question, choice)
        if self._on_decision is not None:
            self._on_decision(question, choice, reason, compared, waited_s)
        self._count("placed")
        self.num_placed += 1
        self.tallies.of(question.live).note_placed(choice, reason)
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
        self._has_room |= self.running.end((peer, request_id), self._now)

    def _on_left(self, peer: bytes) -> None:
        self.queue.remove_peer(peer)

    def _serve_queue(self, now: float) -> None:
        if not self._has_room:
            return
        self._has_room = False
        for waiting, question in self.admission.startable(now):
            peer, _request_id = waiting.key
            if isinstance(question, Refused):
                self._refuse(peer, question)
            else:
                self._start_waiting(peer, waiting, question, now)

    def _start_waiting(self, peer: bytes, waiting: Waiting, question: Question, now: float) -> None:
        """A bug that one of them meets is not to cost those behind it."""
        waited_s = now - waiting.arrived_at
        self.tallies.note_waited(waiting.policy_class, waited_s)
        try:
            self._start(peer, question, self.admission.class_named(waiting.policy_class), waited_s)
        except Exception:  # top of a request
            log.exception("could not place a request that had waited")
            self._refuse(peer, refused(waiting.place, "internal_error", FAILED))

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
            self._announce()
        self._has_room = True

    def _announce(self) -> None:
        self.running.tracks_load = self._tracks_load
        for each in self.acceptors.by_peer:
            self._say(each, self.settings)

    # ---- replicas

    def heard_replicas(self, now: float) -> None:
        """After `replicas` was fed: what it means for who waits here, and for what acceptors are to tell."""
        self._now = now
        self._has_room = True
        if self.remote.has_new_thresholds:
            self.remote.has_new_thresholds = False
            self._announce()
        self._serve_queue(now)

    def _tell_bindings(self) -> None:
        if self.replicas is None or self.affinity is None:
            return
        for binding in self.affinity.take_changes():
            if (scope := self.remote.scope_of(binding.worker_id)) is not None:
                self.replicas.bound(scope, as_told(binding))


def _sources(fleet: Fleet, rules: Rules) -> EventSources | None:
    if fleet.index is None:
        return None
    return EventSources(fleet.index, fleet.ranks.slot_of, is_durable=rules.has_durable_events)
