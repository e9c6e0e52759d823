"""Prompts as scenarios write them: `a.b.c` has three full blocks, called a, b and c."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

from dynamo.shared.hashing import sequence_hashes


def names_in(prompt: str) -> list[str]:
    return prompt.split(".") if prompt else []


def prefixes(prompt: str) -> list[str]:
    """`a`, `a.b` and `a.b.c`."""
    names = names_in(prompt)
    return [".".join(names[: i + 1]) for i in range(len(names))]


def local_hash(name: str) -> int:
    return xxh3_64_intdigest(name.encode())


def engine_hash(prompt: str) -> int:
    """Of the last block of a prompt: the engine's own name for it and all before."""
    return xxh3_64_intdigest(b"engine " + prompt.encode())


def packed_hashes(prompt: str) -> bytes:
    """The sequence hashes of the blocks, as a placement has them."""
    return b"".join(each.to_bytes(8, "little") for each in sequence_hashes(map(local_hash, names_in(prompt))))
