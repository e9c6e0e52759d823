"""What a request's answer has to be read for, beyond its text: reasoning and tool calls.

    text of a delta → reasoning parser → tool-call parser → parts of a message

Which parsers those are is decided here, once per request: by the model's card, by its chat template, and by what the
request asks for.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TypeAlias

from dynamo.frontend.forced_calls import forced_functions
from dynamo.frontend.model import Model
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.parsers.context import Functions, ReasoningContext
from dynamo.frontend.parsers.message import MessageParser, MessagePart, merged
from dynamo.frontend.parsers.parts import Parser, Reasoning
from dynamo.frontend.parsers.reasoning.unless_json import UnlessJson
from dynamo.frontend.parsers.thinking import wants_thinking
from dynamo.frontend.parsers.tools.guided import named_call, required_calls
from dynamo.frontend.postprocess import Delta

log = logging.getLogger("dynamo.parsers")

MAX_MODELS_LOGGED = 1024
MAX_PIECE = 8192
"""Characters that parsers read at once. What is left is copied at each marker, so a long text is read in pieces."""

PROMPT_END = 64
"""Characters of a rendered prompt that a reasoning parser may look at: it may end inside of reasoning."""

ReaderFactory: TypeAlias = Callable[[], "MessageReader"]
CountTokens: TypeAlias = Callable[[str], int]


class MessageReader:
    """Reads one choice. `read` turns the text of each delta into parts; the last has a finish reason.

    A parser that raises takes no answer down: from the delta at which it does, all text is content, and what it held
    back is lost. `on_failure` is called while that exception is handled.
    """

    __slots__ = (
        "_count_tokens",
        "_is_reasoning",
        "_num_reasoning_tokens",
        "_num_undecided",
        "_on_failure",
        "_parser",
        "has_failed",
    )

    def __init__(
        self, make_parser: Callable[[], MessageParser], count_tokens: CountTokens, on_failure: Callable[[], None]
    ) -> None:
        self._count_tokens = count_tokens
        self._on_failure = on_failure
        self.has_failed = False
        self._is_reasoning: bool | None = None  # None until there is something to tell
        self._num_undecided = 0
        self._num_reasoning_tokens = 0
        try:
            self._parser = make_parser()
        except Exception:  # parsers may be of other packages
            self._give_up()

    def read(self, delta: Delta) -> None:
        text = delta.text
        try:
            parts = self._parts_of(text) if text else []
            if delta.finish_reason is not None:
                parts = merged(parts + self._parser.flush())
        except Exception:  # as above, and no bug of our own parsers is worth an answer
            self._give_up()
            parts = [text] if text else []
        if delta.finish_reason == "stop" and self._parser.has_calls:
            delta.finish_reason = "tool_calls"
        is_content = len(parts) == 1 and type(parts[0]) is str
        if not (is_content and self._is_reasoning is False) and delta.num_tokens:
            self._count(parts, delta.num_tokens)
        if is_content:
            delta.text = parts[0]  # type: ignore[assignment]  # as was just seen
        else:
            delta.text, delta.parts = "", parts or None

    def take_reasoning_tokens(self) -> int:
        """Output tokens spent on reasoning since the last call, markers included."""
        num_tokens, self._num_reasoning_tokens = self._num_reasoning_tokens, 0
        return num_tokens

    def _parts_of(self, text: str) -> list[MessagePart]:
        push = self._parser.push
        if len(text) <= MAX_PIECE:
            return push(text)
        pieces = (text[at : at + MAX_PIECE] for at in range(0, len(text), MAX_PIECE))
        return merged([part for piece in pieces for part in push(piece)])

    def _give_up(self) -> None:
        self.has_failed = True
        self._parser = MessageParser((), _new_call_id)
        self._on_failure()

    def _count(self, parts: list[MessagePart], num_tokens: int) -> None:
        if not parts:
            if self._is_reasoning is None:
                self._num_undecided += num_tokens
            elif self._is_reasoning:
                self._num_reasoning_tokens += num_tokens
            return
        self._num_reasoning_tokens += self._num_thought(parts, num_tokens)
        self._num_undecided = 0
        self._is_reasoning = isinstance(parts[-1], Reasoning)

    def _num_thought(self, parts: list[MessagePart], num_tokens: int) -> int:
        """Of a delta and what was undecided before it. Where reasoning begins or ends within the delta it is told apart
        by its text, a marker being one token; a marker whose delta had nothing else to tell was counted with that."""
        thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
        if not thought and not self._is_reasoning:
            return 0
        if isinstance(parts[-1], Reasoning):
            return self._num_undecided + num_tokens
        if not thought:
            is_content = all(isinstance(part, str) for part in parts)
            rest = "".join(part for part in parts if isinstance(part, str))
            return 1 if is_content and num_tokens > self._count_tokens(rest) else 0
        num_markers = 1 if self._is_reasoning or self._num_undecided else 2
        return self._num_undecided + min(num_tokens, self._count_tokens(thought) + num_markers)


def reader_of_message(
    model: Model, request: ChatCompletionRequest, prompt_end: str, *, must_be_json: bool = False
) -> ReaderFactory | None:
    """None where an answer of `model` is nothing but text. `prompt_end` is empty where the client sent tokens."""
    stages = [*_reasoning_stage(model, request, prompt_end, must_be_json), *_tool_stage(model, request)]
    if not stages:
        return None
    return partial(_make_reader, stages, model)


def _make_reader(stages: list[Callable[[], Parser]], model: Model) -> MessageReader:
    return MessageReader(
        lambda: MessageParser([stage() for stage in stages], _new_call_id),
        lambda text: len(model.tokenizer.encode(text, False)) >> 2,
        partial(_log_failure, model.name, model.mdcsum),
    )


@lru_cache(MAX_MODELS_LOGGED)  # once for each model: what fails for one answer fails for many
def _log_failure(model: str, mdcsum: str) -> None:
    log.exception("model %r: a parser failed; the rest of such an answer is passed on as content", model)


def _reasoning_stage(
    model: Model, request: ChatCompletionRequest, prompt_end: str, must_be_json: bool
) -> Iterator[Callable[[], Parser]]:
    factory = model.reasoning_parser
    if factory is None:
        return
    context = ReasoningContext(prompt_end, wants_thinking(request.template_args))
    if must_be_json:
        yield lambda: UnlessJson(factory(context))
    else:
        yield partial(factory, context)


def _tool_stage(model: Model, request: ChatCompletionRequest) -> Iterator[Callable[[], Parser]]:
    """Without tools there is nothing to call, and with tool_choice "none" nothing may be."""
    if not request.tools or request.tool_choice == "none":
        return
    functions = Functions(request.tools)
    own = None if model.tool_parser is None else partial(model.tool_parser, functions)
    if forced_functions(request):
        yield partial(_guided_parser, request, functions, own)
    elif own is not None:
        yield own


def _guided_parser(request: ChatCompletionRequest, functions: Functions, own: Callable[[], Parser] | None) -> Parser:
    """Of an answer that must be a call. It may be in the model's own format all the same."""
    otherwise = None if own is None else own()
    if isinstance(request.tool_choice, dict):
        return named_call(request.tool_choice["function"]["name"], otherwise)
    return required_calls(functions, otherwise)


def _new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
