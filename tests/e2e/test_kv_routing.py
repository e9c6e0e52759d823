"""Prompts go where their beginnings are cached: the whole product, with mock workers of ours."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.kv_gateway import KvGateway, Routed, prompt_of
from tests.support.mock_worker import MockWorker
from tests.support.nats import NatsServer
from tests.support.prompt_tree import ask_and_wait, prompt_of_tree
from tests.support.waiting import wait_until

BLOCK_SIZE = 16
NUM_RANKS = 4
NUM_CLIENTS = 6
NUM_CONVERSATIONS = 24
NUM_TURNS = 8
TURN = 6 * BLOCK_SIZE + 3  # tokens that each turn adds
SMALL = 80  # blocks of a cache
NUM_CHURN = 300  # requests


@contextmanager
def gateway(
    directory: Path, *flags: str, worker_flags: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
) -> Iterator[KvGateway]:
    """With one worker of several ranks."""
    environment = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": os.fspath(directory / "store"),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        **(variables or {}),
    }
    worker_flags = (
        "--speedup-ratio=0",
        f"--block-size={BLOCK_SIZE}",
        f"--data-parallel-size={NUM_RANKS}",
        *worker_flags,
    )
    with (
        MockWorker(*worker_flags, environment=environment),
        KvGateway("--discovery-backend=file", *flags, model=MockWorker.model, environment=environment) as started,
    ):
        started.wait_until_it_has(NUM_RANKS)
        yield started
        assert started.complaints == []


@pytest.mark.parametrize("event_plane", ["zmq", "nats"])
def test_a_prompt_goes_to_the_rank_that_has_it(tmp_path: Path, event_plane: str) -> None:
    with NatsServer() as nats:
        variables = {"DYN_EVENT_PLANE": event_plane, "NATS_SERVER": nats.url}
        with gateway(tmp_path, variables=variables) as started:
            prompts = {rank: prompt_of(rank.dp_rank, 8005) for rank in started.ranks()}
            for rank, prompt in prompts.items():
                assert started.route(prompt, at=rank) == Routed(rank, "pinned", 0, 0)
                started.wait_until_held(prompt, rank, 500)
            for rank, prompt in prompts.items():
                assert started.route(prompt) == Routed(rank, "cost", 8000, 8000)


# ---- acceptors

CACHE_FIRST = ("--router-kv-overlap-score-credit=20", "--no-router-track-active-blocks")


def test_eight_acceptors_find_as_much_in_caches_as_one(tmp_path: Path) -> None:
    """All that was said before, turn by turn, whichever acceptor is asked: to the token."""
    cached = {}
    for num_acceptors in (1, 8):
        with gateway(tmp_path / str(num_acceptors), f"--workers={num_acceptors}") as started:
            cached[num_acceptors] = sum(next_turn(started, *turn) for turn in in_turns())
    assert cached == {1: ALL_CACHED, 8: ALL_CACHED}


def next_turn(gateway: KvGateway, conversation: int, turn: int) -> int:
    """Tokens found in the cache. Returns when the router has heard what was put there, and that it is over: acceptors
    say so a moment later, with other news."""
    prompt = prompt_at(conversation, turn)
    routed = gateway.route(prompt)
    gateway.wait_until_held(prompt, routed.rank, len(prompt) // BLOCK_SIZE)
    wait_until(partial(is_idle, gateway), "the end of the turn")
    return routed.cached


def is_idle(gateway: KvGateway) -> bool:
    return not any(one["load"]["requests"] for one in gateway.candidates([1, 2, 3]).values())


def test_eight_busy_acceptors_find_as_much_in_caches_as_one(tmp_path: Path) -> None:
    """Six conversations at a time, whose next turn may come before the router has heard of the one before. The cache
    counts so much here that no turn moves for the load of others, which is never the same twice."""
    for num_acceptors in (1, 8):
        with (
            gateway(tmp_path / str(num_acceptors), f"--workers={num_acceptors}", *CACHE_FIRST) as started,
            ThreadPoolExecutor(NUM_CLIENTS) as clients,
        ):
            cached = sum(clients.map(partial(talk, started), range(NUM_CONVERSATIONS)))
        assert cached > 0.95 * ALL_CACHED


def talk(gateway: KvGateway, conversation: int) -> int:
    """Tokens found in the cache by all turns of a conversation, each asked as soon as the one before is answered."""
    return sum(gateway.route(prompt_at(conversation, turn)).cached for turn in range(NUM_TURNS))


def prompt_at(conversation: int, turn: int) -> list[int]:
    return prompt_of(conversation, TURN * (turn + 1))


def in_turns() -> Iterator[tuple[int, int]]:
    """(conversation, turn): the first of all conversations, then the second of all."""
    return ((conversation, turn) for turn in range(NUM_TURNS) for conversation in range(NUM_CONVERSATIONS))


ALL_CACHED = NUM_CONVERSATIONS * sum(turn * TURN // BLOCK_SIZE * BLOCK_SIZE for turn in range(NUM_TURNS))


# ---- what is forgotten


def test_claims_and_truth_agree_while_ranks_evict(tmp_path: Path) -> None:
    """Caches that hold a fraction of all prompts: what the router expects of a rank, the rank finds."""
    with gateway(tmp_path, worker_flags=(f"--num-blocks={SMALL}",)) as started:
        draw = random.Random(3)
        prompts = [prompt_of_tree(draw) for _ in range(NUM_CHURN)]
        routed = [ask_and_wait(started, prompt) for prompt in prompts]
        assert {one.predicted - one.cached for one in routed} == {0}
        num_tokens, num_cached = sum(map(len, prompts)), sum(one.cached for one in routed)
        assert num_cached > num_tokens // 4
        assert num_tokens - num_cached > 2 * NUM_RANKS * SMALL * BLOCK_SIZE  # more was computed than all can hold
        assert 0 < started.total("dynamo_router_index_holdings") <= NUM_RANKS * SMALL
