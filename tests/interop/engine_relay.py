"""Run by the interpreter that has ai-dynamo 1.6.1: relays the KV events of an engine.

Arguments: discovery backend, endpoint, the ZeroMQ endpoint of the engine, and the tokens of a block.
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import asyncio
import signal
import sys

from dynamo.llm import KvEventPublisher
from dynamo.runtime import DistributedRuntime

BACKEND, ENDPOINT, ZMQ_ENDPOINT, BLOCK_SIZE = sys.argv[1:]


async def answer(request, context):
    yield {}


async def main():
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, BACKEND, "tcp")
    loop.add_signal_handler(signal.SIGTERM, runtime.shutdown)
    endpoint = runtime.endpoint(ENDPOINT)
    serving = asyncio.ensure_future(endpoint.serve_endpoint(answer))
    relay = KvEventPublisher(
        endpoint, kv_block_size=int(BLOCK_SIZE), enable_local_indexer=True, zmq_endpoint=ZMQ_ENDPOINT, zmq_topic=""
    )
    print("relaying", flush=True)
    await serving
    relay.shutdown()


asyncio.run(main())
