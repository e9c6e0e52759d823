"""What one acceptor counts, read from its /metrics as Prometheus would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynamo.frontend.metric_families import COUNTERS, GAUGES, HISTOGRAMS
from dynamo.shared.messages import TableDelta
from tests.support.served_acceptor import MODEL
from tests.support.stage import CHAT, WORKER, Stage, open_stage
from tests.support.waiting import PATIENCE_S

MESSAGES = [{"role": "user", "content": "Tell me about the sea."}]
RANK = {"worker_id": str(WORKER), "dp_rank": "0", "worker_type": "decode"}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path) as stage:
        yield stage


class Scrape:
    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, sample: str, **labels: str) -> float | None:
        """None where there is no such sample."""
        for family in self.families.values():
            for found in family.samples:
                if found.name == sample and labels.items() <= found.labels.items():
                    return found.value
        return None


async def scrape(stage: Stage) -> Scrape:
    return Scrape((await stage.acceptor.ask("GET", "/metrics")).body.decode())


async def test_every_listed_family_is_there_by_its_name(stage: Stage) -> None:
    found = (await scrape(stage)).families.keys()
    for name in (*COUNTERS, *GAUGES, *HISTOGRAMS):
        assert (name if name.startswith("dynamo_") else f"dynamo_frontend_{name}") in found


async def test_the_last_request_of_a_worker_is_told_while_the_worker_is_there(stage: Stage) -> None:
    answer = await stage.ask({"messages": MESSAGES})
    prefix = "dynamo_frontend_worker_last"
    before = await scrape(stage)
    assert before.value(f"{prefix}_input_sequence_tokens", **RANK) == answer.json["usage"]["prompt_tokens"]
    ttft = before.value(f"{prefix}_time_to_first_token_seconds", **RANK)
    assert ttft is not None
    assert ttft > 0
    stage.router.say(TableDelta(2, workers_down=[WORKER]))
    async with asyncio.timeout(PATIENCE_S):
        while (await scrape(stage)).value(f"{prefix}_input_sequence_tokens", **RANK) is not None:
            pass


async def test_round_trips_are_measured(stage: Stage) -> None:
    await stage.ask({"messages": MESSAGES})
    told = await scrape(stage)
    assert told.value("dynamo_request_plane_roundtrip_ttft_seconds_count") == 1
    assert told.value("dynamo_frontend_stage_duration_seconds_count", stage="transport_roundtrip") == 1
    assert told.value("dynamo_request_plane_inflight_requests") == 0
    assert told.value("dynamo_frontend_queued_requests", model=MODEL) == 0


async def test_failures_are_counted_by_their_code(stage: Stage) -> None:
    assert (await stage.acceptor.ask("POST", CHAT, {"model": "nope", "messages": MESSAGES})).status == 404
    told = await scrape(stage)
    labels = {"class": "NotFound", "reason": "model_not_found"}
    assert told.value("dynamo_frontend_failures_total", **labels) == 1
