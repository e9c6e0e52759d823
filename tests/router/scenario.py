"""Runs the text scenarios of `tests/scenarios`: commands, `----`, then what the router is expected to say.

    rules mode=round-robin expiry=10      a new router; it starts at time 0 with nothing known
    instance w1 ns/backend/generate       discovery: worker 1 serves this endpoint; `gone instance w1 ...` undoes it
    card w1 ns/backend/generate model=m   discovery: ... and this model; `gone card w1 ...` undoes it
          aliases=a,b type=decode needs=prefill+encode|aggregated context=4096 lora=slug
    entry instances KEY VALUE             discovery: a raw value
    hello a0 life=1 over=p1 active=7:w1   acceptor a0, in its first life, over connection p1
    place a0 7 m pin=w1 not=w2,w3 over=p1 request 7 wants model m; with card=w1, for w1's card; then `free a0 7`
          prompt=a.b.c tokens=40 rank=1   its prompt, a name per block; tokens unless the blocks are full
          session=s final=1 jump=5 strict=1 class=gold allow=w1,w2 osl=100 needs=gpu likes=fast:1 temperature=1
          receipt=1                       print why
    prefilled a0 7, grown a0 7 2          its first token has come; its output fills two more blocks
    stored w1 a.b.c rank=0 tier=disk      a KV event: w1 holds the blocks of this prompt, the last of them
    stored w1 a.b.c from=b                ... only from block b on are new
    removed w1 a.b.c                      ... lets the last block of this prompt go; `cleared w1`
    report w1 decode=5 used=7 prefill=100 rank=0  the worker says how busy it is
    explain a0 7 m ...                    as place, without placing: prints every candidate
    thresholds a0 1 m decode=0.5 prefill=100 frac=0.5 replace=1, or none to read
    failed a0 w1, heartbeat a0, goodbye a0
    lost p1                               the connection is gone
    at 12.5                               time passes, the router ticks
    load                                  prints active requests per worker and what each acceptor holds
    loads                                 prints prefill tokens, blocks and requests per rank

Answers to the peer that spoke follow `<-`; a change of the table that all are told is printed after its command.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from xxhash import xxh3_64_intdigest

from dynamo.router.core import Router
from dynamo.router.rules import Rules
from dynamo.shared.discovery import CARDS, INSTANCES, Deleted, Put, key_of
from dynamo.shared.hashing import sequence_hashes
from dynamo.shared.kv_events import CLEARED, Change, KvEvent, LoadReport, Removed, RouterEvent, Stored, StoredBlock
from dynamo.shared.messages import (
    AcceptorMessage,
    ActiveRequest,
    Explain,
    Explained,
    Free,
    GetThresholds,
    Goodbye,
    Heartbeat,
    Hello,
    OutputGrown,
    Place,
    Placed,
    PrefillCompleted,
    Queued,
    Refused,
    RouterMessage,
    RoutingHints,
    SetThresholds,
    Settings,
    TableDelta,
    Thresholds,
    ThresholdsAre,
    Welcome,
    WorkerFailed,
    WorkerSet,
)
from dynamo.shared.protocol import RouterConfigOverride, RoutingConstraints

BUCKETS = {"instance": INSTANCES, "card": CARDS, "instances": INSTANCES, "cards": CARDS}
BLOCK_SIZE = 4
TIERS = {"host": "host_pinned"}
RULES: dict[str, tuple[str, Callable[[str], object]]] = {
    "mode": ("router_mode", str),
    "events": ("uses_kv_events", lambda text: text == "on"),
    "predicted": ("predicted_ttl_s", float),
    "sessions": ("session_ttl_s", float),
    "hard": ("is_affinity_hard", lambda text: text == "yes"),
    "output_blocks": ("tracks_output_blocks", lambda text: text == "on"),
    "block_size": ("kv_cache_block_size", int),
    "namespace": ("namespace", str),
    "prefix": ("namespace_prefix", str),
    "min_workers": ("min_initial_workers", int),
    "inhibited": ("inhibited_duration_s", float),
    "expiry": ("acceptor_expiry_s", float),
    "max_acceptors": ("max_acceptors", int),
    "max_active": ("max_active_per_acceptor", int),
    "max_entries": ("max_table_entries", int),
}


def blocks(text: str) -> Iterator[tuple[list[str], str]]:
    """(commands, expected output) in order; `#` starts a comment line."""
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            end = lines.index("----") if "----" in lines else len(lines)
            yield lines[:end], "\n".join(lines[end + 1 :])


def instance_value(instance_id: int, endpoint: str) -> bytes:
    namespace, component, name = endpoint.split("/")
    return msgspec.json.encode(
        {
            "type": "Endpoint",
            "namespace": namespace,
            "component": component,
            "endpoint": name,
            "instance_id": instance_id,
            "transport": {"tcp": f"127.0.0.1:{9000 + instance_id}/{instance_id:x}/{endpoint}"},
            "request_plane_codec": "msgpack",
        }
    )


def card_value(instance_id: int, endpoint: str, options: dict[str, str]) -> bytes:
    namespace, component, name = endpoint.split("/")
    card = {
        "display_name": options["model"],
        "slug": options["model"],
        "worker_type": options.get("type", "aggregated"),
        "needs": [each.split("+") for each in options["needs"].split("|")] if "needs" in options else [],
        "aliases": options["aliases"].split(",") if "aliases" in options else [],
        "runtime_config": {
            "context_length": int(options.get("context", 4096)),
            "data_parallel_size": int(options.get("ranks", 1)),
            "total_kv_blocks": int(options.get("blocks", 1000)),
            "max_num_batched_tokens": int(options.get("batch", 1000)),
            "taints": options["taints"].split(",") if "taints" in options else [],
        },
        "kv_cache_block_size": int(options.get("block_size", BLOCK_SIZE)),
    }
    if "weights" in options:
        card["router_config"] = {"kv_router_config": _numbers(options["weights"])}
    registration = {
        "type": "Model",
        "namespace": namespace,
        "component": component,
        "endpoint": name,
        "instance_id": instance_id,
        "card_json": card,
    }
    return msgspec.json.encode(registration | ({"model_suffix": options["lora"]} if "lora" in options else {}))


def _numbers(text: str) -> dict[str, float]:
    """`name:1.5,other:2` as a dict."""
    return {name: float(value) for name, value in (pair.split(":") for pair in text.split(","))}


def local_hash(name: str) -> int:
    return xxh3_64_intdigest(name.encode())


def engine_hash(prompt: str) -> int:
    """Of the last block of `a.b.c`: the engine's own name for it and all before."""
    return xxh3_64_intdigest(b"engine " + prompt.encode())


