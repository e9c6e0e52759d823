"""Tells routers what one rank's KV cache holds. Call shapes are those of `dynamo.llm.KvEventPublisher`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from dynamo.shared.discovery import EVENT_SOURCES, DiscoveryError
from dynamo.shared.event_plane import Scope
from dynamo.shared.kv_events import (
    KV_EVENTS_TOPIC,
    EventSource,
    RecoveryAnswer,
    RecoveryQuery,
    RecoveryTarget,
    RouterEvent,
    SourceMetadata,
    Stored,
    WorkerRank,
    encode_events,
)
from dynamo.shared.request_plane.codec import BARE_CODECS
from dynamo.shared.runtime import Endpoint, RuntimeClosed
from dynamo.worker.engine_blocks import BlockHasher, EngineRemoved, EngineStored, unsigned
from dynamo.worker.engine_translator import EngineTranslator
from dynamo.worker.kv_batch import num_blocks_of
from dynamo.worker.kv_outbox import KvOutbox
from dynamo.worker.zmq_relay import EngineRelay

log = logging.getLogger("dynamo.kv_events")

DEVICE = "device"
MAX_BLOCKS_PER_MESSAGE = 4096  # which makes less than NATS' megabyte


class PublisherClosed(RuntimeError):
    """Events were given to a publisher that was shut down."""


class KvEventPublisher:
    """One per data-parallel rank. Make it inside the running loop; publish from any thread. It ends with the runtime.

    With `enable_local_indexer` routers can ask for events that they missed, or for all that the rank holds. With
    `kv_state_endpoint` (namespace.component.name) the blocks are filed under another endpoint than the one that serves.
    Events leave with the next tick of the loop, or after `batching_timeout_ms`. `image_token_id` and `video_token_id`
    are the tokens that stand for such objects in the engine's prompts.

    With `zmq_endpoint` nobody needs to publish: the engine's own events on that socket, vLLM's or SGLang's, are
    relayed, and those that were missed are asked for at `zmq_replay_endpoint`, where the engine has one.

    Raises ValueError for a block size of 0, and for endpoints that are no addresses.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        worker_id: int | None = None,
        kv_block_size: int = 0,
        dp_rank: int = 0,
        enable_local_indexer: bool = False,
        zmq_endpoint: str | None = None,
        zmq_topic: str | None = None,
        batching_timeout_ms: int | None = None,
        image_token_id: int | None = None,
        kv_state_endpoint: str | None = None,
        video_token_id: int | None = None,
        *,
        zmq_replay_endpoint: str | None = None,
    ) -> None:
        if kv_block_size < 1:
            raise ValueError(f"kv_block_size is {kv_block_size}; say how many tokens a block of the engine has")
        self._loop = asyncio.get_running_loop()
        self._runtime = endpoint.runtime
        self._state_endpoint = self._runtime.endpoint(kv_state_endpoint) if kv_state_endpoint else endpoint
        self._worker_id = worker_id
        self._dp_rank = dp_rank
        self._batching_s = (batching_timeout_ms or 0) / 1000
        self._is_open = False
        self._is_closed = False
        self._outbox = KvOutbox(dp_rank)
        placeholders = {token for token in (image_token_id, video_token_id) if token is not None}
        self._hasher = BlockHasher(kv_block_size, frozenset(placeholders))
        self.relay: EngineRelay | None = None
        if zmq_endpoint is not None:
            translator = EngineTranslator(self._hasher, dp_rank, self)
            self.relay = EngineRelay(zmq_endpoint, translator, zmq_topic or "", zmq_replay_endpoint)
        self._channel = self._runtime.event_publisher(self._state_endpoint.scope, KV_EVENTS_TOPIC)
        self._recovery = self._recovery_endpoint() if enable_local_indexer else None
        self._opening = self._loop.create_task(self._open())
        self._closing: asyncio.Task[None] | None = None
        self._runtime.on_close(self.close)

    def _recovery_endpoint(self) -> Endpoint:
        state = self._state_endpoint
        name = f"worker_kv_query_source_{self._channel.publisher_id:x}"
        return Endpoint(self._runtime, state.namespace, state.component, name)

    @property
    def num_dropped(self) -> int:
        """Events and messages that did not leave in time. Routers see the gap, and ask."""
        return self._outbox.num_dropped + self._channel.num_dropped

    # ---- for engines with hashes of their own

    def publish_stored(
        self,
        token_ids: list[int],
        num_block_tokens: list[int],
        block_hashes: list[int],
        parent_hash: int | None = None,
        block_mm_infos: list[dict[str, Any] | None] | None = None,
        lora_name: str | None = None,
        is_eagle: bool | None = None,
        cache_salt: str | None = None,
    ) -> None:
        """Consecutive blocks were filled. `block_hashes` are the engine's own, signed or unsigned 64 bits; with Eagle
        the token after the last block comes along. Raises ValueError, PublisherClosed."""
        stored = {
            "type": "stored",
            "token_ids": token_ids,
            "num_block_tokens": num_block_tokens,
            "block_hashes": block_hashes,
            "parent_hash": parent_hash,
            "block_mm_infos": block_mm_infos,
            "lora_name": lora_name,
            "is_eagle": is_eagle,
            "cache_salt": cache_salt,
        }
        self.publish_batch([stored])

    def publish_removed(self, block_hashes: list[int]) -> None:
        """Blocks are gone, each as often as it was stored. Raises ValueError, PublisherClosed."""
        self.publish_batch([{"type": "removed", "block_hashes": block_hashes}])

    def publish_batch(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Several events in order, all or none: dicts of the arguments above with the `type` stored or removed. Raises
        ValueError, PublisherClosed."""
        if self._is_closed:
            raise PublisherClosed("this KV event publisher was shut down")
        try:
            parsed = msgspec.convert(events, list[EngineStored | EngineRemoved])
        except msgspec.ValidationError as error:
            raise ValueError(f"invalid KV event batch: {error}") from None
        for change in [self._change_of(event) for event in parsed]:
            if isinstance(change, Stored):
                self.stored(change)
            else:
                self.removed(change)

    def _change_of(self, event: EngineStored | EngineRemoved) -> Stored | list[int]:
        if isinstance(event, EngineStored):
            return self._hasher.stored(event)
        return list(map(unsigned, event.block_hashes))

    # ---- for engines that hash as Dynamo does

    def stored(self, stored: Stored, tier: str = DEVICE) -> None:
        if stored.blocks and self._outbox.stored(tier, stored):
            self._wake()

    def removed(self, block_hashes: list[int], tier: str = DEVICE) -> None:
        if block_hashes and self._outbox.removed(tier, block_hashes):
            self._wake()

    def cleared(self) -> None:
        """The rank holds nothing any more, on no tier."""
        if self._outbox.cleared():
            self._wake()

    def shutdown(self) -> None:
        """Leave discovery; returns at once, and takes no events any more."""
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._start_closing)

    async def close(self) -> None:
        """The same, and wait for it."""
        self._is_closed = True
        await asyncio.wait([self._start_closing()])

    # ---- in the loop

    def _wake(self) -> None:
        if not self._is_closed:
            self._loop.call_soon_threadsafe(self._send_soon)

    def _send_soon(self) -> None:
        if self._batching_s:
            self._loop.call_later(self._batching_s, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if self._is_open:
            for events in _messages(self._outbox.take()):
                self._channel.publish(encode_events(events))

    async def _open(self) -> None:
        try:
            await self._runtime.open()
            await self._announce(self._worker_id or self._runtime.instance_id)
        except RuntimeClosed:
            return
        except (DiscoveryError, OSError) as error:
            log.error("no KV events of rank %d are published, so routers guess what it holds: %s", self._dp_rank, error)
            return
        self._is_open = True
        self._send()

    async def _announce(self, worker_id: int) -> None:
        self._outbox.identify(worker_id)
        await self._channel.open()
        target = await self._serve_recovery(self._recovery) if self._recovery else None
        scope, publisher_id = self._state_endpoint.scope, self._channel.publisher_id
        metadata = SourceMetadata(scope, WorkerRank(worker_id, self._dp_rank), publisher_id, target)
        source = EventSource(Scope(endpoint=scope), KV_EVENTS_TOPIC, publisher_id, metadata)
        await self._runtime.publish(EVENT_SOURCES, self._channel.key, msgspec.json.encode(source))

    async def _serve_recovery(self, recovery: Endpoint) -> RecoveryTarget:
        await recovery.open(self._answer, codecs=BARE_CODECS)
        return RecoveryTarget(*msgspec.structs.astuple(recovery.instance))

    async def _answer(self, request: Any, _context: object) -> AsyncIterator[RecoveryAnswer]:
        try:
            query = msgspec.convert(request, RecoveryQuery)
        except msgspec.ValidationError as error:
            yield RecoveryAnswer(error=f"not a recovery query: {error}")
        else:
            yield await asyncio.to_thread(self._outbox.answer, query)

    def _start_closing(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        return self._closing

    async def _close(self) -> None:
        self._opening.cancel()
        await asyncio.wait([self._opening])
        if self.relay is not None:
            await self.relay.close()
        self._send()
        await self._runtime.withdraw(EVENT_SOURCES, self._channel.key)
        if self._recovery is not None:
            await self._recovery.unregister_endpoint_instance()
            self._recovery.refuse()
        await self._channel.close()


def _messages(events: Iterable[RouterEvent]) -> Iterator[list[RouterEvent]]:
    message: list[RouterEvent] = []
    num_blocks = 0
    for event in events:
        message.append(event)
        num_blocks += num_blocks_of(event.event.data)
        if num_blocks >= MAX_BLOCKS_PER_MESSAGE:
            yield message
            message, num_blocks = [], 0
    if message:
        yield message
