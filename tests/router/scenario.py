"""Runs the text scenarios of `tests/scenarios`: commands, `----`, then what the router is expected to say.

    rules mode=round-robin expiry=10      a new router; it starts at time 0 with nothing known
    instance w1 ns/backend/generate       discovery: worker 1 serves this endpoint; `gone instance w1 ...` undoes it
    card w1 ns/backend/generate model=m   discovery: ... and this model; `gone card w1 ...` undoes it
          aliases=a,b type=decode needs=prefill+encode|aggregated context=4096 lora=slug
    entry instances KEY VALUE             discovery: a raw value
    hello a0 life=1 over=p1 active=7:w1   acceptor a0, in its first life, over connection p1
    place a0 7 m pin=w1 not=w2,w3 over=p1 request 7 wants model m; with card=w1, for w1's card; then `free a0 7`
    failed a0 w1, heartbeat a0, goodbye a0
    lost p1                               the connection is gone
    at 12.5                               time passes, the router ticks
    load                                  prints active requests per worker and what each acceptor holds

Answers to the peer that spoke follow `<-`; a change of the table that all are told is printed after its command.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

from dynamo.router.core import Router, Rules
from dynamo.shared.discovery import CARDS, INSTANCES, Deleted, Put, key_of
from dynamo.shared.messages import (
    AcceptorMessage,
    ActiveRequest,
    Free,
    Goodbye,
    Heartbeat,
    Hello,
    Place,
    Placed,
    Refused,
    RouterMessage,
    TableDelta,
    Welcome,
    WorkerFailed,
    WorkerSet,
)

BUCKETS = {"instance": INSTANCES, "card": CARDS, "instances": INSTANCES, "cards": CARDS}
RULES = {
    "mode": ("router_mode", str),
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
        "runtime_config": {"context_length": int(options.get("context", 4096))},
    }
    registration = {
        "type": "Model",
        "namespace": namespace,
        "component": component,
        "endpoint": name,
        "instance_id": instance_id,
        "card_json": card,
    }
    return msgspec.json.encode(registration | ({"model_suffix": options["lora"]} if "lora" in options else {}))


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
        self.output += [f"malformed {entry}: {reason}" for entry, reason in self.router.malformed.items()]

    def do_hello(self, words: list[str], options: dict[str, str]) -> None:
        pairs = [pair.split(":") for pair in options.get("active", "").split(",") if pair]
        active = [ActiveRequest(int(request_id), id_of(worker), 1) for request_id, worker in pairs]
        self.peers[words[0]] = options.get("over", f"p-{words[0]}").encode()
        self._say(words[0], Hello(words[0], int(options.get("life", 1)), active))

    def do_place(self, words: list[str], options: dict[str, str]) -> None:
        acceptor, request_id, model = words
        excluded = [id_of(name) for name in options.get("not", "").split(",") if name]
        pin = id_of(options["pin"]) if "pin" in options else None
        mdcsum = self._mdcsum_of(id_of(options["card"])) if "card" in options else ""
        place = Place(int(request_id), model, 100, excluded=excluded, instance_id=pin, mdcsum=mdcsum)
        self._say(acceptor, place, options.get("over"))

    def _mdcsum_of(self, instance_id: int) -> str:
        registered = [live.registered for live in self.router.table.sets.values() if instance_id in live.registered]
        return registered[0][instance_id].mdcsum

    def do_free(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], Free(int(words[1])))

    def do_failed(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], WorkerFailed(id_of(words[1]), "no answer"))

    def do_heartbeat(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], Heartbeat())

    def do_goodbye(self, words: list[str], _options: dict[str, str]) -> None:
        self._say(words[0], Goodbye())

    def do_lost(self, words: list[str], _options: dict[str, str]) -> None:
        self.router.forget(words[0].encode())

    def do_at(self, words: list[str], _options: dict[str, str]) -> None:
        self.now = float(words[0])
        self.router.tick(self.now)

    def do_load(self, _words: list[str], _options: dict[str, str]) -> None:
        counts = sorted(self.router.acceptors.num_active.items())
        self.output.append("load: " + (" ".join(f"w{worker}={count}" for worker, count in counts) or "none"))
        for acceptor in self.router.acceptors.by_peer.values():
            self.output.append(f"  {acceptor.name}: {' '.join(map(str, sorted(acceptor.active))) or 'nothing'}")

    def _say(self, acceptor: str, message: AcceptorMessage, over: str | None = None) -> None:
        peer = over.encode() if over else self.peers.get(acceptor, f"p-{acceptor}".encode())
        answers = self.router.receive(peer, [message], self.now)
        self.output += [f"{acceptor} <- {describe(answer)}" for answer in answers]


def id_of(name: str) -> int:
    return int(name.removeprefix("w"))


def key_below(endpoint: str, worker: int, options: dict[str, str]) -> str:
    namespace, component, name = endpoint.split("/")
    return key_of(namespace, component, name, worker, options.get("lora"))


def names_of(ids: list[int]) -> str:
    return " ".join(f"w{instance_id}" for instance_id in ids) or "nobody"


def describe(answer: RouterMessage) -> str:
    match answer:
        case Placed():
            return f"placed {answer.request_id} on w{answer.instance_id} of {answer.worker_set}"
        case Refused():
            return f"refused {answer.request_id}: {answer.code}, retry after {answer.retry_after_s} s: {answer.message}"
        case Welcome():
            names = names_of([worker.instance_id for worker in answer.workers])
            return f"welcome to table {answer.version} ({answer.router_mode}): {names}"
        case TableDelta(version=0):
            return "say hello"
    raise AssertionError(answer)


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
