"""Runs the text scenarios of `tests/scenarios`: commands, `----`, then what the router is expected to say.

    router --router-mode=kv               a new router with these flags; it starts with nothing known. Indented lines
                                          that follow are its --router-policy-config
    replica r2                            another router with the same flags; the first is r1. `kill r2`
    restart                               the first router comes back with nothing known; warm=1, with its snapshot
    workers w1 w2 model=m                 discovery: these workers, each with an endpoint and a card as below
    instance w1 ns/backend/generate       discovery: worker 1 serves this endpoint; `gone instance w1 ...` undoes it
    card w1 ns/backend/generate model=m   discovery: ... and this model; `gone card w1 ...` undoes it
          aliases=a,b type=decode needs=prefill+encode|aggregated context=4096 lora=slug
          ranks=2 blocks=1000 batch=1000 taints=a,b block_size=4 weights=overlap_score_credit:0.5
    entry instances KEY VALUE             discovery: a raw value
    hello a0 life=1 over=p1 at=r1         acceptor a0, in its first life, over connection p1, to the router r1
          active=7:w1,8:w1:a.b            what it holds: requests, where, and perhaps of which prompt, all
                                          with the wishes that a place may have
    place a0 7 m pin=w1 not=w2,w3 over=p1 request 7 wants model m; with card=w1, for w1's card; then `free a0 7`
          prompt=a.b.c tokens=40 rank=1   its prompt, a name per block; tokens unless the blocks are full
          session=s final=1 jump=5 strict=1 class=gold allow=w1,w2 osl=100 taints=gpu likes=fast:1
          override=router_temperature:1   weights of its own
          receipt=1                       print why
    prefilled a0 7, grown a0 7 2          its first token has come; its output fills two more blocks
    stored w1 a.b.c rank=0 tier=disk      a KV event: w1 holds the blocks of this prompt, the last of them
    stored w1 a.b.c from=b                ... only from block b on are new
    removed w1 a.b.c                      ... lets the last block of this prompt go; `cleared w1`. lost=1: unheard
    source w1 rank=0                      discovery: w1 can be asked for events that were missed
    report w1 decode=5 used=7 prefill=100 rank=0  the worker says how busy it is
    explain a0 7 m ...                    as place, without placing: prints every candidate
    thresholds a0 1 m decode=0.5 prefill=100 frac=0.5 replace=1, or none to read
    failed a0 w1, heartbeat a0, goodbye a0
    lost p1                               the connection is gone
    at 12.5                               time passes, the routers tick
    policy_takes 5                        so many milliseconds lasts a call of the operator's own policy
    load                                  prints active requests per worker and what each acceptor holds
    loads at=r1                           prints prefill tokens, blocks and requests per rank
    queue, index, sessions, policy        print how many wait, what is indexed, who is bound, how the policy did

Answers to the peer that spoke follow `<-`; a change of the table that all are told is printed after its command.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from dynamo.router.core import Router
from dynamo.shared.discovery import CARDS, INSTANCES, Deleted, Put, key_of
from dynamo.shared.kv_events import LoadReport, RouterEvent
from dynamo.shared.messages import (
    AcceptorMessage,
    ActiveRequest,
    Explain,
    Free,
    GetThresholds,
    Goodbye,
    Heartbeat,
    Hello,
    OutputGrown,
    Place,
    PrefillCompleted,
    RoutingHints,
    SetThresholds,
    Thresholds,
    WorkerFailed,
)
from dynamo.shared.protocol import RouterConfigOverride, RoutingConstraints
from tests.router.descriptions import describe, describe_delta
from tests.router.kv_rank import KvRank
from tests.router.prompts import packed_hashes
from tests.router.registrations import BLOCK_SIZE, card_value, instance_value, numbers_of
from tests.router.world import FIRST, World

BUCKETS = {"instance": INSTANCES, "card": CARDS, "instances": INSTANCES, "cards": CARDS}
ENDPOINT = "ns/backend/generate"
Options = dict[str, str]


def blocks(text: str) -> Iterator[tuple[list[str], str]]:
    """(commands, expected output) in order; `#` starts a comment line."""
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            end = lines.index("----") if "----" in lines else len(lines)
            yield lines[:end], "\n".join(lines[end + 1 :])


class Scenario:
    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.peers: dict[str, bytes] = {}  # acceptor -> its connection
        self.names: dict[bytes, str] = {}  # connection -> who has used it last
        self.homes: dict[str, str] = {}  # acceptor -> its router
        self.malformed: dict[str, str] = {}  # as printed
        self.output: list[str] = []

    def run(self, commands: list[str]) -> str:
        self.output = []
        for command, indented in _with_what_is_indented(commands):
            name, *words = command.split()
            if name == "router":
                self.world.start(words, indented)
            else:
                are_raw = name == "entry"
                plain = [word for word in words if are_raw or "=" not in word]
                options = {} if are_raw else dict(word.split("=", 1) for word in words if "=" in word)
                getattr(self, f"do_{name}")(plain, options)
            self._print_news(words[0] if words else "")
        return "\n".join(self.output)

    # ---- routers

    def do_replica(self, words: list[str], _options: Options) -> None:
        self.world.join(words[0])

    def do_kill(self, words: list[str], _options: Options) -> None:
        self.world.kill(words[0])

    def do_restart(self, _words: list[str], options: Options) -> None:
        self.world.restart(is_warm="warm" in options)

    # ---- discovery

    def do_workers(self, words: list[str], options: Options) -> None:
        for worker in words:
            self.do_instance([worker, ENDPOINT], options)
            self.do_card([worker, ENDPOINT], options)

    def do_instance(self, words: list[str], _options: Options) -> None:
        worker, endpoint = id_of(words[0]), words[1]
        self.world.discover(INSTANCES, [Put(f"{endpoint}/{worker:x}", instance_value(worker, endpoint))])

    def do_card(self, words: list[str], options: Options) -> None:
        worker, endpoint = id_of(words[0]), words[1]
        key = key_below(endpoint, worker, options)
        self.world.discover(CARDS, [Put(key, card_value(worker, endpoint, options))])

    def do_gone(self, words: list[str], options: Options) -> None:
        kind, worker, endpoint = words
        self.world.discover(BUCKETS[kind], [Deleted(key_below(endpoint, id_of(worker), options))])

    def do_entry(self, words: list[str], _options: Options) -> None:
        bucket, key, *value = words
        self.world.discover(BUCKETS[bucket], [Put(key, " ".join(value).encode())])

    # ---- acceptors

    def do_hello(self, words: list[str], options: Options) -> None:
        name = words[0]
        self.peers[name] = options.get("over", f"p-{name}").encode()
        self.homes[name] = options.get("at", FIRST)
        active = [_active(text, _hints(options)) for text in options.get("active", "").split(",") if text]
        self._say(name, Hello(name, int(options.get("life", 1)), active))

    def do_place(self, words: list[str], options: Options) -> None:
        self._say(words[0], self._place(words, options), options.get("over"))

    def do_explain(self, words: list[str], options: Options) -> None:
        self._say(words[0], Explain(self._place(words, options)))

    def _place(self, words: list[str], options: Options) -> Place:
        acceptor, request_id, model = words
        hashes = packed_hashes(options.get("prompt", ""))
        return Place(
            int(request_id),
            model,
            int(options.get("tokens", len(hashes) // 8 * BLOCK_SIZE or 100)),
            hashes,
            excluded=[id_of(name) for name in options.get("not", "").split(",") if name],
            instance_id=id_of(options["pin"]) if "pin" in options else None,
            dp_rank=int(options["rank"]) if "rank" in options else None,
            mdcsum=self._mdcsum_of(id_of(options["card"])) if "card" in options else "",
            label=f"{acceptor}-{request_id}",
            hints=_hints(options),
        )

    def _mdcsum_of(self, instance_id: int) -> str:
        sets = self.world.first.table.sets.values()
        return next(live.registered[instance_id].mdcsum for live in sets if instance_id in live.registered)

    def do_free(self, words: list[str], _options: Options) -> None:
        self._say(words[0], Free(int(words[1])))

    def do_failed(self, words: list[str], _options: Options) -> None:
        self._say(words[0], WorkerFailed(id_of(words[1]), "no answer"))

    def do_prefilled(self, words: list[str], _options: Options) -> None:
        self._say(words[0], PrefillCompleted(int(words[1])))

    def do_grown(self, words: list[str], _options: Options) -> None:
        self._say(words[0], OutputGrown(int(words[1]), int(words[2])))

    def do_thresholds(self, words: list[str], options: Options) -> None:
        acceptor, request_id, *models = words
        if not options:
            self._say(acceptor, GetThresholds(int(request_id), *models))
            return
        wanted = Thresholds(
            models[0],
            float(options["decode"]) if "decode" in options else None,
            int(options["prefill"]) if "prefill" in options else None,
            float(options["frac"]) if "frac" in options else None,
        )
        self._say(acceptor, SetThresholds(int(request_id), wanted, "replace" in options))

    def do_heartbeat(self, words: list[str], _options: Options) -> None:
        self._say(words[0], Heartbeat())

    def do_goodbye(self, words: list[str], _options: Options) -> None:
        self._say(words[0], Goodbye())

    def do_lost(self, words: list[str], _options: Options) -> None:
        for router in self.world.routers.values():
            router.forget(words[0].encode())

    def _say(self, acceptor: str, message: AcceptorMessage, over: str | None = None) -> None:
        peer = over.encode() if over else self.peers.setdefault(acceptor, f"p-{acceptor}".encode())
        self.names[peer] = acceptor
        router = self.world.routers[self.homes.get(acceptor, FIRST)]
        router.receive(peer, [message], self.world.now)

    # ---- workers

    def do_stored(self, words: list[str], options: Options) -> None:
        rank = self._rank(words, options)
        self._publish(rank, rank.stored(words[1], options.get("from", ""), options.get("tier", "device")), options)

    def do_removed(self, words: list[str], options: Options) -> None:
        rank = self._rank(words, options)
        self._publish(rank, rank.removed(words[1], options.get("tier", "device")), options)

    def do_cleared(self, words: list[str], options: Options) -> None:
        rank = self._rank(words, options)
        self._publish(rank, rank.cleared(), options)

    def do_source(self, words: list[str], options: Options) -> None:
        self.world.announce(self._rank(words, options))

    def _rank(self, words: list[str], options: Options) -> KvRank:
        return self.world.rank(id_of(words[0]), int(options.get("rank", 0)))

    def _publish(self, rank: KvRank, event: RouterEvent, options: Options) -> None:
        if "lost" not in options:
            self.world.publish(rank, event)

    def do_report(self, words: list[str], options: Options) -> None:
        report = LoadReport(
            id_of(words[0]),
            int(options.get("rank", 0)),
            active_decode_blocks=int(options["decode"]) if "decode" in options else None,
            active_prefill_tokens=int(options["prefill"]) if "prefill" in options else None,
            kv_used_blocks=int(options["used"]) if "used" in options else None,
        )
        self.world.report(report)

    # ---- time

    def do_at(self, words: list[str], _options: Options) -> None:
        self.world.wait_until(float(words[0]))

    def do_policy_takes(self, words: list[str], _options: Options) -> None:
        self.world.policy_takes_s = float(words[0]) / 1000

    # ---- a look inside

    def do_load(self, _words: list[str], _options: Options) -> None:
        acceptors = self.world.first.acceptors
        counts = sorted(acceptors.num_active.items())
        self.output.append("load: " + (" ".join(f"w{worker}={count}" for worker, count in counts) or "none"))
        for acceptor in acceptors.by_peer.values():
            self.output.append(f"  {acceptor.name}: {' '.join(map(str, sorted(acceptor.active))) or 'nothing'}")

    def do_loads(self, _words: list[str], options: Options) -> None:
        fleet = self.world.routers[options.get("at", FIRST)].fleet
        sequences = fleet.sequences
        for slot, rank in fleet.ranks:
            self.output.append(
                f"w{rank.instance_id} rank {rank.dp_rank}: {sequences.prefill_tokens[slot]} tokens to prefill, "
                f"{sequences.blocks[slot]:g} blocks, {sequences.num_requests[slot]} requests"
            )

    def do_queue(self, _words: list[str], _options: Options) -> None:
        queue = self.world.first.queue
        for name, depth in queue.depths().items():
            self.output.append(
                f"{name}: {depth.requests} requests wait, {depth.raw_isl_tokens} tokens, {depth.cached_tokens} cached"
            )
        for (name, reason), count in queue.take_rejections().items():
            self.output.append(f"{name}: {count} refused for {reason}")

    def do_index(self, _words: list[str], options: Options) -> None:
        index = self.world.routers[options.get("at", FIRST)].fleet.index
        assert index is not None
        self.output.append(
            f"{index.num_blocks} blocks, held {index.num_holdings} times; {index.num_orphans} wait for their parent; "
            f"{index.num_unknown_parents} unknown parents, {index.num_unknown_removals} unknown removals, "
            f"{index.num_evicted} evicted"
        )

    def do_sessions(self, _words: list[str], options: Options) -> None:
        affinity = self.world.routers[options.get("at", FIRST)].affinity
        assert affinity is not None
        for binding in affinity.snapshot():
            model, session = binding.session_id.splitlines()
            rank = f" rank {binding.dp_rank}" if binding.dp_rank else ""
            self.output.append(f"session {session} of {model}: w{binding.worker_id}{rank}")
        counts = affinity.take_counts()
        self.output.append(", ".join(f"{count} {event}" for event, count in counts.items()) or "nothing new")

    def do_policy(self, _words: list[str], _options: Options) -> None:
        runner = self.world.first.fleet.policy_for("aggregated")
        assert runner is not None
        counts = runner.take_outcomes()
        self.output.append(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "nothing new")

    # ---- what is said

    def _print_news(self, speaker: str) -> None:
        self.output += self.world.settle()
        for router in self.world.routers.values():
            self._print_answers(router, speaker)
        deltas = {name: router.take_delta() for name, router in self.world.routers.items()}
        if (delta := deltas[FIRST]) is not None:
            self.output += describe_delta(delta)
        before, self.malformed = self.malformed, dict(self.world.first.registrar.malformed)
        self.output += [f"malformed {key}: {why}" for key, why in self.malformed.items() if before.get(key) != why]
        self.output += [f"no longer malformed {key}" for key in before if key not in self.malformed]

    def _print_answers(self, router: Router, speaker: str) -> None:
        """Those to who spoke come first."""
        outgoing = router.take_outgoing()
        for peer in sorted(outgoing, key=lambda peer: self.names[peer] != speaker):
            self.output += [f"{self.names[peer]} <- {describe(answer)}" for answer in outgoing[peer]]


def _with_what_is_indented(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each command, and the indented lines behind it."""
    starts = [at for at, line in enumerate(lines) if not line.startswith(" ")]
    for at, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[at], "\n".join(lines[at + 1 : end])


