"""What the frontend measures: both the names of Dynamo 1.6.1 and those of its documentation.

One `RequestRecord` follows a request through the pipeline; everything is counted when it ends, and per token only a
time is noted.
"""

from __future__ import annotations

from msgspec import Struct

from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.router_client import RouterClient
from dynamo.shared.errors import DynamoError
from dynamo.shared.messages import Placed
from dynamo.shared.metrics import Distribution, Registry, Value

_TOKENS = (50.0, 100.0, 210.0, 430.0, 870.0, 1800.0, 3600.0, 7400.0, 15000.0, 31000.0, 63000.0, 130000.0)
_OUTPUT_TOKENS = (1.0, 10.0, 50.0, 100.0, 210.0, 430.0, 860.0, 1800.0, 3700.0, 7600.0, 16000.0, 32000.0)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 130.0, 260.0, 510.0)
_TTFT = (
    0.001,
    0.0022,
    0.0047,
    0.01,
    0.022,
    0.047,
    0.1,
    0.22,
    0.47,
    1.0,
    2.2,
    4.7,
    10.0,
    22.0,
    48.0,
    100.0,
    220.0,
    480.0,
)
_ITL = (0.0005, 0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.048, 0.092, 0.18, 0.34, 0.65, 1.2, 2.4, 4.5, 8.7, 17.0, 80.0)
_STAGES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

MAX_UNCOUNTED = 1024  # requests that have ended and are not counted yet; all are before numbers are saved
_MODEL_GAUGES = {
    "ready": "1 while the model can be asked, 0 while it is registered and cannot.",
    "context_length": "Tokens of prompt and answer together.",
    "kv_cache_block_size": "Tokens in a block of the workers' KV cache.",
    "total_kv_blocks": "Blocks in the KV cache of one worker.",
    "max_num_seqs": "Requests one worker runs at a time.",
    "max_num_batched_tokens": "Tokens one worker computes in a step.",
    "migration_limit": "How often a request may move to another worker, says the card.",
}
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
    is_stream: bool = False
    is_begun: bool = False
    ended_at: float = 0.0
    error: DynamoError | None = None
    model: str = UNKNOWN_MODEL
    prepared_at: float = 0.0
    placed_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None
    num_attempts: int = 0  # of all choices together
    num_choices: int = 1
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
        self.num_attempts += 1
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
        "tokens_in",
        "tokens_out",
        "ttft",
    )

    def __init__(self, metrics: FrontendMetrics, model: str) -> None:
        self._model = model
        self._started = metrics.requests_started
        self._started_of: dict[tuple[str, bool], Value] = {}
        self.active: Value = metrics.active_requests.labels(model)
        self.inflight: Value = metrics.inflight_requests.labels(model)
        self.duration: Distribution = metrics.request_duration.labels(model)
        self.ttft: Distribution = metrics.time_to_first_token.labels(model)
        self.itl: Distribution = metrics.inter_token_latency.labels(model)
        self.input: Distribution = metrics.input_sequence_tokens.labels(model)
        self.output: Distribution = metrics.output_sequence_tokens.labels(model)
        self.cached: Distribution = metrics.cached_tokens.labels(model)
        self.output_tokens: Value = metrics.output_tokens.labels(model)
        self.tokens_in: Value = metrics.tokens.labels(model, "input")
        self.tokens_out: Value = metrics.tokens.labels(model, "output")

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


