"""The router's shell: sockets, discovery watches and the clock around the core."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo.router.config import RouterConfig
from dynamo.router.core import Router
from dynamo.router.decisions import DecisionLog
from dynamo.router.intake import Intake
from dynamo.router.local_acceptor import LOCAL_PEER
from dynamo.router.metric_parts import Parts
from dynamo.router.metrics import RouterMetrics
from dynamo.router.metrics_server import Health
from dynamo.router.policy_config import ROLES
from dynamo.router.replica_link import ReplicaLink
from dynamo.shared.channel import RouterChannel
from dynamo.shared.config import ConfigError
from dynamo.shared.discovery import CARDS, INSTANCES, Change, Discovery, DiscoveryError
from dynamo.shared.messages import AcceptorMessage, RouterMessage, TableDelta
from dynamo.shared.metrics import Registry
from dynamo.shared.nats import NatsConnection

if TYPE_CHECKING:
    from dynamo.router.endpoint_service import EndpointService
    from dynamo.router.policies import PolicyRunner

log = logging.getLogger("dynamo.router")

TICK_S = 1.0
MIB = 1 << 20


class RouterServer:
    """Serves one `bind` address; made and used inside the running loop. Metrics are saved where somebody looks."""

    def __init__(self, config: RouterConfig, discovery: Discovery, metrics_directory: Path | None = None) -> None:
        self._decisions = _decision_log(config)
        self._core = Router(
            config.rules,
            random.Random(config.random_seed),
            policies=_policies(config),
            on_decision=self._decisions.note if self._decisions is not None else None,
            clock=time.perf_counter,
        )
        self._bind = config.bind
        self._discovery = discovery
        self._loop = asyncio.get_running_loop()
        self._nats = NatsConnection()
        self._intake = Intake(config, self._core, discovery, self._nats)
        self._link = self._replica_link(config)
        self._endpoints = self._endpoint_service(config)
        self._channel: RouterChannel | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_publishing = False
        self._metrics = None if metrics_directory is None else _metrics(config, metrics_directory)

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Until cancelled. The socket opens after discovery's first snapshots are in: nobody is ever told of an empty
        table by a router that has only just started."""
        watches = {bucket: aiter(self._discovery.watch(bucket)) for bucket in (INSTANCES, CARDS)}
        try:
            await self._intake.restore()
            for bucket, watch in watches.items():
                self._core.discover(bucket, await anext(watch), self._loop.time())
            await self._intake.open()
            self._publish()
            self._channel = RouterChannel(self._bind, on_messages=self._on_messages, on_lost=self._core.forget)
            log.info("routing to %d workers, at %s", len(self._core.table.workers), self._channel.address)
            self._tick()
            if self._endpoints is not None:
                await self._endpoints.open()
            on_ready()
            await self._follow_all(watches)
        finally:
            await self._close()

    def health(self) -> Health:
        return Health("starting" if self._timer is None else "ready", len(self._core.table.workers))

    async def _follow_all(self, watches: dict[str, AsyncIterator[list[Change]]]) -> None:
        following = [self._follow(bucket, watch) for bucket, watch in watches.items()]
        if self._link is not None:
            following.append(self._link.serve())
        await asyncio.gather(self._intake.follow(), *following)

    async def _follow(self, bucket: str, watch: AsyncIterator[list[Change]]) -> None:
        async for changes in watch:
            self._core.discover(bucket, changes, self._loop.time())
            if not self._is_publishing:
                self._is_publishing = True
                self._loop.call_soon(self._publish)
        raise DiscoveryError(f"the watch of {bucket} ended by itself; restart the router")

    def _replica_link(self, config: RouterConfig) -> ReplicaLink | None:
        if self._core.replicas is None:
            return None
        return ReplicaLink(self._core.replicas, self._discovery, config.event_plane, self._on_replicas, nats=self._nats)

    def _endpoint_service(self, config: RouterConfig) -> EndpointService | None:
        if config.endpoint is None:
            return None
        from dynamo.router.endpoint_service import EndpointService  # with numpy

        return EndpointService(config, self._core, self._on_messages)

    def _on_replicas(self) -> None:
        self._core.heard_replicas(self._loop.time())
        self._send_outgoing()

    async def _close(self) -> None:
        if self._endpoints is not None:
            await self._endpoints.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._channel is not None:
            self._channel.close()
        if self._decisions is not None:
            self._decisions.close()
        self.save_metrics()
        if self._link is not None:
            await self._link.close()
        await self._intake.close()
        await self._nats.close()

    def _on_messages(self, peer: bytes, messages: list[AcceptorMessage]) -> None:
        assert self._channel is not None
        started, num_placed = time.perf_counter(), self._core.num_placed
        self._core.receive(peer, messages, self._loop.time())
        if self._metrics is not None:
            self._metrics.note_batch(time.perf_counter() - started, self._core.num_placed - num_placed)
        self._send_outgoing()
        if self._link is not None:
            self._link.flush_soon()

    def _send_outgoing(self) -> None:
        if self._channel is not None:
            for peer, messages in self._core.take_outgoing().items():
                self._say(peer, messages)

    def _say(self, peer: bytes, messages: Sequence[RouterMessage]) -> None:
        assert self._channel is not None
        if self._endpoints is not None and peer == LOCAL_PEER:
            self._endpoints.hear(messages)
        else:
            self._channel.send(peer, messages)

    def _publish(self) -> None:
        """One delta for all that changed in this tick of the loop."""
        self._is_publishing = False
        if self._link is not None:
            self._link.follow({live.scope for live in self._core.table.sets.values()})
        delta = self._core.take_delta()
        if delta is None:
            return
        _log_change(delta)
        for peer in self._core.acceptors.by_peer:
            self._say(peer, [delta])

    def _tick(self) -> None:
        assert self._channel is not None
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._core.tick(self._loop.time())
        self._intake.tick()
        self._send_outgoing()
        for peer in tuple(self._core.acceptors.by_peer):
            self._say(peer, ())
        if self._decisions is not None:
            self._decisions.flush()
        self.save_metrics()

    def save_metrics(self) -> None:
        if self._metrics is None:
            self._core.drop_counts()
            return
        self._metrics.save(
            Parts(self._core, self._intake, self._nats, self._link, self._channel, self._endpoints, self._decisions)
        )


