"""Run by the interpreter that has ai-dynamo 1.6.1: registers a model and answers as the file `plan.json` says.

Arguments: discovery backend, endpoint, model directory, model name, and the directory of the plan, of `calls.jsonl`
(what arrived) and of `endings.jsonl` (how each call ended, as this worker sees it).
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import asyncio
import builtins
import json
import signal
import sys
from pathlib import Path

from dynamo.llm import ModelInput, ModelType, WorkerType, exceptions, register_model
from dynamo.runtime import DistributedRuntime

BACKEND, ENDPOINT, MODEL_PATH, MODEL_NAME, DIRECTORY = sys.argv[1:]
directory = Path(DIRECTORY)


def note(kind, record):
    with (directory / f"{kind}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def exception(name, message):
    return (getattr(exceptions, name, None) or getattr(builtins, name))(message)


async def answer(request, context):
    note("calls", {"id": context.id(), "request": request, "metadata": dict(context.metadata.items())})
    plan = json.loads((directory / "plan.json").read_text())
    ending = "abandoned"
    try:
        for item in plan["items"]:
            yield item
        if plan["waits"]:
            await context.async_killed_or_stopped()
            ending = "killed" if context.is_killed() else "stopped"
            return
        if plan["error"]:
            ending = "raised"
            raise exception(*plan["error"])
        ending = "complete"
    finally:
        note("endings", {"id": context.id(), "ending": ending})


async def main():
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, BACKEND, "tcp")
    loop.add_signal_handler(signal.SIGTERM, runtime.shutdown)
    endpoint = runtime.endpoint(ENDPOINT)
    await register_model(
        ModelInput.Tokens,
        ModelType.Chat | ModelType.Completions,
        endpoint,
        MODEL_PATH,
        MODEL_NAME,
        worker_type=WorkerType.Aggregated,
    )
    print("serving", flush=True)
    await endpoint.serve_endpoint(answer)


asyncio.run(main())
