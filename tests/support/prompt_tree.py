"""Random prompts that share beginnings of all lengths: more of them than a small cache can hold."""

from __future__ import annotations

import random

from tests.support.kv_gateway import KvGateway, Routed, prompt_of

BLOCK_SIZE = 16
TAIL = 5  # tokens that fill no block


def prompt_of_tree(draw: random.Random) -> list[int]:
    """Three ways to go on after each piece, up to eight pieces, and an end of its own."""
    prompt: list[int] = []
    node = 0
    for _ in range(draw.randint(1, 8)):
        node = node * 3 + draw.randint(1, 3)
        prompt += prompt_of(node % 3000, 5 * BLOCK_SIZE)
    return prompt + [draw.randint(1, 1000) for _ in range(TAIL)]


def ask_and_wait(gateway: KvGateway, prompt: list[int]) -> Routed:
    """Until the router has heard what this did to the worker's cache: removals come before what takes the room."""
    routed = gateway.route(prompt)
    gateway.wait_until_held(prompt, routed.rank, len(prompt) // BLOCK_SIZE)
    return routed
