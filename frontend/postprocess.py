"""Worker output to text, for one choice: detokenize, find the end, count. Decides alone when a choice is over.

`push` takes what a worker sent and returns the text that may be shown; `flush` returns what was held back. Which of
the two forms below a choice gets is decided once: `ExactChoice` looks at tokens one by one, which stop strings and
logprobs need.

Stop rules: hidden ids (eos, and stop_token_ids) end the choice unseen; with
include_stop_str_in_output the client's own stop ids and strings are shown; nothing stops before min_tokens; more than
max_tokens is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from dynamo.frontend.detokenizer import Detokenizer, Vocabulary
from dynamo.frontend.openai_answers import TokenLogprob
from dynamo.frontend.parsers.message import MessagePart
from dynamo.frontend.token_logprobs import LogprobReader
from dynamo.frontend.worker_news import WorkerNews
from dynamo.shared.errors import BackendFailure
from dynamo.shared.protocol import EngineOutput

_FINISH_REASONS = {
    "eos": "stop",
    "stop": "stop",
    "cancelled": "stop",
    "abort": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
}


class StopRules(Struct, frozen=True, gc=False):
    """When a choice ends. Token ids in the first two sets stop it; only the visible ones are shown, only the named ones
    are told as the reason."""

    hidden_ids: frozenset[int] = frozenset()
    visible_ids: frozenset[int] = frozenset()
    named_ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    include_stop_string: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.hidden_ids | self.visible_ids if self.visible_ids else self.hidden_ids


class Delta(Struct, gc=False):
    """News of one choice. `finish_reason` comes once, with its last text. `parts` replaces `text` where there is more
    to tell than content."""

    index: int
    text: str
    num_tokens: int
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    parts: list[MessagePart] | None = None
    news: WorkerNews | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.parts or self.logprobs)


class Choice(Protocol):
    """`finish_reason` is None until the choice is over; then the worker may be killed."""

    num_tokens: int
    finish_reason: str | None
    stop_reason: str | int | None

    def push(self, output: EngineOutput) -> str: ...

    def flush(self) -> str: ...

    def take_logprobs(self) -> list[TokenLogprob] | None: ...


def make_choice(
    vocabulary: Vocabulary, rules: StopRules, *, skip_special_tokens: bool, logprobs: LogprobReader | None
) -> Choice:
    """`logprobs` is given when they are wanted."""
    detokenizer = vocabulary.detokenizer(skip_special_tokens)
    if rules.strings or logprobs is not None:
        return ExactChoice(detokenizer, rules, logprobs)
    return PlainChoice(detokenizer, rules)


class PlainChoice:
    """All tokens of an item at once: the path nearly every token takes."""

    __slots__ = ("_detokenizer", "_max_tokens", "_rules", "_stop_ids", "finish_reason", "num_tokens", "stop_reason")

    def __init__(self, detokenizer: Detokenizer, rules: StopRules) -> None:
        self._detokenizer = detokenizer
        self._rules = rules
        self._stop_ids = rules.stop_ids
        self._max_tokens = rules.max_tokens if rules.max_tokens is not None else 1 << 62
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    def push(self, output: EngineOutput) -> str:
        ids: Sequence[int] = output.token_ids
        num_tokens = self.num_tokens + len(ids)
        if self._stop_ids.isdisjoint(ids) and num_tokens <= self._max_tokens:
            self.num_tokens = num_tokens
        else:
            ids = self._cut(ids)
        text = self._detokenizer.push(ids) if ids else output.text or ""
        if output.finish_reason is not None:
            if self.finish_reason is None:
                self.finish_reason = finish_reason_of(output)
            if self.stop_reason is None:
                self.stop_reason = output.stop_reason
        return text

    def flush(self) -> str:
        return self._detokenizer.flush()

    def take_logprobs(self) -> list[TokenLogprob] | None:
        return None

    def _cut(self, ids: Sequence[int]) -> Sequence[int]:
        """Up to the token that ends the choice, that one included if it is shown."""
        rules = self._rules
        for position, token_id in enumerate(ids):
            if self.num_tokens >= self._max_tokens:
                self.finish_reason = "length"
                return ids[:position]
            self.num_tokens += 1
            if token_id in self._stop_ids and self.num_tokens > rules.min_tokens:
                self.finish_reason = "stop"
                self.stop_reason = token_id if token_id in rules.named_ids else None
                return ids[: position + (token_id in rules.visible_ids)]
        return ids


class StopStrings:
    """Holds back what may be the beginning of a stop string, and not one character more."""

    __slots__ = ("_held", "_include", "_strings", "matched")

    def __init__(self, strings: Sequence[str], include: bool) -> None:
        self._strings = strings
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        text = self._held + text
        found = [(at, stop) for stop in self._strings if (at := text.find(stop)) >= 0]
        if found:
            at, self.matched = min(found, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self._held = ""
            return text[: at + len(self.matched)] if self._include else text[:at]
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def pass_through(self, text: str) -> str:
        """Text that must not stop: before min_tokens."""
        text, self._held = self._held + text, ""
        return text

    def flush(self) -> str:
        return self.pass_through("")

    def _num_held(self, text: str) -> int:
        longest = min(len(text), max(map(len, self._strings)) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._strings):
                return length
        return 0


class ExactChoice:
    """Token by token: a stop string is found at the token that completes it, so the count is exact."""

    __slots__ = (
        "_detokenizer",
        "_logprob_reader",
        "_logprobs",
        "_rules",
        "_stop_ids",
        "_stops",
        "finish_reason",
        "num_tokens",
        "stop_reason",
    )

    def __init__(self, detokenizer: Detokenizer, rules: StopRules, logprobs: LogprobReader | None) -> None:
        self._detokenizer = detokenizer
        self._rules = rules
        self._stop_ids = rules.stop_ids
        self._stops = StopStrings(rules.strings, rules.include_stop_string) if rules.strings else None
        self._logprob_reader = logprobs
        self._logprobs: list[TokenLogprob] | None = None
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    def push(self, output: EngineOutput) -> str:
        pieces = [output.text] if output.text and not output.token_ids else []
        for position, token_id in enumerate(output.token_ids):
            if self.finish_reason is not None:
                break
            pieces.append(self._push_token(token_id))
            if self._logprob_reader is not None:
                self._add_logprob(self._logprob_reader.of_token(output, position))
        if output.finish_reason is not None:
            if self.finish_reason is None:
                self.finish_reason = finish_reason_of(output)
            if self.stop_reason is None:
                self.stop_reason = output.stop_reason
        return "".join(pieces)

    def flush(self) -> str:
        if self._stops is None:
            return self._detokenizer.flush()
        if self._stops.matched is not None:
            return ""
        text = self._stops.push(self._detokenizer.flush())
        return text + self._stops.flush()

    def take_logprobs(self) -> list[TokenLogprob] | None:
        logprobs, self._logprobs = self._logprobs, None
        return logprobs

    def _push_token(self, token_id: int) -> str:
        rules = self._rules
        if rules.max_tokens is not None and self.num_tokens >= rules.max_tokens:
            self.finish_reason = "length"
            return ""
        self.num_tokens += 1
        may_stop = self.num_tokens > rules.min_tokens
        if may_stop and token_id in self._stop_ids:
            self.finish_reason = "stop"
            self.stop_reason = token_id if token_id in rules.named_ids else None
            if token_id not in rules.visible_ids:
                return ""
        return self._match(self._detokenizer.push((token_id,)), may_stop)

    def _match(self, text: str, may_stop: bool) -> str:
        if self._stops is None:
            return text
        if not may_stop:
            return self._stops.pass_through(text)
        text = self._stops.push(text)
        if self._stops.matched is not None:
            self.finish_reason, self.stop_reason = "stop", self._stops.matched
        return text

    def _add_logprob(self, entry: TokenLogprob | None) -> None:
        if entry is None:
            return
        if self._logprobs is None:
            self._logprobs = []
        self._logprobs.append(entry)


def finish_reason_of(output: EngineOutput) -> str:
    """OpenAI's word for the worker's. A worker may also end a stream with an error as its reason."""
    reason = output.finish_reason
    if isinstance(reason, dict):
        raise BackendFailure(reason.get("error", "nothing"))
    return _FINISH_REASONS.get(reason or "", "stop")
