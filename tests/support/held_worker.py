"""A worker whose answers last until the test lets them end: the prompt comes back, and what the prompt is says how.

A short prompt is answered at once. A long one is answered token by token, PACE_S apart, and its last token is held back
until SIGUSR1 opens the gate. A `max_tokens` beyond the prompt has the prompt repeated that often, as fast as it goes.
A prompt that ends as it began is one that another worker has answered in part: the answer goes on from there.

Says on stdout, a line each: `began` and `cancelled` for answers, `flooded N` for N tokens of a repetition.
"""

from __future__ import annotations

import asyncio
import signal
from array import array
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from dynamo.shared.runtime import DistributedRuntime
from dynamo.shared.serving_config import serving_config
from dynamo.worker import DEMO_MODEL_DIR, Context, ModelInput, ModelType, WorkerType, register_model

MODEL = "held"
SHORT = 32  # tokens
PACE_S = 0.03
TOKENS_PER_ITEM = 512  # of a repetition
BALLAST = "." * 32_768


class HeldEngine:
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        sequence: list[int] = request["token_ids"]
        num_answered = length_of_border(sequence)
        prompt = sequence[: len(sequence) - num_answered]
        max_tokens = request["stop_conditions"].get("max_tokens") or 0
        if max_tokens > len(prompt):
            items = flood(prompt, max_tokens)
        elif len(prompt) > SHORT:
            items = self._pace(prompt[num_answered:], context)
        else:
            items = at_once(prompt[num_answered:])
        print("began", flush=True)
        try:
            async for item in items:
                yield item
        finally:
            if context.is_stopped():
                print("cancelled", flush=True)

    async def _pace(self, prompt: list[int], context: Context) -> AsyncIterator[dict[str, Any]]:
        opened = asyncio.ensure_future(self.gate.wait())
        stopped = context.async_killed_or_stopped()
        try:
            for token_id in prompt[:-1]:
                yield {"token_ids": [token_id]}
                await asyncio.wait((opened, stopped), timeout=PACE_S, return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    return
            await asyncio.wait((opened, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                yield {"token_ids": prompt[-1:], "finish_reason": "stop"}
        finally:
            opened.cancel()
            stopped.cancel()


def length_of_border(sequence: list[int]) -> int:
    """How many tokens the longest proper prefix has that is a suffix too."""
    borders = [0] * len(sequence)
    for end in range(1, len(sequence)):
        length = borders[end - 1]
        while length and sequence[length] != sequence[end]:
            length = borders[length - 1]
        borders[end] = length + (sequence[length] == sequence[end])
    return borders[-1]


async def at_once(prompt: list[int]) -> AsyncIterator[dict[str, Any]]:
    yield {"token_ids": prompt, "finish_reason": "stop"}


async def flood(prompt: list[int], num_tokens: int) -> AsyncIterator[dict[str, Any]]:
    """Each item is heavy with text of its own, which a frontend that detokenizes ignores but has to hold."""
    text = array("I", prompt)
    while len(text) < len(prompt) * TOKENS_PER_ITEM:
        text += text
    for num_sent in range(0, num_tokens, TOKENS_PER_ITEM):
        at = num_sent % len(prompt)
        num_now = min(TOKENS_PER_ITEM, num_tokens - num_sent)
        yield {"token_ids": text[at : at + num_now].tolist(), "text": BALLAST}
        print(f"flooded {num_sent + num_now}", flush=True)
    yield {"token_ids": [], "finish_reason": "length"}


async def main() -> None:
    runtime = DistributedRuntime(config=serving_config({}))
    engine = HeldEngine()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, engine.gate.set)
    loop.add_signal_handler(signal.SIGTERM, runtime.shutdown)
    endpoint = runtime.endpoint("dynamo.held.generate")
    await endpoint.open(engine.generate)
    await register_model(
        ModelInput.Tokens,
        ModelType.Completions,
        endpoint,
        str(DEMO_MODEL_DIR),
        MODEL,
        worker_type=WorkerType.Aggregated,
    )
    print(f"serving as {runtime.instance_id:x}", flush=True)
    await runtime.closed.wait()


if __name__ == "__main__":
    uvloop.run(main())
