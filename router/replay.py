"""`dynamo-router replay LOG`: what would another policy have chosen?

Every logged decision is taken again on what was known at its time, with the weights of the flags or a policy of your
own. What the other choice would have changed later (other caches, other loads) is not in the log and not in the answer.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from dynamo.router.cost import Candidates, Floats, Ints, costs, pick
from dynamo.router.decisions import Decision, Row, UnreadableLog, read
from dynamo.router.policies import PolicyRequest, PolicyRunner, Score, load_policy
from dynamo.router.weights import Weights
from dynamo.shared.config import ConfigError, option
from dynamo.shared.kv_router_options import KvRouterOptions

PROG = "dynamo-router replay"
Pick = Callable[[Decision, int], int]
"""(decision, the row that was chosen) -> the row that is chosen now"""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(KvRouterOptions):
    random_seed: int = option(0, help="Of ties and of --router-temperature.")
    as_json: bool = option(False, flags=("--json",), help="Print one JSON object instead of a table.")


class Tally(Struct):
    """Choices of one policy over a log. `load_spread` is the deviation of requests per rank over their mean, of all
    ranks that were ever to be chosen from."""

    cached_blocks: int = 0
    per_rank: Counter[tuple[int, int]] = msgspec.field(default_factory=Counter)

    def add(self, row: Row, candidates: list[Row]) -> None:
        for each in candidates:
            self.per_rank[each.instance_id, each.dp_rank] += each is row
        self.cached_blocks += row.device_blocks + row.host_blocks + row.disk_blocks + row.external_blocks

    @property
    def num_ranks_used(self) -> int:
        return sum(count > 0 for count in self.per_rank.values())

    @property
    def load_spread(self) -> float:
        counts = list(self.per_rank.values())
        return statistics.pstdev(counts) / statistics.mean(counts) if counts else 0.0


class Comparison(Struct):
    num_decisions: int = 0
    num_agreed: int = 0
    num_skipped: int = 0  # pinned, or nothing was compared
    prompt_blocks: int = 0
    logged: Tally = msgspec.field(default_factory=Tally)
    replayed: Tally = msgspec.field(default_factory=Tally)
    policy_outcomes: dict[str, int] = {}

    def as_dict(self) -> dict[str, object]:
        def told(tally: Tally) -> dict[str, float]:
            return {
                "cached_share": tally.cached_blocks / max(1, self.prompt_blocks),
                "load_spread": tally.load_spread,
                "ranks_used": tally.num_ranks_used,
            }

        return {
            "decisions": self.num_decisions,
            "skipped": self.num_skipped,
            "agreement": self.num_agreed / max(1, self.num_decisions),
            "logged": told(self.logged),
            "replayed": told(self.replayed),
            "policy": self.policy_outcomes,
        }


def replay(decisions: Iterable[Decision], choose: Pick) -> Comparison:
    """Pins and sessions were constraints, not choices: they are left out."""
    found = Comparison()
    for decision in decisions:
        rows = decision.candidates
        taken = next((at for at, row in enumerate(rows) if _is_chosen(decision, row)), None)
        if taken is None or decision.reason in ("pinned", "affinity"):
            found.num_skipped += 1
            continue
        other = choose(decision, taken)
        found.num_decisions += 1
        found.num_agreed += other == taken
        found.prompt_blocks += -(-decision.num_tokens // decision.block_size)
        found.logged.add(rows[taken], rows)
        found.replayed.add(rows[other], rows)
    return found


def by_weights(weights: Weights, rng: random.Random) -> Pick:
    def choose(decision: Decision, taken: int) -> int:
        found = costs(as_candidates(decision.candidates), decision.num_tokens, decision.block_size, weights)
        if weights.router_temperature > 0:
            return pick(found, weights.router_temperature, rng)
        return _lowest(found, taken, rng)

    return choose


def _lowest(scores: Floats, taken: int, rng: random.Random) -> int:
    """Of equals the one that was chosen: another draw would be no other decision."""
    return taken if scores[taken] == scores.min() else pick(scores, 0.0, rng)


class PolicyPick:
    """Where the policy fails, as live: the built-in selection. Its time budget is not enforced, for this machine is not
    the router's."""

    def __init__(self, score: Score, name: str, otherwise: Pick, rng: random.Random) -> None:
        self._runner = PolicyRunner(score, math.inf, clock=lambda: self._now, name=name)
        self._otherwise = otherwise
        self._rng = rng
        self._now = 0.0  # when the decision at hand was taken

    def __call__(self, decision: Decision, taken: int) -> int:
        self._now = decision.at
        scores = self._runner.scores(_request(decision), as_candidates(decision.candidates))
        return self._otherwise(decision, taken) if scores is None else _lowest(scores, taken, self._rng)

    def take_outcomes(self) -> dict[str, int]:
        """How often it was used, and how often and why not."""
        return self._runner.take_outcomes()


