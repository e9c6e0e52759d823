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
from dynamo.frontend.openai_answers import Alternative, TokenLogprob
from dynamo.frontend.parsers.message import MessagePart
from dynamo.shared.errors import BackendFailure
from dynamo.shared.protocol import EngineOutput, TopLogprob

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
    """When a choice ends. Token ids in the two sets stop it; only the visible ones are shown."""

    hidden_ids: frozenset[int] = frozenset()
    visible_ids: frozenset[int] = frozenset()
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


def make_choice(vocabulary: Vocabulary, rules: StopRules, *, skip_special_tokens: bool, with_logprobs: bool) -> Choice:
    detokenizer = vocabulary.detokenizer(skip_special_tokens)
    if rules.strings or with_logprobs:
        return ExactChoice(detokenizer, rules, vocabulary if with_logprobs else None)
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
        if output.finish_reason is not None and self.finish_reason is None:
            self.finish_reason = finish_reason_of(output)
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
                is_visible = token_id in rules.visible_ids
                self.stop_reason = token_id if is_visible else None
                return ids[: position + is_visible]
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
        "_logprobs",
        "_rules",
        "_stop_ids",
        "_stops",
        "_vocabulary",
        "finish_reason",
        "num_tokens",
        "stop_reason",
    )

    def __init__(self, detokenizer: Detokenizer, rules: StopRules, vocabulary: Vocabulary | None) -> None:
        """`vocabulary` is given when logprobs are wanted."""
        self._detokenizer = detokenizer
        self._rules = rules
        self._stop_ids = rules.stop_ids
        self._stops = StopStrings(rules.strings, rules.include_stop_string) if rules.strings else None
        self._vocabulary = vocabulary
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
            if self._vocabulary is not None and output.log_probs is not None and position < len(output.log_probs):
                self._add_logprob(self._vocabulary, token_id, position, output)
        if output.finish_reason is not None and self.finish_reason is None:
            self.finish_reason = finish_reason_of(output)
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
            if token_id not in rules.visible_ids:
                return ""
            self.stop_reason = token_id
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

    def _add_logprob(self, vocabulary: Vocabulary, token_id: int, position: int, output: EngineOutput) -> None:
        assert output.log_probs is not None
        tops = output.top_logprobs[position] if output.top_logprobs and position < len(output.top_logprobs) else []
        own = vocabulary.token_bytes(token_id)
        entry = TokenLogprob(
            own.decode("utf-8", "replace"),
            output.log_probs[position],
            list(own),
            [_alternative(vocabulary, top) for top in tops],
        )
        if self._logprobs is None:
            self._logprobs = []
        self._logprobs.append(entry)


def _alternative(vocabulary: Vocabulary, top: TopLogprob) -> Alternative:
    """A worker that does not detokenize sends no text for its alternatives."""
    raw = top.token.encode() if top.token is not None else vocabulary.token_bytes(top.token_id)
    return Alternative(raw.decode("utf-8", "replace"), top.logprob, list(raw))


def finish_reason_of(output: EngineOutput) -> str:
    """OpenAI's word for the worker's. A worker may also end a stream with an error as its reason."""
    reason = output.finish_reason
    if isinstance(reason, dict):
        raise BackendFailure(reason.get("error", "nothing"))
    return _FINISH_REASONS.get(reason or "", "stop")
