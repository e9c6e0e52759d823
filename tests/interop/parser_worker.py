"""Run by the interpreter that has ai-dynamo 1.6.1: one model for each pair of parsers, all answering from files.

Arguments: discovery backend, model directory, and the directory of `models.json` (the pairs by model name), of the
frames by the seed of the request that gets them (`3.json`), and of `calls.jsonl` (what arrived).
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import asyncio
import json
import signal
import sys
from pathlib import Path

from dynamo.llm import ModelInput, ModelRuntimeConfig, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime

BACKEND, MODEL_PATH, DIRECTORY = sys.argv[1:]
directory = Path(DIRECTORY)


async def answer(request, context):
    with (directory / "calls.jsonl").open("a") as file:
        file.write(json.dumps(request) + "\n")
    for frame in json.loads((directory / f"{request['sampling_options']['seed']}.json").read_text()):
        yield frame


async def serve(runtime, name, number, tool, reasoning):
    config = ModelRuntimeConfig()
    config.tool_call_parser = tool
    config.reasoning_parser = reasoning
    endpoint = runtime.endpoint(f"parsers.worker{number}.generate")
    await register_model(
        ModelInput.Tokens,
        ModelType.Chat | ModelType.Completions,
        endpoint,
        MODEL_PATH,
        name,
        worker_type=WorkerType.Aggregated,
        runtime_config=config,
    )
    return endpoint


async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), BACKEND, "tcp")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runtime.shutdown)
    models = json.loads((directory / "models.json").read_text())
    endpoints = [await serve(runtime, name, number, *pair) for number, (name, pair) in enumerate(models.items())]
    print("serving", flush=True)
    await asyncio.gather(*(endpoint.serve_endpoint(answer) for endpoint in endpoints))


asyncio.run(main())
