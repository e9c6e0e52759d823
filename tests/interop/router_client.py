"""Run by the interpreter that has ai-dynamo 1.6.1: asks a standalone router what stdin says, in that order.

Arguments: namespace, and how many blocks the first answer leaves in a worker's cache. Stdin is a JSON object of
[endpoint, request] by name; stdout is one of the items that came back, and the `workers` there are. After the first
`generate` it waits until the router knows of those blocks.
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import asyncio
import json
import sys

from dynamo.runtime import DistributedRuntime

NAMESPACE, NUM_BLOCKS = sys.argv[1], int(sys.argv[2])
TIMEOUT_S = 30.0


async def call(runtime, name, request):
    client = await runtime.endpoint(f"{NAMESPACE}.router.{name}").client()
    await client.wait_for_instances()
    return [item.data() async for item in await client.round_robin(request)]


async def wait_for_overlap(runtime, request, num_blocks):
    while True:
        (scores,) = await call(runtime, "get_overlap_scores", {"token_ids": request["token_ids"]})
        if len(scores["workers"]) == 2 and sum(row["device_blocks"] for row in scores["workers"]) == num_blocks:
            return
        await asyncio.sleep(0.05)


async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    workers = await runtime.endpoint(f"{NAMESPACE}.backend.generate").client()
    answers = {}
    async with asyncio.timeout(TIMEOUT_S):
        while len(workers.instance_ids()) < 2:
            await asyncio.sleep(0.05)
        answers["workers"] = workers.instance_ids()
        questions = json.load(sys.stdin)
        await wait_for_overlap(runtime, {"token_ids": []}, 0)
        for name, (endpoint, request) in questions.items():
            answers[name] = await call(runtime, endpoint, request)
            if endpoint == "generate":
                await wait_for_overlap(runtime, request, NUM_BLOCKS)
    print(json.dumps(answers))
    runtime.shutdown()


asyncio.run(main())