def as_candidates(rows: list[Row]) -> Candidates:
    def column(name: str) -> Ints:
        return np.array([getattr(row, name) for row in rows], np.int64)

    return Candidates(
        slots=np.arange(len(rows)),
        instance_ids=np.array([row.instance_id for row in rows], np.uint64),
        dp_ranks=column("dp_rank"),
        device_blocks=column("device_blocks"),
        host_blocks=column("host_blocks"),
        disk_blocks=column("disk_blocks"),
        external_blocks=column("external_blocks"),
        prefill_tokens=column("prefill_tokens"),
        decode_blocks=np.array([row.decode_blocks for row in rows], np.float64),
        new_blocks=column("new_blocks"),
        num_requests=column("num_requests"),
    )


def _is_chosen(decision: Decision, row: Row) -> bool:
    return row.instance_id == decision.instance_id and decision.dp_rank in (None, row.dp_rank)


def _request(decision: Decision) -> PolicyRequest:
    return PolicyRequest(
        model=decision.model,
        num_tokens=decision.num_tokens,
        block_size=decision.block_size,
        num_blocks=-(-decision.num_tokens // decision.block_size),
        priority_jump=decision.priority_jump,
        strict_priority=decision.strict_priority,
        session_id=decision.session_id,
        lora_name=decision.lora_name,
        label=decision.label,
    )


def main(argv: list[str]) -> None:
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        sys.exit(f"{PROG}: name the log first: {PROG} LOG [options]")
    if argv[0] in ("-h", "--help"):
        ReplayConfig.load(argv, prog=f"{PROG} LOG", description=__doc__ or "")
    config, _ = ReplayConfig.load(argv[1:], prog=PROG, description="Decide a decision log again.")
    try:
        report(run(Path(argv[0]), config), config.as_json)
    except (ConfigError, UnreadableLog, OSError) as error:
        sys.exit(f"{PROG}: {error}")


def run(path: Path, config: ReplayConfig) -> Comparison:
    rng = random.Random(config.random_seed)
    built_in = by_weights(Weights.from_options(config), rng)
    if config.router_policy is None:
        return replay(read(path), built_in)
    policy = PolicyPick(load_policy(config.router_policy), config.router_policy, built_in, rng)
    found = replay(read(path), policy)
    found.policy_outcomes = policy.take_outcomes()
    return found


def report(found: Comparison, as_json: bool) -> None:
    told = found.as_dict()
    if as_json:
        print(msgspec.json.encode(told).decode())
        return
    print(f"{found.num_decisions} decisions, {found.num_skipped} skipped, {told['agreement']:.1%} chosen alike")
    print(f"{'':10} {'cached share':>12} {'load spread':>12} {'ranks used':>12}")
    for name, tally in (("logged", found.logged), ("replayed", found.replayed)):
        share = tally.cached_blocks / max(1, found.prompt_blocks)
        print(f"{name:10} {share:>12.1%} {tally.load_spread:>12.3f} {tally.num_ranks_used:>12}")
    if found.policy_outcomes:
        print("policy:", ", ".join(f"{count} {outcome}" for outcome, count in found.policy_outcomes.items()))
