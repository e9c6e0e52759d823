"""Replica sync in the scope of one worker endpoint: what the other routers there tell us, and our own announcements."""

from __future__ import annotations

import logging

import msgspec

from dynamo.router.replica_announcer import Announcer
from dynamo.router.replica_host import ReplicaCounts, ReplicaHost, ReplicaLimits
from dynamo.router.replica_peer import Peer, Stamp
from dynamo.router.replica_thresholds import ThresholdBook
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.replica_events import (
    ACTIVE_SEQUENCES_TOPIC,
    AFFINITY_TOPIC,
    FREE,
    PREFILL_COMPLETED,
    REPLICA_TOPIC,
    ActiveSequenceEvent,
    Addition,
    AddRequest,
    AffinityBinding,
    Alive,
    AskSnapshot,
    Leaving,
    Predicted,
    ReplicaMessage,
    ReplicaUpdate,
    RunningRequest,
    SnapshotSlice,
    ThresholdsSet,
    VersionedThresholds,
    decode_active_sequences,
    decode_binding,
    decode_update,
    unpack_hashes,
)

log = logging.getLogger("dynamo.router")


class ReplicaGroup:
    def __init__(
        self,
        router_id: int,
        scope: EndpointScope,
        announcer: Announcer,
        host: ReplicaHost,
        book: ThresholdBook,
        limits: ReplicaLimits,
        counts: ReplicaCounts,
    ) -> None:
        self.announcer = announcer
        self.peers: dict[int, Peer] = {}
        self._router_id = router_id
        self._scope = scope
        self._host = host
        self._book = book
        self._limits = limits
        self._counts = counts
        self._said_alive_at: float | None = None
        self._snapshot_at: float | None = None
        self._is_snapshot_wanted = False

    def receive(self, envelope: Envelope, now: float) -> None:
        """A message of any of the topics; what cannot be read is counted."""
        try:
            if envelope.topic == ACTIVE_SEQUENCES_TOPIC:
                self._receive_events(envelope, decode_active_sequences(envelope.payload), now)
            elif envelope.topic == AFFINITY_TOPIC:
                self._learn_binding(decode_binding(envelope.payload), now)
            elif envelope.topic == REPLICA_TOPIC:
                self._receive_update(envelope, decode_update(envelope.payload), now)
        except msgspec.MsgspecError as error:
            self._note_malformed(envelope.topic, error)

    def _note_malformed(self, topic: str, error: Exception) -> None:
        self._counts.malformed += 1
        if self._counts.malformed == 1:
            log.warning("ignoring a message on %s: %s. Further ones are only counted", topic, error)

    def publisher_left(self, publisher_id: int) -> None:
        """Its channel is gone, so it is."""
        for peer in list(self.peers.values()):
            if peer.forget_publisher(publisher_id):
                self._forget(peer)

    def tick(self, now: float) -> None:
        if self._said_alive_at is None or now - self._said_alive_at >= self._limits.heartbeat_s:
            self._said_alive_at = now
            self.announcer.say_alive()
        for peer in list(self.peers.values()):
            self._look_after(peer, now)
        self._answer(now)

    def close(self) -> None:
        """The others are heard no longer."""
        for peer in self.peers.values():
            peer.forget()
        self.peers.clear()

    # ---- active sequences

    def _receive_events(self, envelope: Envelope, events: list[ActiveSequenceEvent], now: float) -> None:
        stamp = Stamp(envelope.publisher_id, envelope.sequence)
        followed: dict[Peer, bool] = {}
        for event in events:
            if event.router_id == event.worker.worker_id:
                self._hear_worker(event)
            elif (peer := self._peer(event.router_id, now)) is not None:
                if peer not in followed:
                    followed[peer] = peer.follow(*stamp)
                self._apply(peer, event, stamp, followed[peer], now)
        for peer in followed:
            peer.check()

    def _hear_worker(self, event: ActiveSequenceEvent) -> None:
        """Workers report their prefills to all, without saying whose request it is."""
        if event.data == PREFILL_COMPLETED:
            for peer in self.peers.values():
                peer.complete_prefill_at(event.worker, event.request_id)

    def _apply(self, peer: Peer, event: ActiveSequenceEvent, stamp: Stamp, is_in_order: bool, now: float) -> None:
        match event.data:
            case Addition(AddRequest() as added) if is_in_order:
                peer.add(_as_running(event, added), stamp, now)
            case Addition(AddRequest()):
                self._counts.late += 1
            case data if data == PREFILL_COMPLETED:
                peer.complete_prefill(event.request_id, stamp)
            case data if data == FREE:
                peer.free(event.request_id, stamp)
            case _:
                self._counts.malformed += 1

    # ---- everything else

    def _learn_binding(self, binding: AffinityBinding, now: float) -> None:
        if binding.writer_id != self._router_id:
            self._host.apply_binding(self._scope, binding, now)

    def _receive_update(self, envelope: Envelope, update: ReplicaUpdate, now: float) -> None:
        peer = self._peer(update.router_id, now)
        if peer is None or not peer.follow_messages(envelope.publisher_id, envelope.sequence):
            return
        for message in update.messages:
            self._hear(peer, message, now)
            if peer.router_id not in self.peers:
                return  # it has left, and that is its last word
        self._ask(peer, now)

    def _hear(self, peer: Peer, message: ReplicaMessage, now: float) -> None:
        match message:
            case Alive():
                peer.hear(message)
            case Predicted():
                self._host.apply_predicted(message.worker, message.block_hashes, now)
            case ThresholdsSet():
                self._learn_thresholds(message.versioned)
            case SnapshotSlice():
                if peer.collect(message, now):
                    self._learn(message, now)
            case AskSnapshot():
                if message.router_id == self._router_id:
                    self._is_snapshot_wanted = True
                    self._answer(now)
            case Leaving():
                self._forget(peer)

    def _learn(self, part: SnapshotSlice, now: float) -> None:
        for versioned in part.thresholds:
            self._learn_thresholds(versioned)
        for binding in part.bindings:
            self._learn_binding(binding, now)

    def _learn_thresholds(self, versioned: VersionedThresholds) -> None:
        try:
            self._book.learn(versioned)
        except ValueError as error:
            self._note_malformed(REPLICA_TOPIC, error)

    def _answer(self, now: float) -> None:
        """One snapshot for all who asked meanwhile."""
        is_too_early = self._snapshot_at is not None and now - self._snapshot_at < self._limits.heartbeat_s
        if self._is_snapshot_wanted and not is_too_early and not self.announcer.is_in_snapshot:
            self._is_snapshot_wanted = False
            self._snapshot_at = now
            self.announcer.start_snapshot(list(self._book), self._host.bindings(self._scope))

    # ---- peers

    def _peer(self, router_id: int, now: float) -> Peer | None:
        """None for ourselves, and for one too many."""
        if router_id == self._router_id:
            return None
        peer = self.peers.get(router_id)
        if peer is None:
            if len(self.peers) >= self._limits.max_peers:
                self._counts.peers_turned_away += 1
                return None
            peer = self.peers[router_id] = Peer(router_id, self._host, self._limits, self._counts)
        peer.heard_at = now
        return peer

    def _look_after(self, peer: Peer, now: float) -> None:
        peer.retry(now)
        if not peer.is_replica:
            peer.expire(now - self._limits.request_expiry_s)
        if self._is_gone(peer, now):
            self._forget(peer)
        else:
            self._ask(peer, now)

    def _ask(self, peer: Peer, now: float) -> None:
        if peer.must_ask(now):
            self.announcer.say(AskSnapshot(peer.router_id))

    def _forget(self, peer: Peer) -> None:
        peer.forget()
        del self.peers[peer.router_id]

    def _is_gone(self, peer: Peer, now: float) -> bool:
        silent_for = now - peer.heard_at
        if not peer.is_replica:
            return len(peer) == 0 and silent_for > self._limits.request_expiry_s
        if silent_for <= self._limits.silence_s:
            return False
        log.warning("replica %x is silent; forgetting its %d requests", peer.router_id, len(peer))
        self._counts.silent += 1
        return True


def _as_running(event: ActiveSequenceEvent, added: AddRequest) -> RunningRequest:
    return RunningRequest(
        event.request_id,
        event.worker,
        unpack_hashes(added.token_sequence),
        added.num_prefill_tokens,
        added.expected_output_tokens,
        event.lora_name,
    )
