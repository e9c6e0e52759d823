"""What is measured: loads, the figures read from each, and the bar that each ratio ours/anchor has to meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Figure:
    """`name` is a field of `Sample`. `bars`: by tokenizer of the anchor, the ratio ours/anchor not to exceed."""

    name: str
    label: str
    bars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A closed-loop load of chat completions on kept-alive connections. `tokenizers`: the anchor's to compare with."""

    name: str
    figures: tuple[Figure, ...] = ()
    mode: str = "burst"
    concurrency: int = 16
    tokens_in: int = 200
    tokens_out: int = 200
    shared_tokens: int = 0
    is_streamed: bool = True
    seconds: float = 4.0
    tokenizers: tuple[str, ...] = ("default",)


def _requests(**bars: float) -> tuple[Figure, ...]:
    return Figure("cpu_us_per_request", "CPU µs per request", bars), Figure("requests_per_s", "requests/s")


def _tokens(**bars: float) -> tuple[Figure, ...]:
    return (
        Figure("cpu_us_per_token", "CPU µs per token", bars),
        Figure("tokens_per_s", "tokens/s"),
        Figure("events_per_token", "SSE events per token"),
    )


def _ttft(label: str, **bars: float) -> tuple[Figure, ...]:
    return Figure("ttft_p50_ms", f"{label} p50 ms", bars), Figure("ttft_p99_ms", f"{label} p99 ms")


def _bursts(concurrency: int) -> Case:
    return Case(name=f"bursts 200/200, c={concurrency}", figures=_tokens(default=0.4), concurrency=concurrency)


def _paced(concurrency: int) -> Case:
    return Case(
        name=f"paced 200/200, c={concurrency}",
        figures=_tokens(default=0.6),
        mode="paced",
        concurrency=concurrency,
        seconds=5.0,
    )


def _long_prompt(label: str, shared_tokens: int = 0) -> Case:
    return Case(
        name=f"8k prompt, {label}",
        figures=_requests(default=0.1, fastokens=1.0),
        tokens_in=8000,
        tokens_out=1,
        shared_tokens=shared_tokens,
        is_streamed=False,
        tokenizers=("default", "fastokens"),
    )


SHARED_TOKENS = 7500

CASES = (
    Case(name="unary 50/1, c=16", figures=_requests(default=0.7), tokens_in=50, tokens_out=1, is_streamed=False),
    *(_bursts(concurrency) for concurrency in (1, 16, 64)),
    *(_paced(concurrency) for concurrency in (1, 16, 64)),
    replace(_bursts(64), name="bursts, parsers on, c=64", mode="burst parsed"),
    replace(_paced(64), name="paced, parsers on, c=64", mode="paced parsed"),
    Case(
        name="unary 50/1, c=1",
        figures=(*_ttft("latency"), *_requests()),
        concurrency=1,
        tokens_in=50,
        tokens_out=1,
        is_streamed=False,
    ),
    Case(
        name="kept-alive stream 50/8, c=1",
        figures=_ttft("TTFT", default=0.25),
        mode="paced",
        concurrency=1,
        tokens_in=50,
        tokens_out=8,
    ),
    _long_prompt("unique"),
    _long_prompt("7.5k shared", shared_tokens=SHARED_TOKENS),
)

# The first request holds the shared prefix: the anchor's tokenizer cache learns prefixes only from a request of which
# it knows nothing, and after any ChatML prompt it knows the token that all others begin with.
FIRST_REQUEST = Case(
    name="first request",
    tokens_in=SHARED_TOKENS + 100,
    tokens_out=1,
    shared_tokens=SHARED_TOKENS,
    is_streamed=False,
)

# Before memory is read: short and long prompts, streams and plain answers, so that what is loaded lazily is loaded.
EXERCISE = (
    Case(name="unary", tokens_in=50, tokens_out=1, is_streamed=False, seconds=2.0),
    Case(name="stream", concurrency=64, seconds=2.0),
    Case(name="long prompt", tokens_in=8000, tokens_out=1, is_streamed=False, seconds=2.0),
)
