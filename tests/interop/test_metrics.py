"""The metrics that a real frontend in router mode kv and ours have in common, side by side after the same requests."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator

import pytest

from tests.interop.anchor import AnchorFrontend, Mocker, file_store
from tests.support.kv_gateway import KvGateway, prompt_of
from tests.support.waiting import PATIENCE_S, wait_until

FLAGS = ("--router-mode=kv", "--router-queue-threshold=0.5")
PROMPT = prompt_of(1, 390)  # 24 full blocks and one that is not
REQUESTS = 3
NUM_REMEMBERED = 24 * 16  # tokens
IDS = {"router_id", "worker_id", "router_worker_id"}
OF_ROUTERS = re.compile(
    "dynamo_component_|dynamo_router_overhead_|dynamo_frontend_router_|dynamo_frontend_worker_active_"
)
FAMILIES = {
    "dynamo_component_kv_cache_events_applied",
    "dynamo_component_router_kv_best_eligible_cached_prefix_tokens_total",
    "dynamo_component_router_kv_hit_rate",
    "dynamo_component_router_kv_selected_cached_prefix_tokens_total",
    "dynamo_component_router_requests_started_total",
    "dynamo_component_router_requests_total",
    "dynamo_component_router_worker_registered",
    "dynamo_frontend_router_queue_backpressure_total",
    "dynamo_frontend_router_queue_pending_cached_tokens",
    "dynamo_frontend_router_queue_pending_isl_tokens",
    "dynamo_frontend_router_queue_pending_requests",
    "dynamo_frontend_worker_active_decode_blocks",
    "dynamo_frontend_worker_active_prefill_tokens",
    "dynamo_router_overhead_block_hashing_ms",
    "dynamo_router_overhead_indexer_find_matches_ms",
    "dynamo_router_overhead_scheduling_ms",
    "dynamo_router_overhead_total_ms",
}
Sample = tuple[str, tuple[tuple[str, str], ...]]


class Scrape:
    """Samples as they are written, not as a parser understands them."""

    def __init__(self, base_url: str) -> None:
        with urllib.request.urlopen(f"{base_url}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        self.families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        lines = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
        self.samples: dict[Sample, float] = {
            (name, tuple(sorted(re.findall(r'(\w+)="(.*?)"', labels)))): float(value) for name, labels, value in lines
        }

    @property
    def label_names(self) -> dict[str, set[tuple[str, ...]]]:
        """By name of sample."""
        found: dict[str, set[tuple[str, ...]]] = {}
        for name, labels in self.samples:
            found.setdefault(name, set()).add(tuple(label for label, _value in labels))
        return found

    def without_ids(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        return {
            tuple(label for label in labels if label[0] not in IDS): value
            for (each, labels), value in self.samples.items()
            if each == name
        }

    def buckets(self, name: str) -> set[str]:
        return {dict(labels)["le"] for each, labels in self.samples if each == f"{name}_bucket"}

    def total(self, name: str) -> float:
        return sum(value for (each, _labels), value in self.samples.items() if each == name)


@pytest.fixture(scope="module")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scrape, Scrape]]:
    """Dynamo's and ours. Each has a worker of its own, of two ranks."""
    dynamo_store, our_store = (file_store(tmp_path_factory.mktemp(name)) for name in ("dynamo", "ours"))
    with (
        Mocker(dynamo_store, "--speedup-ratio=0", "--data-parallel-size=2"),
        Mocker(our_store, "--speedup-ratio=0", "--data-parallel-size=2"),
        AnchorFrontend(dynamo_store, *FLAGS) as dynamo,
        KvGateway(our_store.flag, FLAGS[1], model=Mocker.model, environment=our_store.environment) as ours,
    ):
        wait_until(lambda: dynamo.models() == {Mocker.model}, "the model at Dynamo's frontend")
        ours.wait_until_it_has(2)
        yield asked(dynamo.base_url), asked(ours.base_url)


def asked(base_url: str) -> Scrape:
    """After requests for the same prompt, each of which finds what the one before has left."""
    for number in range(REQUESTS):
        ask(base_url)
        wait_until(lambda: Scrape(base_url).total("dynamo_component_kv_cache_events_applied") > 0, "its event")
        wait_until(lambda: num_ended(base_url) == number + 1, "its end")  # noqa: B023  # it is called at once
    return Scrape(base_url)


def ask(base_url: str) -> None:
    body = json.dumps({"model": Mocker.model, "prompt": PROMPT, "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{base_url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        answer.read()


def num_ended(base_url: str) -> float:
    return Scrape(base_url).total("dynamo_component_router_requests_total")


def test_what_both_have_has_the_same_labels(scrapes: tuple[Scrape, Scrape]) -> None:
    dynamo, ours = scrapes
    theirs, mine = dynamo.label_names, ours.label_names
    assert {name: mine[name] for name in theirs.keys() & mine.keys()} == {
        name: theirs[name] for name in theirs.keys() & mine.keys()
    }


def test_the_families_of_routers_are_there(scrapes: tuple[Scrape, Scrape]) -> None:
    dynamo, ours = scrapes
    assert {name for name in dynamo.families & ours.families if OF_ROUTERS.match(name)} == FAMILIES


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_families_of_routers_have_the_same_values_of_labels(name: str, scrapes: tuple[Scrape, Scrape]) -> None:
    """Dynamo has more statuses of events, and tells a rank's load once it had some."""
    dynamo, ours = scrapes
    theirs, mine = dynamo.without_ids(name).keys(), ours.without_ids(name).keys()
    if name in ("dynamo_component_kv_cache_events_applied", "dynamo_frontend_worker_active_decode_blocks"):
        assert theirs & mine
    else:
        assert mine >= theirs
    assert ours.buckets(name) == dynamo.buckets(name)


def test_the_same_is_counted(scrapes: tuple[Scrape, Scrape]) -> None:
    for scrape in scrapes:
        counted = {
            name: scrape.total(f"dynamo_component_router_{name}")
            for name in (
                "requests_started_total",
                "requests_total",
                "kv_hit_rate_count",
                "kv_hit_rate_sum",
                "kv_selected_cached_prefix_tokens_total",
                "kv_best_eligible_cached_prefix_tokens_total",
                "worker_registered",
            )
        }
        assert counted == {
            "requests_started_total": REQUESTS,
            "requests_total": REQUESTS,
            "kv_hit_rate_count": REQUESTS,
            "kv_hit_rate_sum": pytest.approx((REQUESTS - 1) * 24 / 25),
            "kv_selected_cached_prefix_tokens_total": (REQUESTS - 1) * NUM_REMEMBERED,
            "kv_best_eligible_cached_prefix_tokens_total": (REQUESTS - 1) * NUM_REMEMBERED,
            "worker_registered": 2,
        }
