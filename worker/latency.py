"""How long the simulated device takes for a step: round figures of the order of an 8B model on one large GPU."""

from __future__ import annotations

from dataclasses import dataclass

PREFILL_MS = 15.0
PREFILL_MS_PER_TOKEN = 0.015
PREFILL_MS_PER_TOKEN_SQUARED = 4e-7
DECODE_MS = 5.5
DECODE_MS_AT_FULL_CACHE = 25.0  # on top, in proportion to the share of the cache in use


@dataclass(frozen=True)
class LatencyModel:
    """A ratio of 0 means that nothing takes any time; `decode_speedup_ratio` multiplies, for decode steps only."""

    speedup_ratio: float = 1.0
    decode_speedup_ratio: float = 1.0

    def step_s(self, num_prefill_tokens: int, num_decodes: int, cache_usage: float) -> float:
        if self.speedup_ratio == 0:
            return 0.0
        ms = 0.0
        if num_prefill_tokens:
            ms += PREFILL_MS + num_prefill_tokens * PREFILL_MS_PER_TOKEN
            ms += num_prefill_tokens**2 * PREFILL_MS_PER_TOKEN_SQUARED
        if num_decodes:
            ms += (DECODE_MS + cache_usage * DECODE_MS_AT_FULL_CACHE) / self.decode_speedup_ratio
        return ms / 1000 / self.speedup_ratio