def packed_hashes(prompt: str) -> bytes:
    """Sequence hashes of the blocks of `a.b.c`."""
    hashes = sequence_hashes(local_hash(name) for name in prompt.split(".")) if prompt else []
    return b"".join(each.to_bytes(8, "little") for each in hashes)


def prefixes(prompt: str) -> list[str]:
    names = prompt.split(".")
    return [".".join(names[: i + 1]) for i in range(len(names))]


class Scenario:
    def __init__(self) -> None:
        self.now = 0.0
        self.router = Router(Rules(), random.Random(0))
        self.peers: dict[str, bytes] = {}  # acceptor -> its connection
        self.output: list[str] = []

    def run(self, commands: list[str]) -> str:
        self.output = []
        for command in commands:
            words = command.split()
            plain = [word for word in words[1:] if "=" not in word or words[0] == "entry"]
            options = dict(word.split("=", 1) for word in words[1:] if "=" in word and words[0] != "entry")
            getattr(self, f"do_{words[0]}")(plain, options)
            if (delta := self.router.take_delta()) is not None:
                self.output += describe_delta(delta)
        return "\n".join(self.output)

    # ---- commands

    def do_rules(self, _words: list[str], options: dict[str, str]) -> None:
        values = {RULES[name][0]: RULES[name][1](value) for name, value in options.items()}
        self.router = Router(msgspec.convert(values, Rules), random.Random(0))

    def do_instance(self, words: list[str], _options: dict[str, str]) -> None:
        worker, endpoint = id_of(words[0]), words[1]
        self.router.discover(INSTANCES, [Put(f"{endpoint}/{worker:x}", instance_value(worker, endpoint))])

    def do_card(self, words: list[str], options: dict[str, str]) -> None:
        worker, endpoint = id_of(words[0]), words[1]
        key = key_below(endpoint, worker, options)
        self.router.discover(CARDS, [Put(key, card_value(worker, endpoint, options))])

    def do_gone(self, words: list[str], options: dict[str, str]) -> None:
        kind, worker, endpoint = words
        self.router.discover(BUCKETS[kind], [Deleted(key_below(endpoint, id_of(worker), options))])

    def do_entry(self, words: list[str], _options: dict[str, str]) -> None:
        bucket, key, *value = words
        self.router.discover(BUCKETS[bucket], [Put(key, " ".join(value).encode())])
        self.output += [f"malformed {entry}: {reason}" for entry, reason in self.router.registrar.malformed.items()]

    def do_hello(self, words: list[str], options: dict[str, str]) -> None:
        pairs = [pair.split(":") for pair in options.get("active", "").split(",") if pair]
        active = [ActiveRequest(int(request_id), id_of(worker), 1) for request_id, worker in pairs]
        self.peers[words[0]] = options.get("over", f"p-{words[0]}").encode()
        self._say(words[0], Hello(words[0], int(options.get("life", 1)), active))

    def do_place(self, words: list[str], options: dict[str, str]) -> None:
        self._say(words[0], self._place(words, options), options.get("over"))

    def do_explain(self, words: list[str], options: dict[str, str]) -> None:
        self._say(words[0], Explain(self._place(words, options)))

    def _place(self, words: list[str], options: dict[str, str]) -> Place:
        _acceptor, request_id, model = words
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
            hints=_hints(options),
        )

    def _mdcsum_of(self, instance_id: int) -> str:
        registered = [live.registered for live in self.router.table.sets.values() if instance_id in live.registered]
        return registered[0][instance_id].mdcsum

    def do_free(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], Free(int(words[1])))

    def do_failed(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], WorkerFailed(id_of(words[1]), "no answer"))

    def do_prefilled(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], PrefillCompleted(int(words[1])))

    def do_grown(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], OutputGrown(int(words[1]), int(words[2])))

    def do_stored(self, words: list[str], options: dict[str, str]) -> None:
        worker, prompt = words
        known = prefixes(prompt)
        start = next((i for i, each in enumerate(known) if each.endswith(options.get("from", known[0]))), 0)
        blocks = [StoredBlock(engine_hash(each), local_hash(each.split(".")[-1])) for each in known[start:]]
        parent = engine_hash(known[start - 1]) if start else None
        self._event(worker, Change(stored=Stored(blocks, parent)), options)

    def do_removed(self, words: list[str], options: dict[str, str]) -> None:
        self._event(words[0], Change(removed=Removed([engine_hash(words[1])])), options)

    def do_cleared(self, words: list[str], options: dict[str, str]) -> None:
        self._event(words[0], CLEARED, options)

    def _event(self, worker: str, data: Change | Literal["cleared"], options: dict[str, str]) -> None:
        tier, dp_rank = options.get("tier", "device"), int(options.get("rank", 0))
        slot = self.router.fleet.ranks.slot_of(id_of(worker), dp_rank)
        assert slot is not None
        assert self.router.fleet.index is not None
        event = RouterEvent(id_of(worker), KvEvent(1, data, dp_rank), TIERS.get(tier, tier))
        if not self.router.fleet.index.apply(slot, event):
            self.output.append(f"{worker}: not applied")

    def do_report(self, words: list[str], options: dict[str, str]) -> None:
        report = LoadReport(
            id_of(words[0]),
            int(options.get("rank", 0)),
            active_decode_blocks=int(options["decode"]) if "decode" in options else None,
            active_prefill_tokens=int(options["prefill"]) if "prefill" in options else None,
            kv_used_blocks=int(options["used"]) if "used" in options else None,
        )
        self.router.report_load(report)

    def do_thresholds(self, words: list[str], options: dict[str, str]) -> None:
        acceptor, request_id, model = words
        if not options:
            self._say(acceptor, GetThresholds(int(request_id), model))
            return
        wanted = Thresholds(
            model,
            float(options["decode"]) if "decode" in options else None,
            int(options["prefill"]) if "prefill" in options else None,
            float(options["frac"]) if "frac" in options else None,
        )
        self._say(acceptor, SetThresholds(int(request_id), wanted, "replace" in options))

    def do_loads(self, _words: list[str], _options: dict[str, str]) -> None:
        sequences = self.router.fleet.sequences
        for slot, rank in self.router.fleet.ranks:
            self.output.append(
                f"w{rank.instance_id} rank {rank.dp_rank}: {sequences.prefill_tokens[slot]} tokens to prefill, "
                f"{sequences.blocks[slot]:g} blocks, {sequences.num_requests[slot]} requests"
            )

    def do_heartbeat(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], Heartbeat())

    def do_goodbye(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], Goodbye())

    def do_lost(self, words: list[str], _options: dict[str, str]) -> None:
        self.router.forget(words[0].encode())

    def do_at(self, words: list[str], _options: dict[str, str]) -> None:
        self.now = float(words[0])
        self.router.tick(self.now)
        self._print_outgoing()

    def do_load(self, _words: list[str], _options: dict[str, str]) -> None:
        counts = sorted(self.router.acceptors.num_active.items())
        self.output.append("load: " + (" ".join(f"w{worker}={count}" for worker, count in counts) or "none"))
        for acceptor in self.router.acceptors.by_peer.values():
            self.output.append(f"  {acceptor.name}: {' '.join(map(str, sorted(acceptor.active))) or 'nothing'}")

    def _say(self, acceptor: str, message: AcceptorMessage, over: str | None = None) -> None:
        peer = over.encode() if over else self.peers.get(acceptor, f"p-{acceptor}".encode())
        self.router.receive(peer, [message], self.now)
        self._print_outgoing(acceptor, peer)

    def _print_outgoing(self, speaker: str = "", speaking_peer: bytes = b"") -> None:
        """Answers to who spoke come first."""
        names = {peer: name for name, peer in self.peers.items()} | {speaking_peer: speaker}
        outgoing = self.router.take_outgoing()
        for peer in sorted(outgoing, key=lambda peer: peer != speaking_peer):
            self.output += [f"{names[peer]} <- {describe(answer)}" for answer in outgoing[peer]]


