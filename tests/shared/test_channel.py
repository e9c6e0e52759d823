from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import zmq

from dynamo.shared import channel
from dynamo.shared.channel import DealerChannel, RouterChannel
from dynamo.shared.messages import AcceptorMessage, Free, Heartbeat, Placed, RouterMessage, encode
from tests.support.waiting import PATIENCE_S, until


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/r"


class RouterEnd:
    """A router that keeps what it hears."""

    def __init__(self, address: str) -> None:
        self.batches: list[tuple[bytes, list[AcceptorMessage]]] = []
        self.lost: list[bytes] = []
        self.answer: Callable[[bytes, list[AcceptorMessage]], None] = lambda *_: None
        self.channel = RouterChannel(address, on_messages=self._on_messages, on_lost=self.lost.append)

    def _on_messages(self, identity: bytes, messages: list[AcceptorMessage]) -> None:
        self.batches.append((identity, messages))
        self.answer(identity, messages)


class DealerEnd:
    """An acceptor that keeps what it hears."""

    def __init__(self, address: str) -> None:
        self.messages: list[RouterMessage] = []
        self.changes: list[str] = []
        self.channel = DealerChannel(
            address,
            on_messages=self.messages.extend,
            on_connect=lambda: self.changes.append("connected"),
            on_disconnect=lambda: self.changes.append("disconnected"),
        )


@contextmanager
def router_end(address: str) -> Iterator[RouterEnd]:
    end = RouterEnd(address)
    yield end
    end.channel.close()


@asynccontextmanager
async def pair(address: str) -> AsyncIterator[tuple[RouterEnd, DealerEnd]]:
    with router_end(address) as router:
        dealer = DealerEnd(address)
        await until(lambda: dealer.channel.is_connected)
        yield router, dealer
        dealer.channel.close()


async def test_what_is_said_in_one_tick_travels_as_one_batch_in_order(address: str) -> None:
    async with pair(address) as (router, dealer):
        for request_id in range(100):
            assert dealer.channel.send(Free(request_id))
        await until(lambda: router.batches)
        ((identity, messages),) = router.batches
        assert messages == [Free(request_id) for request_id in range(100)]
        router.channel.send(identity, [Placed(1, 11, "s")])
        router.channel.send(identity, [Placed(2, 2**64 - 1, "s")])
        await until(lambda: dealer.messages)
        assert dealer.messages == [Placed(1, 11, "s"), Placed(2, 2**64 - 1, "s")]


async def test_no_wake_up_is_lost_under_mixed_traffic(address: str) -> None:
    """Each answer asks the next question, while unasked messages flow both ways: one lost edge would hang this."""
    async with pair(address) as (router, dealer):
        total = 5_000

        def answer(identity: bytes, messages: list[AcceptorMessage]) -> None:
            router.channel.send(identity, [Placed(m.request_id, 1, "s") for m in messages if isinstance(m, Free)])

        def ask(messages: list[RouterMessage]) -> None:
            dealer.messages.extend(messages)
            if len(dealer.messages) < total:
                dealer.channel.send(Free(len(dealer.messages)))

        router.answer = answer
        dealer.channel._on_messages = ask
        dealer.channel.send(Free(0))
        async with asyncio.timeout(PATIENCE_S):
            while len(dealer.messages) < total:
                dealer.channel.send(Heartbeat())
                await asyncio.sleep(0)


async def test_the_death_of_the_router_is_seen_and_its_return_too(address: str) -> None:
    with router_end(address):
        dealer = DealerEnd(address)
        assert not dealer.channel.send(Heartbeat())  # not connected yet
        await until(lambda: dealer.changes == ["connected"])
        assert dealer.channel.send(Heartbeat())
    await until(lambda: dealer.changes == ["connected", "disconnected"])
    assert not dealer.channel.send(Free(1))
    with router_end(address) as second:
        await until(lambda: dealer.changes == ["connected", "disconnected", "connected"])
        assert dealer.channel.send(Free(2))
        await until(lambda: second.batches)
        assert second.batches[0][1] == [Free(2)]  # nothing of what was said to the dead one
    dealer.channel.close()


async def test_a_vanished_acceptor_is_reported(address: str) -> None:
    async with pair(address) as (router, dealer):
        dealer.channel.send(Heartbeat())
        await until(lambda: router.batches)
        identity = router.batches[0][0]
        router.channel.send(identity, ())
        await asyncio.sleep(0.05)
        assert router.lost == []
        dealer.channel.close()

        def is_noticed() -> bool:
            router.channel.send(identity, ())
            return identity in router.lost

        await until(is_noticed)


async def test_the_last_words_before_closing_arrive(address: str) -> None:
    async with pair(address) as (router, dealer):
        dealer.channel.send(Free(9))
        dealer.channel.close()
        dealer.channel.close()
        await until(lambda: router.batches)
        assert router.batches[0][1] == [Free(9)]


async def test_foreign_messages_are_dropped_and_counted(address: str) -> None:
    async with pair(address) as (router, dealer):
        context = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.connect(address)
        stranger.send(b"GET / HTTP/1.1")
        stranger.send_multipart([encode([Heartbeat()]), b"and more"])
        stranger.send(encode([[99, 1]]))
        stranger.send(b"")
        stranger.send(encode([Free(3)]))
        await until(lambda: router.batches)
        assert router.batches[0][1] == [Free(3)]
        assert router.channel.num_malformed == 4
        router.channel.send(router.batches[0][0], [Placed(1, 1, "s")])
        dealer.channel.send(Free(4))
        await until(lambda: len(router.batches) == 2)
        context.destroy(linger=0)


async def test_an_acceptor_that_does_not_read_is_given_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "HIGH_WATER_MARK", 2)
    monkeypatch.setattr(channel, "MAX_PENDING", 5)
    with router_end(address) as router:
        context = zmq.Context()
        idle = context.socket(zmq.DEALER)
        idle.setsockopt(zmq.RCVHWM, 1)
        idle.connect(address)
        idle.send(encode([Heartbeat()]))
        await until(lambda: router.batches)
        identity = router.batches[0][0]

        def is_given_up() -> bool:
            router.channel.send(identity, [Placed(1, 1, "x" * 1_000_000)])
            return identity in router.lost

        await until(is_given_up)
        context.destroy(linger=0)


async def test_an_address_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"cannot listen on ipc://{tmp_path}/no/such"):
        RouterEnd(f"ipc://{tmp_path}/no/such")
