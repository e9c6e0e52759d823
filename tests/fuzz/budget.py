"""How much a fuzz target tries: a little, and always the same, unless FUZZ_EXAMPLES says how many examples it takes."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def budget(num_examples: int) -> settings:
    """`num_examples` where nobody asks for more; then what fails is kept, to be tried first the next time."""
    return settings(
        max_examples=NUM_EXAMPLES or num_examples,
        derandomize=not NUM_EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
