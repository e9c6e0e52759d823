"""Request bodies of a known length in tokens: words of one token each, joined cheaply from prepared pieces."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import model
from bench.cases import Case

NUM_WORDS = 4000
PIECE_WORDS = 40
NUM_PIECES = 500


class Prompts:
    """Deterministic by seed; every prompt differs from its first word on, so that no cache helps unless asked to."""

    def __init__(self, model_dir: Path, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._words = [text for _id, text in model.words(model_dir, NUM_WORDS)]
        self._pieces = ["".join(self._random.choices(self._words, k=PIECE_WORDS)) for _ in range(NUM_PIECES)]

    def shared(self, num_tokens: int) -> str:
        """The same words at every call; at most NUM_PIECES * PIECE_WORDS tokens."""
        return "".join(self._pieces[: num_tokens // PIECE_WORDS])

    def text(self, num_tokens: int) -> str:
        num_pieces, rest = divmod(num_tokens, PIECE_WORDS)
        head = self._random.choices(self._words, k=rest or PIECE_WORDS)
        return "".join(head + self._random.choices(self._pieces, k=num_pieces if rest else num_pieces - 1))


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


class Bodies:
    """An endless iterator of chat completion bodies of a case's `tokens_in`, template included.

    With `shared_tokens` the first that many are the same in all of them, as a system message.
    """

    MESSAGE_OVERHEAD = 5  # <|im_start|> role newline ... <|im_end|> newline
    GENERATION_OVERHEAD = 4  # <|im_start|> assist ant newline

    def __init__(self, prompts: Prompts, case: Case) -> None:
        self._prompts = prompts
        self._num_tokens = case.tokens_in - case.shared_tokens - self.MESSAGE_OVERHEAD - self.GENERATION_OVERHEAD
        body: dict[str, Any] = {"model": case.mode, "max_tokens": case.tokens_out, "stream": case.is_streamed}
        if case.is_streamed:
            body["stream_options"] = {"include_usage": True}
        if case.mode.endswith("parsed"):
            body["tools"] = TOOLS
        shared = [{"role": "system", "content": prompts.shared(case.shared_tokens - self.MESSAGE_OVERHEAD)}]
        body["messages"] = [*(shared if case.shared_tokens else []), {"role": "user", "content": "@"}]
        self._before, self._after = json.dumps(body).split("@")

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return f"{self._before}{self._prompts.text(self._num_tokens)}{self._after}".encode()