def id_of(name: str) -> int:
    return int(name.removeprefix("w"))


def key_below(endpoint: str, worker: int, options: dict[str, str]) -> str:
    namespace, component, name = endpoint.split("/")
    return key_of(namespace, component, name, worker, options.get("lora"))


def names_of(ids: list[int]) -> str:
    return " ".join(f"w{instance_id}" for instance_id in ids) or "nobody"


def _hints(options: dict[str, str]) -> RoutingHints | None:
    hints = RoutingHints(
        priority_jump=float(options.get("jump", 0)),
        strict_priority=int(options.get("strict", 0)),
        policy_class=options.get("class", ""),
        expected_output_tokens=int(options["osl"]) if "osl" in options else None,
        session_id=options.get("session", ""),
        is_session_final="final" in options,
        allowed_worker_ids=[id_of(name) for name in options["allow"].split(",")] if "allow" in options else None,
        constraints=_constraints(options),
        router_config=msgspec.convert(_numbers(options["override"]), RouterConfigOverride)
        if "override" in options
        else None,
        wants_receipt="receipt" in options,
    )
    return hints if hints != RoutingHints() else None


def _constraints(options: dict[str, str]) -> RoutingConstraints | None:
    if "taints" not in options and "likes" not in options:
        return None
    required = options["taints"].split(",") if "taints" in options else []
    return RoutingConstraints(required, _numbers(options["likes"]) if "likes" in options else {})


