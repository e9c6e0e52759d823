"""Run by the interpreter that has ai-dynamo 1.6.1: registers a model and answers as the file `plan.json` says.

Arguments: discovery backend, endpoint, model directory, model name, the directory of the plan, of `calls.jsonl` (what
arrived) and of `endings.jsonl` (how each call ended, as this worker sees it); what requests are made of; the types of
the model, joined with commas.
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import asyncio
import builtins
import functools
import json
import operator
import os
import signal
import sys
from pathlib import Path

from dynamo.llm import HttpError, ModelInput, ModelRuntimeConfig, ModelType, WorkerType, exceptions, register_model
from dynamo.runtime import DistributedRuntime

BACKEND, ENDPOINT, MODEL_PATH, MODEL_NAME, DIRECTORY, MODEL_INPUT, MODEL_TYPES = sys.argv[1:]
directory = Path(DIRECTORY)


def note(kind, record):
    with (directory / f"{kind}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def exception(name, message):
    """`name` may be an HTTP status."""
    if name.isdigit():
        return HttpError(int(name), message)
    return (getattr(exceptions, name, None) or getattr(builtins, name))(message)


def model_type():
    return functools.reduce(operator.or_, (getattr(ModelType, name) for name in MODEL_TYPES.split(",")))


def runtime_config():
    """What the variable RUNTIME_CONFIG says, as JSON."""
    config = ModelRuntimeConfig()
    for name, value in json.loads(os.environ.get("RUNTIME_CONFIG", "{}")).items():
        if setter := getattr(config, f"set_{name}", None):
            setter(value)
        else:
            setattr(config, name, value)
    return config


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
        getattr(ModelInput, MODEL_INPUT),
        model_type(),
        endpoint,
        MODEL_PATH,
        MODEL_NAME,
        runtime_config=runtime_config(),
        worker_type=WorkerType.Aggregated,
    )
    print("serving", flush=True)
    await endpoint.serve_endpoint(answer)


asyncio.run(main())
