"""Run by the interpreter of the real Dynamo: its selection core, without a runtime, decides what stdin asks.

Stdin is a JSON object:

    workers    ids, each of one rank; `taints` are those of worker 1
    stored     [worker, medium, token ids, first block]: what an engine says it has
    reserved   [{"selection": ..., "is_prefill_completed": ..., "output_fractions": [...]}]: requests that run
    questions  selections, made without effect

Stdout is one too: `overlaps` of the first question's prompt, `loads`, and whom each question chose. What the choices
cost is in the service's log, on stderr.
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from typing import Any

import msgspec
import zmq

from dynamo._core import SelectionService

BLOCK_SIZE = 4
TIMEOUT_S = 30.0


class Engine:
    """Publishes KV events as vLLM does."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._socket.rcvtimeo = int(TIMEOUT_S * 1000)
        self._sequence = 0
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def wait_for_listener(self) -> None:
        self._socket.recv()

    def store(self, medium: str, token_ids: list[int], first: int) -> None:
        """Blocks of a prompt from the `first` on; its blocks are named 1, 2, 3 ..."""
        names = list(range(first + 1, len(token_ids) // BLOCK_SIZE + 1))
        event = ["BlockStored", names, first or None, token_ids[first * BLOCK_SIZE :], BLOCK_SIZE, None, medium]
        batch = msgspec.msgpack.encode([time.time(), [event], 0])
        self._socket.send_multipart([b"", struct.pack(">Q", self._sequence), batch])
        self._sequence += 1


async def settle(service: SelectionService, token_ids: list[int], num_blocks: int) -> list[dict[str, Any]]:
    """The overlaps once the service has read all events."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        overlaps = (await service.overlap_scores({"token_ids": token_ids}))["workers"]
        if sum(each["disk_blocks"] for each in overlaps) == num_blocks:  # those of the tiers above included
            return overlaps
        await asyncio.sleep(0.01)
    raise TimeoutError(f"the service has {overlaps}, and {num_blocks} blocks were stored")


async def answer(wanted: dict[str, Any]) -> dict[str, Any]:
    service = SelectionService(indexer_threads=1)
    context = zmq.Context[Any]()
    engines = {worker: Engine(context) for worker in wanted["workers"]}
    for worker, engine in engines.items():
        record = {
            "worker_id": worker,
            "endpoint": f"tcp://127.0.0.1:{9000 + worker}",
            "kv_events_endpoint": f"tcp://127.0.0.1:{engine.port}",
            "block_size": BLOCK_SIZE,
            "taints": wanted["taints"] if worker == 1 else [],
        }
        await service.upsert_worker(record)
        engine.wait_for_listener()
    for worker, medium, token_ids, first in wanted["stored"]:
        engines[worker].store(medium, token_ids, first)
    num_blocks = sum(len(token_ids) // BLOCK_SIZE - first for _worker, _medium, token_ids, first in wanted["stored"])
    overlaps = await settle(service, wanted["questions"][0]["token_ids"], num_blocks)
    for each in wanted["reserved"]:
        await service.select_and_reserve(each["selection"])
        if each["is_prefill_completed"]:
            await service.prefill_complete(each["selection"]["selection_id"])
        for fraction in each["output_fractions"]:
            service.add_output_block(each["selection"]["selection_id"], decay_fraction=fraction)
    chosen = [(await service.select(question))["worker_id"] for question in wanted["questions"]]
    answered = {"overlaps": overlaps, "loads": service.loads()[0]["loads"], "chosen": chosen}
    service.shutdown()
    return answered


if __name__ == "__main__":
    print(json.dumps(asyncio.run(answer(json.load(sys.stdin)))))