def describe(answer: RouterMessage) -> str:
    match answer:
        case Placed():
            return f"placed {answer.request_id} on {_where(answer)} of {answer.worker_set}{_overlap(answer)}"
        case Queued():
            return f"queued {answer.request_id}"
        case ThresholdsAre():
            return "; ".join(
                f"{each.model}: decode {each.active_decode_blocks_threshold}, "
                f"prefill {each.active_prefill_tokens_threshold}, frac {each.active_prefill_tokens_threshold_frac}"
                for each in answer.thresholds
            )
        case Settings():
            wanted = [name for name in answer.__struct_fields__ if getattr(answer, name)]
            return f"settings: {', '.join(wanted) or 'nothing'}"
        case Explained():
            return describe_explained(answer)
        case Refused():
            return f"refused {answer.request_id}: {answer.code}, retry after {answer.retry_after_s} s: {answer.message}"
        case Welcome():
            names = names_of([worker.instance_id for worker in answer.workers])
            return f"welcome to table {answer.version} ({answer.router_mode}): {names}"
        case TableDelta(version=0):
            return "say hello"
    raise AssertionError(answer)


def _where(placed: Placed) -> str:
    rank = f" rank {placed.dp_rank}" if placed.dp_rank else ""
    return f"w{placed.instance_id}{rank}"