def id_of(name: str) -> int:
    return int(name.removeprefix("w"))


def key_below(endpoint: str, worker: int, options: Options) -> str:
    namespace, component, name = endpoint.split("/")
    return key_of(namespace, component, name, worker, options.get("lora"))


def _active(text: str, hints: RoutingHints | None) -> ActiveRequest:
    request_id, worker, *prompts = text.split(":")
    hashes = packed_hashes("".join(prompts))
    num_tokens = len(hashes) // 8 * BLOCK_SIZE or 1
    return ActiveRequest(int(request_id), id_of(worker), num_tokens, block_hashes=hashes, hints=hints)


def _hints(options: Options) -> RoutingHints | None:
    hints = RoutingHints(
        priority_jump=float(options.get("jump", 0)),
        strict_priority=int(options.get("strict", 0)),
        policy_class=options.get("class", ""),
        expected_output_tokens=int(options["osl"]) if "osl" in options else None,
        session_id=options.get("session", ""),
        is_session_final="final" in options,
        allowed_worker_ids=[id_of(name) for name in options["allow"].split(",")] if "allow" in options else None,
        constraints=_constraints(options),
        router_config=_override(options["override"]) if "override" in options else None,
        wants_receipt="receipt" in options,
    )
    return hints if hints != RoutingHints() else None


def _override(text: str) -> RouterConfigOverride:
    """`name:1.5,other:false`."""
    return msgspec.convert(dict(pair.split(":") for pair in text.split(",")), RouterConfigOverride, strict=False)


def _constraints(options: Options) -> RoutingConstraints | None:
    if "taints" not in options and "likes" not in options:
        return None
    required = options["taints"].split(",") if "taints" in options else []
    return RoutingConstraints(required, numbers_of(options["likes"]) if "likes" in options else {})
