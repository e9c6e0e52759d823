"""What the frontend measures: both the names of Dynamo 1.6.1 and those of its documentation.

One `RequestRecord` follows a request through the pipeline; everything is counted when it ends, and per token only a
time is noted.
"""

from __future__ import annotations

from collections.abc import Container

from msgspec import Struct

from dynamo.frontend.metric_families import Families
from dynamo.frontend.model import Model
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.router_client import RouterClient
from dynamo.shared.errors import DynamoError
from dynamo.shared.messages import Placed
from dynamo.shared.metrics import Distribution, Registry, Value, router_id_of

MAX_UNCOUNTED = 1024  # requests that have ended and are not counted yet; all are before numbers are saved
UNKNOWN_MODEL = "unknown_model"  # the label of every name that is not served: clients must not invent label values

_ERROR_TYPES = {
    404: "not_found",
    499: "cancelled",
    501: "not_implemented",
    503: "unavailable",
    504: "response_timeout",
    529: "overload",
}


class RequestRecord(Struct):
    """One request's story. Times are `perf_counter()` seconds, 0 while the thing has not happened."""

    request_id: str
    shown_id: str  # what x-request-id says: the client's own, else request_id
    endpoint: str
    started_at: float
    answer_id: str = ""  # what the client wants the answer's id to be made of
    trace_headers: dict[str, str] | None = None  # what workers are told of the trace
    is_stream: bool = False
    is_begun: bool = False
    ended_at: float = 0.0
    error: DynamoError | None = None
    model: str = UNKNOWN_MODEL
    prepared_at: float = 0.0
    hashed_at: float = 0.0
    placed_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None
    num_reasoning_tokens: int | None = None  # of the output; None where nobody looks for reasoning
    num_choices: int = 1
    num_parser_failures: int = 0  # choices whose parser failed
    placed: Placed | None = None  # the last placement
    migrations: tuple[tuple[str, str], ...] = ()  # (kind, reason) of each change of worker, of all choices together
    is_migration_exhausted: bool = False  # a choice could have moved, but not once more or to nobody
    has_outgrown_migration: bool = False  # a choice was too long to move

    @property
    def num_migrations(self) -> int:
        return len(self.migrations)

    @property
    def instance_id(self) -> int:
        return 0 if self.placed is None else self.placed.instance_id

    @property
    def label(self) -> str:
        """For the log: our id, and the client's if it sent one."""
        return self.request_id if self.shown_id == self.request_id else f"{self.request_id} ({self.shown_id})"

    def note_placed(self, now: float, placed: Placed) -> None:
        if not self.first_token_at:
            self.placed_at = now
        self.placed = placed

    def note_migration(self, kind: str, reason: str) -> None:
        """Another worker is asked: `kind` is new_request before the first token, ongoing_request after it."""
        self.migrations += ((kind, reason),)

    def note_end(self, now: float, num_cached_tokens: int | None) -> None:
        """One choice is over. The worker said how much of its prompt it had cached; None if it did not."""
        self.last_token_at = now
        if num_cached_tokens is not None:
            self.num_cached_tokens = (self.num_cached_tokens or 0) + num_cached_tokens


class _OfModel:
    """Children that every request of one model adds to, looked up once."""

    __slots__ = (
        "_model",
        "_started",
        "_started_of",
        "active",
        "cached",
        "duration",
        "inflight",
        "input",
        "itl",
        "output",
        "output_tokens",
        "queued",
        "tokens_in",
        "tokens_out",
        "ttft",
    )

    def __init__(self, families: Families, model: str) -> None:
        counters, gauges, histograms = families.counters, families.gauges, families.histograms
        self._model = model
        self._started = counters["requests_started"]
        self._started_of: dict[tuple[str, bool], Value] = {}
        self.active: Value = gauges["active_requests"].labels(model)
        self.inflight: Value = gauges["inflight_requests"].labels(model)
        self.queued: Value = gauges["queued_requests"].labels(model)
        self.duration: Distribution = histograms["request_duration_seconds"].labels(model)
        self.ttft: Distribution = histograms["time_to_first_token_seconds"].labels(model)
        self.itl: Distribution = histograms["inter_token_latency_seconds"].labels(model)
        self.input: Distribution = histograms["input_sequence_tokens"].labels(model)
        self.output: Distribution = histograms["output_sequence_tokens"].labels(model)
        self.cached: Distribution = histograms["cached_tokens"].labels(model)
        self.output_tokens: Value = counters["output_tokens"].labels(model)
        self.tokens_in: Value = counters["tokens"].labels(model, "input")
        self.tokens_out: Value = counters["tokens"].labels(model, "output")

    def begin(self, record: RequestRecord) -> None:
        self.active.inc()
        key = (record.endpoint, record.is_stream)
        started = self._started_of.get(key)
        if started is None:
            child = self._started.labels(self._model, record.endpoint, _request_type(record))
            started = self._started_of[key] = child
        started.inc()


