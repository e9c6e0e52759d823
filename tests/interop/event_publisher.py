"""Run by the interpreter that has ai-dynamo 1.6.1: publishes the KV events that `steps.jsonl` says, line by line.

Arguments: discovery backend, endpoint, and the directory of the steps. A step is a method of KvEventPublisher and its
arguments.
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import asyncio
import json
import signal
import sys
from pathlib import Path

from dynamo.llm import KvEventPublisher
from dynamo.runtime import DistributedRuntime

BACKEND, ENDPOINT, DIRECTORY = sys.argv[1:]
BLOCK_SIZE = 4
POLL_S = 0.02


async def answer(request, context):
    yield {}


async def publish(publisher, steps):
    num_done = 0
    while True:
        lines = steps.read_text().splitlines() if steps.exists() else []
        for line in lines[num_done:]:
            name, arguments = json.loads(line)
            getattr(publisher, name)(*arguments)
        num_done = len(lines)
        await asyncio.sleep(POLL_S)


async def main():
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, BACKEND, "tcp")
    loop.add_signal_handler(signal.SIGTERM, runtime.shutdown)
    endpoint = runtime.endpoint(ENDPOINT)
    serving = asyncio.ensure_future(endpoint.serve_endpoint(answer))
    publisher = KvEventPublisher(endpoint, kv_block_size=BLOCK_SIZE, enable_local_indexer=True)
    publishing = asyncio.create_task(publish(publisher, Path(DIRECTORY) / "steps.jsonl"))
    print("publishing", flush=True)
    await serving
    publishing.cancel()


asyncio.run(main())