class FrontendMetrics:
    def __init__(self, registry: Registry, prefix: str) -> None:
        model = ("model",)
        request = ("model", "endpoint", "request_type")
        p = f"{prefix}_"
        self.registry = registry
        self.requests = registry.counter(p + "requests", "Requests that ended.", (*request, "status", "error_type"))
        self.request = registry.counter(p + "request", "Requests that ended, all together.")
        self.requests_started = registry.counter(p + "requests_started", "Requests that began.", request)
        self.request_duration = registry.histogram(
            p + "request_duration_seconds", "From the request's headers to its last byte.", _SECONDS, model
        )
        self.time_to_first_token = registry.histogram(
            p + "time_to_first_token_seconds", "From the request's headers to the first token.", _TTFT, model
        )
        self.inter_token_latency = registry.histogram(
            p + "inter_token_latency_seconds", "Time between tokens: a request's mean, once per gap.", _ITL, model
        )
        self.input_sequence_tokens = registry.histogram(p + "input_sequence_tokens", "Prompt tokens.", _TOKENS, model)
        self.output_sequence_tokens = registry.histogram(
            p + "output_sequence_tokens", "Generated tokens.", _OUTPUT_TOKENS, model
        )
        self.cached_tokens = registry.histogram(
            p + "cached_tokens", "Prompt tokens the worker found in its cache.", _TOKENS, model
        )
        self.output_tokens = registry.counter(p + "output_tokens", "Tokens generated.", model)
        self.tokens = registry.counter(p + "tokens", "Tokens by direction.", ("model", "direction"))
        self.active_requests = registry.gauge(p + "active_requests", "Requests being served.", model)
        self.inflight_requests = registry.gauge(p + "inflight_requests", "Requests being served.", model)
        self.disconnected_clients = registry.gauge(p + "disconnected_clients", "Clients gone before their answer.")
        self.cancellations = registry.counter(p + "model_cancellation", "Requests cancelled by their client.", request)
        self.rejections = registry.counter(
            p + "model_rejection", "Requests refused for overload.", ("model", "endpoint")
        )
        self.stage_duration = registry.histogram(
            p + "stage_duration_seconds", "Time in a stage of the pipeline.", _STAGES, ("stage",)
        )
        self.migrations = registry.counter(
            p + "model_migration", "Requests that moved to another worker.", ("model", "migration_type")
        )
        self.migration_reasons = registry.counter(
            p + "model_migration_reasons", "Why they moved, by the worker's error.", ("model", "reason")
        )
        self.migrations_exhausted = registry.counter(
            p + "model_migration_exhausted",
            "Requests that failed as often as they may move, or had nowhere to go.",
            model,
        )
        self.migrations_outgrown = registry.counter(
            p + "model_migration_max_seq_len_exceeded", "Requests that grew too long to move.", model
        )
        self.retries = registry.counter(p + "dispatch_retries", "Requests placed again before a worker began them.")
        self.local_placements = registry.counter(
            p + "local_placements", "Placements without the router, while it was away."
        )
        self.place_timeouts = registry.counter(p + "router_timeouts", "Placements the router did not answer in time.")
        self.cache_hits = registry.counter(p + "tokenizer_cache_hits", "Prompt segments whose tokens were remembered.")
        self.cache_misses = registry.counter(p + "tokenizer_cache_misses", "Prompt segments that had to be tokenized.")
        self.model_gauges = {
            name: registry.gauge(f"{p}model_{name}", help, model, "max") for name, help in _MODEL_GAUGES.items()
        }
        self._preprocess = self.stage_duration.labels("preprocess")
        self._route = self.stage_duration.labels("route")
        self._models: dict[str, _OfModel] = {}
        self._ended: list[RequestRecord] = []
        registry.take_over()
        self._local_placements = _Mirror(self.local_placements.labels())
        self._place_timeouts = _Mirror(self.place_timeouts.labels())
        self._cache_hits = _Mirror(self.cache_hits.labels())
        self._cache_misses = _Mirror(self.cache_misses.labels())

    def begin(self, record: RequestRecord) -> None:
        """The request is understood and its model known."""
        record.is_begun = True
        self._of_model(record.model).begin(record)

    def end(self, record: RequestRecord, now: float) -> None:
        """Once per request, begun or not. What it adds up to is worked out for many at a time."""
        record.ended_at = now
        if record.is_begun:
            self._of_model(record.model).active.dec()
        self._ended.append(record)
        if len(self._ended) >= MAX_UNCOUNTED:
            self._count_ended()

    def _count_ended(self) -> None:
        ended, self._ended = self._ended, []
        for record in ended:
            self._count(record)
            if record.is_begun:
                self._observe_begun(self._of_model(record.model), record)

    def _observe_begun(self, of_model: _OfModel, record: RequestRecord) -> None:
        of_model.duration.observe(record.ended_at - record.started_at)
        self._preprocess.observe(record.prepared_at - record.started_at)
        of_model.input.observe(record.num_prompt_tokens)
        of_model.tokens_in.inc(record.num_prompt_tokens)
        if record.has_outgrown_migration:
            self.migrations_outgrown.labels(record.model).inc()
        if record.placed_at:
            self._route.observe(record.placed_at - record.prepared_at)
        if record.migrations or record.is_migration_exhausted:
            self._count_migrations(record)
        if record.first_token_at:
            self._observe_output(of_model, record)

    def _count_migrations(self, record: RequestRecord) -> None:
        for kind, reason in record.migrations:
            self.migrations.labels(record.model, kind).inc()
            self.migration_reasons.labels(record.model, reason).inc()
            if kind == "new_request":
                self.retries.labels().inc()
        if record.is_migration_exhausted:
            self.migrations_exhausted.labels(record.model).inc()

    def _count(self, record: RequestRecord) -> None:
        status, error_type = ("error", error_type_of(record.error)) if record.error else ("success", "")
        kind = _request_type(record)
        self.requests.labels(record.model, record.endpoint, kind, status, error_type).inc()
        self.request.labels().inc()
        if error_type == "cancelled":
            self.cancellations.labels(record.model, record.endpoint, kind).inc()
            self.disconnected_clients.labels().inc()
        elif error_type == "overload":
            self.rejections.labels(record.model, record.endpoint).inc()

    def observe(self, models: ModelRegistry, router: RouterClient) -> None:
        """Before numbers are saved: take in what has ended and what others count."""
        self._count_ended()
        self._local_placements.catch_up(router.num_local_placements)
        self._place_timeouts.catch_up(router.num_timeouts)
        for of_model in self._models.values():
            of_model.inflight.set(of_model.active.value)
        self._observe_caches(models)
        self._observe_models(models)

    def _observe_caches(self, models: ModelRegistry) -> None:
        stats = [stats for model in models.loaded() if (stats := model.tokenizer.cache_stats()) is not None]
        self._cache_hits.catch_up(sum(each.hits for each in stats))
        self._cache_misses.catch_up(sum(each.misses for each in stats))

    def _observe_models(self, models: ModelRegistry) -> None:
        """Set the gauges that describe models anew, as the table is now."""
        for family in self.model_gauges.values():
            family.clear()
        for name in models.names():
            self.model_gauges["ready"].labels(name).set(0)
        for name, model in models.ready_models():
            card, runtime = model.card, model.card.runtime_config
            values = {
                "ready": 1,
                "context_length": model.max_context_length,
                "kv_cache_block_size": card.kv_cache_block_size,
                "total_kv_blocks": runtime.total_kv_blocks,
                "max_num_seqs": runtime.max_num_seqs,
                "max_num_batched_tokens": runtime.max_num_batched_tokens,
                "migration_limit": card.migration_limit,
            }
            for gauge, value in values.items():
                self.model_gauges[gauge].labels(name).set(value or 0)

    def _observe_output(self, of_model: _OfModel, record: RequestRecord) -> None:
        of_model.ttft.observe(record.first_token_at - record.started_at)
        of_model.output.observe(record.num_output_tokens)
        of_model.output_tokens.inc(record.num_output_tokens)
        of_model.tokens_out.inc(record.num_output_tokens)
        if record.num_output_tokens > 1 and record.last_token_at:
            num_gaps = record.num_output_tokens - 1
            of_model.itl.observe((record.last_token_at - record.first_token_at) / num_gaps, num_gaps)
        if record.num_cached_tokens is not None:
            of_model.cached.observe(record.num_cached_tokens)

    def _of_model(self, model: str) -> _OfModel:
        of_model = self._models.get(model)
        if of_model is None:
            of_model = self._models[model] = _OfModel(self, model)
        return of_model


def error_type_of(error: DynamoError) -> str:
    return _ERROR_TYPES.get(error.status, "validation" if 400 <= error.status < 500 else "internal")


def _request_type(record: RequestRecord) -> str:
    return "stream" if record.is_stream else "unary"
