"""What an answer tells of how it was served, for who asks: fields of Dynamo's `nvext`, and the route receipt.

A receipt is asked for with the header `x-dynamo-route-receipt: true`, which is answered by a header or by comments
in the stream, or as `route_receipt` among `nvext.extra_fields`, next to those that Dynamo has. Its annotations come as
events before the first chunk, in a form that strict readers of server-sent events never see; `request_id`, `token_ids`
and `formatted_prompt` may be asked for as extra fields as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import msgspec
from msgspec.structs import replace

from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.news_fields import Told
from dynamo.frontend.openai_requests import NvExt
from dynamo.frontend.prepared import Prepared
from dynamo.frontend.preprocess import unpack_token_ids
from dynamo.frontend.receipt import compact, route_receipt
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.frontend.worker_news import WorkerNews
from dynamo.shared.messages import Placed, RoutingHints

ROUTE_RECEIPT = "x-dynamo-route-receipt"
DRY_RUN = "query_instance_id"
JsonObject = dict[str, Any]
_YES = frozenset(("true", "1", "yes", "on"))
_NOTHING: frozenset[str] = frozenset()
_json = msgspec.json.Encoder().encode


class AnswerExtras:
    """What one request asks for. `ask` comes before the request is placed, the rest after it."""

    def __init__(self, fields: frozenset[str], events: frozenset[str] = _NOTHING, *, tells_route: bool = False) -> None:
        self._tells_route = tells_route
        self._asks_for_receipt = tells_route or not fields.isdisjoint(_FROM_ROUTER)
        self._block_size = 0
        self._batch: Sequence[Prepared] = ()
        self._of_prompt = [name for name in _OF_PROMPT if name in fields]
        self._events = [name for name in _OF_PROMPT if name in events]
        self._in_chunks = [name for name in _IN_CHUNKS if name in fields]
        self._of_news = [name for name in _OF_NEWS if name in fields]
        self._at_end = [name for name in _AT_END if name in fields]
        self._tells_stop_reason = "stop_reason" in fields
        self._tells_prompt_logprobs = "prompt_logprobs" in fields
        self._prompt_logprobs: list[Any] | None = None

    def ask(self, batch: Sequence[Prepared], block_size: int) -> None:
        """Have the router give receipts. `block_size` is that of the model's workers, in tokens."""
        self._block_size = block_size
        self._batch = batch
        if not self._asks_for_receipt:
            return
        for prepared in batch:
            hints = replace(prepared.wishes.hints or RoutingHints(), wants_receipt=True)
            prepared.wishes = replace(prepared.wishes, hints=hints)

    def events(self, record: RequestRecord) -> bytes:
        """Annotations, as 1.6.1 has them: the name of an event, and a comment that holds a JSON string."""
        return b"".join(
            b"event: %b\n: %b\n\n" % (name.encode(), _json(value if isinstance(value, str) else _json(value).decode()))
            for name in self._events
            for value in self._values_of_prompts(name, record)
        )

    def of_start(self, record: RequestRecord) -> JsonObject:
        """`nvext` of a stream's first chunk, before what `of_chunk` adds."""
        told = {name: self._values_of_prompts(name, record) for name in self._of_prompt}
        return {name: values[0] for name, values in told.items() if values}

    def of_chunk(self, record: RequestRecord, told: Told) -> JsonObject:
        """`nvext` of a chunk in mid-stream."""
        fields = {name: _IN_CHUNKS[name](record, self._block_size) for name in self._in_chunks}
        if (news := told.news) is not None:
            fields |= {name: value for name in self._of_news if (value := _OF_NEWS[name](news))}
            self._prompt_logprobs = news.prompt_logprobs or self._prompt_logprobs
        return fields

    def of_end(self, record: RequestRecord, told: Told) -> JsonObject:
        """`nvext` of the chunk that ends a stream."""
        fields = self.of_chunk(record, told)
        fields |= {name: _AT_END[name](record, self._block_size) for name in self._at_end}
        if self._tells_stop_reason and told.stop_reason is not None:
            fields["stop_reason"] = told.stop_reason
        if self._tells_prompt_logprobs and self._prompt_logprobs is not None:
            fields["prompt_logprobs"] = self._prompt_logprobs
        return fields

    def of_whole(self, record: RequestRecord, told: Told) -> JsonObject:
        """`nvext` of a whole answer."""
        return self.of_start(record) | self.of_end(record, told)

    def headers(self, record: RequestRecord) -> HeaderBlock:
        return b"x-dynamo-route: %b\r\n" % self._route(record) if self._tells_route else b""

    def comment(self, record: RequestRecord) -> bytes:
        """The same, for a stream: what is known by now."""
        return b": x-dynamo-route %b\n\n" % self._route(record) if self._tells_route else b""

    def _route(self, record: RequestRecord) -> bytes:
        return compact(route_receipt(record, self._block_size)).encode("ascii")

    def _values_of_prompts(self, name: str, record: RequestRecord) -> list[Any]:
        """One for each prompt; its choices share it. Of a prompt that was never rendered there is no text."""
        if name == "request_id":
            return [record.answer_id or record.request_id]
        prompts = {id(prepared.token_ids): prepared for prepared in self._batch}.values()
        return [value for prepared in prompts if (value := _OF_PROMPT[name](prepared))]


def extras_of(nvext: NvExt | None, exchange: Exchange) -> AnswerExtras | None:
    """None for a request that asks for nothing; names that are unknown here are for the worker."""
    header = exchange.header(ROUTE_RECEIPT)
    if header is None and (nvext is None or not (nvext.extra_fields or nvext.annotations)):
        return None
    tells_route = header is not None and header.strip().lower() in _YES
    fields = _KNOWN.intersection(nvext.extra_fields or ()) if nvext is not None else _NOTHING
    events = _NOTHING if nvext is None else frozenset(_OF_PROMPT).intersection(nvext.annotations or ())
    return AnswerExtras(fields, events, tells_route=tells_route) if fields or events or tells_route else None


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
_OF_PROMPT: dict[str, Callable[[Prepared], Any]] = {
    "request_id": lambda prepared: None,  # of no prompt, but of the request
    "prompt_token_ids": lambda prepared: unpack_token_ids(prepared.token_ids),
    "token_ids": lambda prepared: unpack_token_ids(prepared.token_ids),
    "formatted_prompt": lambda prepared: prepared.formatted_prompt,
}
_OF_NEWS: dict[str, Callable[[WorkerNews], Any]] = {
    "completion_token_ids": lambda news: news.token_ids,
    "routed_experts": lambda news: news.routed_experts,
    "engine_data": lambda news: news.engine_data,
}
_FROM_ROUTER = frozenset(_IN_CHUNKS) | frozenset(_AT_END)
_KNOWN = _FROM_ROUTER | frozenset(_OF_PROMPT) | frozenset(_OF_NEWS) | {"stop_reason", "prompt_logprobs"}
