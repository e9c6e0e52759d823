"""What an answer tells of how it was served, for who asks: fields of Dynamo's `nvext`, and the route receipt.

A receipt is asked for with the header `x-dynamo-route-receipt: true`, which is answered by a header or by comments
in the stream, or as `route_receipt` among `nvext.extra_fields`, next to Dynamo's `worker_id` and `timing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from msgspec.structs import replace

from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_requests import NvExt
from dynamo.frontend.prepared import Prepared
from dynamo.frontend.receipt import compact, route_receipt
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.shared.messages import Placed, RoutingHints

ROUTE_RECEIPT = "x-dynamo-route-receipt"
DRY_RUN = "query_instance_id"
JsonObject = dict[str, Any]
_YES = frozenset(("true", "1", "yes", "on"))


class AnswerExtras:
    """What one request asks for. `ask` comes before the request is placed, the rest after it."""

    def __init__(self, fields: frozenset[str], tells_route: bool) -> None:
        self._tells_route = tells_route
        self._block_size = 0
        self._in_chunks = [name for name in _IN_CHUNKS if name in fields]
        self._at_end = [name for name in _AT_END if name in fields]

    def ask(self, batch: Sequence[Prepared], block_size: int) -> None:
        """Have the router give receipts. `block_size` is that of the model's workers, in tokens."""
        self._block_size = block_size
        for prepared in batch:
            hints = replace(prepared.wishes.hints or RoutingHints(), wants_receipt=True)
            prepared.wishes = replace(prepared.wishes, hints=hints)

    def of_chunk(self, record: RequestRecord) -> JsonObject:
        """`nvext` of a chunk in mid-stream."""
        return {name: _IN_CHUNKS[name](record, self._block_size) for name in self._in_chunks}

    def of_end(self, record: RequestRecord) -> JsonObject:
        """`nvext` of a whole answer, or of the chunk that ends one."""
        return self.of_chunk(record) | {name: _AT_END[name](record, self._block_size) for name in self._at_end}

    def headers(self, record: RequestRecord) -> HeaderBlock:
        return b"x-dynamo-route: %b\r\n" % self._route(record) if self._tells_route else b""

    def comment(self, record: RequestRecord) -> bytes:
        """The same, for a stream: what is known by now."""
        return b": x-dynamo-route %b\n\n" % self._route(record) if self._tells_route else b""

    def _route(self, record: RequestRecord) -> bytes:
        return compact(route_receipt(record, self._block_size)).encode("ascii")


def extras_of(nvext: NvExt | None, exchange: Exchange) -> AnswerExtras | None:
    """None for a request that asks for nothing; names that are unknown here are for the worker."""
    header = exchange.header(ROUTE_RECEIPT)
    asked = nvext.extra_fields if nvext is not None else None
    if header is None and not asked:
        return None
    tells_route = header is not None and header.strip().lower() in _YES
    fields = _KNOWN.intersection(asked or ())
    return AnswerExtras(fields, tells_route) if fields or tells_route else None


def wants_dry_run(nvext: NvExt | None) -> bool:
    """Dynamo writes the annotation with a colon and anything after it."""
    annotations = nvext.annotations if nvext is not None else None
    return annotations is not None and any(name.partition(":")[0] == DRY_RUN for name in annotations)


def worker_ids(placed: Placed) -> JsonObject:
    """Dynamo's `nvext.worker_id`, of a worker that does prefill and decode; ranks where one was chosen."""
    worker, rank = placed.instance_id, placed.dp_rank
    if rank is None:
        return {"prefill_worker_id": worker, "decode_worker_id": worker}
    return {"prefill_worker_id": worker, "prefill_dp_rank": rank, "decode_worker_id": worker, "decode_dp_rank": rank}


def _worker_ids(record: RequestRecord, block_size: int) -> JsonObject | None:
    return None if record.placed is None else worker_ids(record.placed)


def _timing(record: RequestRecord, block_size: int) -> JsonObject:
    now = perf_counter()
    timing: JsonObject = {"request_received_ms": int((time.time() - (now - record.started_at)) * 1000)}
    if record.placed_at:
        timing["prefill_wait_time_ms"] = (record.placed_at - record.started_at) * 1000
    if record.first_token_at:
        timing["prefill_time_ms"] = (record.first_token_at - record.placed_at) * 1000
        timing["ttft_ms"] = (record.first_token_at - record.started_at) * 1000
    timing["total_time_ms"] = (now - record.started_at) * 1000
    receipt = record.placed.receipt if record.placed is not None else None
    if record.placed is not None and receipt is not None and receipt.request_blocks:
        timing["kv_hit_rate"] = record.placed.overlap_blocks / receipt.request_blocks
    return timing


Field = Callable[[RequestRecord, int], Any]
_IN_CHUNKS: dict[str, Field] = {"worker_id": _worker_ids}
_AT_END: dict[str, Field] = {"timing": _timing, "route_receipt": route_receipt}
_KNOWN = frozenset(_IN_CHUNKS) | frozenset(_AT_END)