def _metrics(config: RouterConfig, directory: Path) -> RouterMetrics:
    return RouterMetrics(Registry(directory, "router"), config.metrics_prefix, config.replica or secrets.token_hex(8))


def _decision_log(config: RouterConfig) -> DecisionLog | None:
    if config.router_decision_log is None:
        return None
    try:
        return DecisionLog(Path(config.router_decision_log), int(config.router_decision_log_max_mb * MIB))
    except OSError as error:
        raise ConfigError(f"--router-decision-log {config.router_decision_log}: {error.strerror or error}") from error


def _policies(config: RouterConfig) -> dict[str, PolicyRunner]:
    """The operator's own, by worker type. Raises ConfigError for one that cannot be loaded."""
    wanted = {role: _wanted_policy(config, role) for role in ROLES}
    own = {role: policy for role, policy in wanted.items() if policy is not None}
    if not own:
        return {}
    if config.mode != "kv":
        raise ConfigError(f"a routing policy chooses among costs: it needs --router-mode kv, not {config.mode}")
    from dynamo.router.policies import PolicyRunner, load_policy  # with numpy

    budget_ms, is_shadow = config.router_policy_budget_ms, config.router_policy_shadow
    return {
        role: PolicyRunner(load_policy(*policy), budget_ms, is_shadow, clock=time.perf_counter, name=policy[0])
        for role, policy in own.items()
    }


def _wanted_policy(config: RouterConfig, role: str) -> tuple[str, dict[str, Any]] | None:
    """Name and parameters."""
    if config.router_policy is not None:
        return config.router_policy, {}
    selection = config.selection(role)
    return None if selection is None or selection.is_built_in else (selection.type, selection.parameters)


def _log_change(delta: TableDelta) -> None:
    for worker in delta.workers_up:
        log.info("worker %x is up at %s", worker.instance_id, worker.address or worker.nats_subject)
    for instance_id in delta.workers_down:
        log.info("worker %x is gone", instance_id)
    for worker_set in delta.sets_up:
        log.info("worker set %s has %d members", worker_set.key, len(worker_set.members))
    for key in delta.sets_down:
        log.info("worker set %s is gone", key)