class _Mirror:
    """A counter that follows a number counted elsewhere, which may start again from zero."""

    def __init__(self, counter: Value) -> None:
        self._counter = counter
        self._seen = 0.0

    def catch_up(self, number: float) -> None:
        self._counter.inc(number - self._seen if number >= self._seen else number)
        self._seen = number


class _Mirrors:
    """The counters of these names, each behind a number of that name."""

    def __init__(self, families: Families, *names: str) -> None:
        self._mirrors = {name: _Mirror(families.counters[name].labels()) for name in names}

    def catch_up(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self._mirrors[name].catch_up(number)


class _Stages:
    """How long each part of a request's way took."""

    def __init__(self, families: Families, router_id: str) -> None:
        histograms = families.histograms
        stages = histograms["stage_duration_seconds"]
        self._preprocess = stages.labels("preprocess")
        self._route = stages.labels("route")
        self._round_trips = (
            stages.labels("transport_roundtrip"),
            histograms["dynamo_request_plane_roundtrip_ttft_seconds"].labels(),
        )
        self._hashing_ms = histograms["dynamo_router_overhead_block_hashing_ms"].labels(router_id)
        self._routing_ms = histograms["dynamo_router_overhead_total_ms"].labels(router_id)

    def observe(self, record: RequestRecord) -> None:
        """As far as the request came."""
        self._preprocess.observe(record.prepared_at - record.started_at)
        if record.placed_at:
            self._observe_route(record)
        if record.first_token_at:
            for round_trip in self._round_trips:
                round_trip.observe(record.first_token_at - record.placed_at)

    def _observe_route(self, record: RequestRecord) -> None:
        self._route.observe(record.placed_at - record.prepared_at)
        if record.hashed_at:
            self._hashing_ms.observe((record.hashed_at - record.prepared_at) * 1000)
            self._routing_ms.observe((record.placed_at - record.prepared_at) * 1000)


class _OfWorkers:
    """The last request of each worker rank."""

    def __init__(self, families: Families) -> None:
        self._families = [
            families.gauges[f"worker_last_{name}"]
            for name in ("time_to_first_token_seconds", "input_sequence_tokens", "inter_token_latency_seconds")
        ]
        self._last: dict[tuple[int, int], tuple[float, float, float]] = {}

    def note(self, placed: Placed, ttft_s: float, num_prompt_tokens: int, itl_s: float) -> None:
        self._last[placed.instance_id, placed.dp_rank or 0] = (ttft_s, num_prompt_tokens, itl_s)

    def observe(self, present: Container[int]) -> None:
        """Set the gauges anew, for workers that are still there. In 1.6.1 a worker that decodes is a decode worker,
        whether or not it does the prefill as well."""
        self._last = {rank: last for rank, last in self._last.items() if rank[0] in present}
        for index, family in enumerate(self._families):
            family.clear()
            for (instance_id, dp_rank), last in self._last.items():
                family.labels(str(instance_id), str(dp_rank), "decode").set(last[index])


class FrontendMetrics:
    """`prefix` is that of --metrics-prefix, `replica` names the router that places our requests."""

    def __init__(self, registry: Registry, prefix: str, replica: str) -> None:
        self.registry = registry
        families = self.families = Families(registry, prefix)
        registry.take_over()
        self._request = families.counters["request"].labels()
        self._stages = _Stages(families, str(router_id_of(replica)))
        self._mirrors = _Mirrors(
            families, "local_placements", "router_timeouts", "tokenizer_cache_hits", "tokenizer_cache_misses"
        )
        self._models: dict[str, _OfModel] = {}
        self._workers = _OfWorkers(families)
        self._running: dict[int, RequestRecord] = {}  # begun and not ended, by identity
        self._ended: list[RequestRecord] = []

    def begin(self, record: RequestRecord) -> None:
        """The request is understood and its model known."""
        record.is_begun = True
        self._running[id(record)] = record
        self._of_model(record.model).begin(record)

    def end(self, record: RequestRecord, now: float) -> None:
        """Once per request, begun or not. What it adds up to is worked out for many at a time."""
        record.ended_at = now
        if record.is_begun:
            del self._running[id(record)]
            self._of_model(record.model).active.dec()
        self._ended.append(record)
        if len(self._ended) >= MAX_UNCOUNTED:
            self._count_ended()

    def observe(self, models: ModelRegistry, router: RouterClient) -> None:
        """Before numbers are saved: take in what has ended and what others count."""
        self._count_ended()
        self._mirrors.catch_up(local_placements=router.num_local_placements, router_timeouts=router.num_timeouts)
        self._observe_running(router)
        self._workers.observe(router.table.workers)
        self._observe_caches(models)
        self._observe_models(models)

    # ---- what has ended

    def _count_ended(self) -> None:
        ended, self._ended = self._ended, []
        for record in ended:
            self._count(record)
            if record.is_begun:
                self._observe_begun(self._of_model(record.model), record)

    def _count(self, record: RequestRecord) -> None:
        counters, kind = self.families.counters, _request_type(record)
        status, error_type = ("error", error_type_of(record.error)) if record.error else ("success", "")
        counters["requests"].labels(record.model, record.endpoint, kind, status, error_type).inc()
        self._request.inc()
        if error_type == "cancelled":
            counters["model_cancellation"].labels(record.model, record.endpoint, kind).inc()
            self.families.gauges["disconnected_clients"].labels().inc()
        elif record.error is not None:
            counters["failures"].labels(_failure_class(error_type), record.error.code or "").inc()
        if error_type == "overload":
            counters["model_rejection"].labels(record.model, record.endpoint).inc()

    def _observe_begun(self, of_model: _OfModel, record: RequestRecord) -> None:
        of_model.duration.observe(record.ended_at - record.started_at)
        self._stages.observe(record)
        of_model.input.observe(record.num_prompt_tokens)
        of_model.tokens_in.inc(record.num_prompt_tokens)
        if record.num_parser_failures:
            self.families.counters["parser_failures"].labels(record.model).inc(record.num_parser_failures)
        if record.has_outgrown_migration:
            self.families.counters["model_migration_max_seq_len_exceeded"].labels(record.model).inc()
        if record.migrations or record.is_migration_exhausted:
            self._count_migrations(record)
        if record.first_token_at:
            self._observe_output(of_model, record)
        elif record.endpoint == "embeddings" and record.error is None:
            latency = self.families.histograms["embedding_latency_seconds"].labels(record.model)
            latency.observe(record.ended_at - record.started_at)

    def _count_migrations(self, record: RequestRecord) -> None:
        counters = self.families.counters
        for kind, reason in record.migrations:
            counters["model_migration"].labels(record.model, kind).inc()
            counters["model_migration_reasons"].labels(record.model, reason).inc()
            if kind == "new_request":
                counters["dispatch_retries"].labels().inc()
        if record.is_migration_exhausted:
            counters["model_migration_exhausted"].labels(record.model).inc()

    def _observe_output(self, of_model: _OfModel, record: RequestRecord) -> None:
        ttft_s, itl_s = record.first_token_at - record.started_at, 0.0
        of_model.ttft.observe(ttft_s)
        of_model.output.observe(record.num_output_tokens)
        of_model.output_tokens.inc(record.num_output_tokens)
        of_model.tokens_out.inc(record.num_output_tokens)
        if record.num_output_tokens > 1 and record.last_token_at:
            num_gaps = record.num_output_tokens - 1
            itl_s = (record.last_token_at - record.first_token_at) / num_gaps
            of_model.itl.observe(itl_s, num_gaps)
        if record.num_cached_tokens is not None:
            of_model.cached.observe(record.num_cached_tokens)
        if record.placed is not None:
            self._workers.note(record.placed, ttft_s, record.num_prompt_tokens, itl_s)

    # ---- what is

    def _observe_running(self, router: RouterClient) -> None:
        for of_model in self._models.values():
            of_model.inflight.set(of_model.active.value)
            of_model.queued.set(0)
        for record in self._running.values():
            if not record.first_token_at:
                self._of_model(record.model).queued.inc()
        self.families.gauges["dynamo_request_plane_inflight_requests"].labels().set(router.num_active)

    def _observe_caches(self, models: ModelRegistry) -> None:
        stats = [
            stats for model in models.loaded() if not model.takes_text and (stats := model.tokenizer.cache_stats())
        ]
        self._mirrors.catch_up(
            tokenizer_cache_hits=sum(each.hits for each in stats),
            tokenizer_cache_misses=sum(each.misses for each in stats),
        )

    def _observe_models(self, models: ModelRegistry) -> None:
        """Set the gauges that describe models anew, as the table is now."""
        gauges = {name: family for name, family in self.families.gauges.items() if name.startswith("model_")}
        for family in gauges.values():
            family.clear()
        for name in models.names():
            gauges["model_ready"].labels(name).set(0)
        for name, model in models.ready_models():
            for gauge, value in _described(model).items():
                gauges[gauge].labels(name).set(value or 0)

    def _of_model(self, model: str) -> _OfModel:
        of_model = self._models.get(model)
        if of_model is None:
            of_model = self._models[model] = _OfModel(self.families, model)
        return of_model


def error_type_of(error: DynamoError) -> str:
    return _ERROR_TYPES.get(error.status, "validation" if 400 <= error.status < 500 else "internal")


def _failure_class(error_type: str) -> str:
    """As 1.6.1 writes it: `unavailable` is Unavailable."""
    return error_type.title().replace("_", "")


def _described(model: Model) -> dict[str, float | None]:
    card, runtime = model.card, model.card.runtime_config
    return {
        "model_ready": 1,
        "model_context_length": model.max_context_length,
        "model_kv_cache_block_size": card.kv_cache_block_size,
        "model_total_kv_blocks": runtime.total_kv_blocks,
        "model_max_num_seqs": runtime.max_num_seqs,
        "model_max_num_batched_tokens": runtime.max_num_batched_tokens,
        "model_migration_limit": card.migration_limit,
    }


def _request_type(record: RequestRecord) -> str:
    return "stream" if record.is_stream else "unary"
