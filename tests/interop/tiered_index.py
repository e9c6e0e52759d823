"""Run by the interpreter of the real Dynamo: what its index says after the events of one engine.

Stdin has a JSON list of steps: ["publish", event as vLLM publishes it] or ["match", token ids]. Stdout has one of what
each match found: [device, host, disk] blocks, each with those of the tiers above, and those in external as in disk.
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import asyncio
import json
import struct
import sys
import time

import msgspec
import zmq

from dynamo._core import SelectionService

BLOCK_SIZE = 4
TIMEOUT_S = 30.0
FIRST_MARKER = 2**20  # a token that no prompt has


class Engine:
    def __init__(self, service):
        self._service = service
        self._socket = zmq.Context().socket(zmq.XPUB)
        self._socket.rcvtimeo = int(TIMEOUT_S * 1000)
        self._num_published = 0
        self._marker = FIRST_MARKER

    async def register(self):
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        record = {"worker_id": 1, "endpoint": "tcp://127.0.0.1:9001", "block_size": BLOCK_SIZE}
        await self._service.upsert_worker({**record, "kv_events_endpoint": f"tcp://127.0.0.1:{port}"})
        self._socket.recv()  # its subscription

    def publish(self, event):
        batch = msgspec.msgpack.encode([time.time(), [event], 0])
        self._socket.send_multipart([b"", struct.pack(">Q", self._num_published), batch])
        self._num_published += 1

    async def match(self, token_ids):
        (found,) = (await self._service.overlap_scores({"token_ids": token_ids}))["workers"]
        return [found["device_blocks"], found["host_pinned_blocks"], found["disk_blocks"]]

    async def settle(self):
        """Until a prompt with a block in each tier is known: tiers do not wait for each other."""
        prompt, parent = [], None
        for medium in ("GPU", "CPU", "DISK", "EXTERNAL"):
            self._marker += 1
            block = [self._marker] * BLOCK_SIZE
            self.publish(["BlockStored", [self._marker], parent, block, BLOCK_SIZE, None, medium])
            prompt, parent = prompt + block, self._marker
        deadline = time.monotonic() + TIMEOUT_S
        while await self.match(prompt) != [1, 2, 4]:
            assert time.monotonic() < deadline, "its index did not follow"
            await asyncio.sleep(0.005)


async def run(steps):
    service = SelectionService(indexer_threads=4)
    engine = Engine(service)
    await engine.register()
    found = []
    for verb, argument in steps:
        if verb == "publish":
            engine.publish(argument)
        else:
            await engine.settle()
            found.append(await engine.match(argument))
    service.shutdown()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
