"""All that one rank holds, in a form to keep: what `PrefixIndex.dump` gives and `PrefixIndex.load` takes."""

from __future__ import annotations

from msgspec import Struct


class Path(Struct, array_like=True, frozen=True, gc=False):
    """Consecutive blocks on the device, holes among them. Hashes are packed u64 LE; `parent` belongs to an earlier
    path, None at the start of a prompt."""

    parent: int | None
    sequence_hashes: bytes


class Holdings(Struct, array_like=True, frozen=True, gc=False):
    """What is held in one tier: the engine's names and what they stand for, both packed u64 LE."""

    tier: str
    names: bytes
    sequence_hashes: bytes


class RankSnapshot(Struct, array_like=True, frozen=True):
    paths: list[Path]
    holdings: list[Holdings]
