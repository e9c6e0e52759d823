"""Schemas that were found good are remembered by their content, as most clients send the same few all the time."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from dynamo.frontend.json_schema_check import Path, check_every_keyword, spelled
from dynamo.shared.errors import InvalidRequest

MAX_REMEMBERED = 1024
MAX_BYTES = 1 << 20


class RememberedSchemas:
    """Digests of schemas that are good; of more than `capacity`, the one not asked for the longest is forgotten."""

    __slots__ = ("_digests", "capacity", "num_hits", "num_misses")

    def __init__(self, capacity: int = MAX_REMEMBERED) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()
        self.capacity = capacity
        self.num_hits = 0
        self.num_misses = 0

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, schema: Any, param: str, check: Callable[[Any, str], None]) -> None:
        """Calls `check`, which raises InvalidRequest, unless this very schema has passed it."""
        digest = hashlib.blake2b(_encoded(schema, param), digest_size=16).digest()
        if digest in self._digests:
            self._digests.move_to_end(digest)
            self.num_hits += 1
            return
        self.num_misses += 1
        check(schema, param)
        self._digests[digest] = None
        if len(self._digests) > self.capacity:
            self._digests.popitem(last=False)


remembered = RememberedSchemas()


def check_schema(schema: Any, param: str) -> None:
    """Raises InvalidRequest naming the place inside of the schema that is given as `param`."""
    remembered.check(schema, param, check_every_keyword)


def _encoded(schema: Any, param: str) -> bytes:
    """As the worker gets it: msgpack, which ends at 64-bit integers."""
    try:
        encoded = msgspec.msgpack.encode(schema)
    except OverflowError:
        place = param + spelled(_path_of_big_integer(schema))
        raise InvalidRequest(f"{place} is an integer beyond 64 bits.", place, "out_of_range") from None
    except RecursionError:
        raise InvalidRequest(f"{param} is nested too deep to be read.", param, "out_of_range") from None
    if len(encoded) > MAX_BYTES:
        raise InvalidRequest(f"{param} has more than {MAX_BYTES} bytes.", param, "out_of_range")
    return encoded


def _path_of_big_integer(schema: Any) -> Path:
    pending: list[tuple[Any, Path]] = [(schema, None)]
    while pending:
        value, path = pending.pop()
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            return path
        if isinstance(value, dict):
            pending += [(item, (path, key)) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(item, (path, index)) for index, item in enumerate(value)]
    return None