def _overlap(placed: Placed) -> str:
    text = f", {placed.overlap_blocks} blocks cached" if placed.overlap_blocks else ""
    if (receipt := placed.receipt) is None:
        return text
    text += f" ({receipt.reason}, {receipt.num_candidates} candidates"
    if receipt.cost is not None:
        text += f", cost {receipt.cost:g}"
    if receipt.runner_up_cost is not None:
        text += f", next w{receipt.runner_up} at {receipt.runner_up_cost:g}"
    return f"{text}, waited {receipt.queue_wait_ms:g} ms)"


def describe_explained(explained: Explained) -> str:
    choice = "nobody" if explained.choice is None else _where(explained.choice)
    lines = [f"{explained.outcome}: {choice} for {explained.request_blocks} blocks"]
    for row in explained.candidates:
        tiers = f"{row.device_blocks}+{row.host_blocks}+{row.disk_blocks}+{row.external_blocks}"
        cost = "no cost" if row.cost is None else f"cost {row.cost:g}"
        lines.append(
            f"  w{row.instance_id} rank {row.dp_rank}: {row.verdict}, {cost}, cached {tiers}, "
            f"{row.prefill_tokens} tokens to prefill, {row.decode_blocks:g}+{row.new_blocks} blocks, "
            f"{row.num_requests} requests"
        )
    return "\n".join(lines)


def describe_delta(delta: TableDelta) -> list[str]:
    lines = [f"table {delta.version}:"]
    lines += [f"  + w{worker.instance_id} at {worker.address}" for worker in delta.workers_up]
    lines += [f"  - w{instance_id}" for instance_id in delta.workers_down]
    lines += [f"  set {describe_set(worker_set)}" for worker_set in sorted(delta.sets_up, key=lambda each: each.key)]
    lines += [f"  gone {key}" for key in sorted(delta.sets_down)]
    return lines


def describe_set(worker_set: WorkerSet) -> str:
    rejected = f", {worker_set.rejected} rejected" if worker_set.rejected else ""
    return f"{worker_set.key}: {names_of(worker_set.members)}{rejected}"
