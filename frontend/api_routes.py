"""The routes of the APIs that ask models: which path is which mouth."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from msgspec import Struct

from dynamo.frontend.anthropic import MessagesMouth
from dynamo.frontend.body_fields import RequestPolicy
from dynamo.frontend.config import MIB, FrontendConfig
from dynamo.frontend.dispatch_events import Dispatches
from dynamo.frontend.embeddings import Embeddings
from dynamo.frontend.error_formats import ErrorFormats
from dynamo.frontend.inference import Handler, Inference
from dynamo.frontend.mouths import ChatMouth, CompletionMouth, Mouth
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.responses import ResponsesMouth, StoredResponses
from dynamo.frontend.responses_store import ResponseStore
from dynamo.frontend.token_counting import InputTokens, ResponseInputTokens, TokenCounting
from dynamo.frontend.tokenization import Tokenization
from dynamo.shared.config import ConfigError

Routes: TypeAlias = dict[str, dict[str, Handler]]
"""Handlers by path and method. A path that ends with a slash serves all below it that has no handler of its own."""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


class ApiRoutes:
    def __init__(
        self, inference: Inference, pipeline: Pipeline, policy: RequestPolicy, errors: ErrorFormats, run_dir: Path
    ) -> None:
        self._inference = inference
        self._pipeline = pipeline
        self._policy = policy
        self._errors = errors
        self._run_dir = run_dir

    def of(self, config: FrontendConfig) -> Routes:
        """Raises ConfigError."""
        routes: Routes = {
            CHAT: self._generates(self._chat(config)),
            COMPLETIONS: self._generates(CompletionMouth(self._policy, self._errors.of(COMPLETIONS))),
            EMBEDDINGS: {"POST": partial(self._inference.serve_whole, Embeddings(self._policy))},
            **self._tokenization(),
            **self._responses(_store(config, self._run_dir)),
        }
        return routes | self._messages(config.strip_anthropic_preamble) if config.enable_anthropic_api else routes

    def _chat(self, config: FrontendConfig) -> ChatMouth:
        dispatches = Dispatches(config.enable_streaming_tool_dispatch, config.enable_streaming_reasoning_dispatch)
        return ChatMouth(self._policy, self._errors.of(CHAT), config.reasoning_field_name, dispatches)

    def _tokenization(self) -> Routes:
        """At vLLM's paths, and below /v1 where clients have a base URL that ends so."""
        routes = Tokenization(self._pipeline.models, trusts_chat_templates=self._policy.trusts_chat_templates)
        handlers: Routes = {"/tokenize": {"POST": routes.tokenize}, "/detokenize": {"POST": routes.detokenize}}
        return handlers | {f"/v1{path}": methods for path, methods in handlers.items()}

    def _responses(self, store: ResponseStore | None) -> Routes:
        mouth = ResponsesMouth(self._policy, store, self._errors.of(RESPONSES))
        routes: Routes = {
            RESPONSES: self._generates(mouth),
            f"{RESPONSES}/input_tokens": self._counts(mouth.decode_prompt, ResponseInputTokens),
        }
        if store is not None:
            stored = StoredResponses(store)
            routes[f"{RESPONSES}/"] = {"GET": stored.get, "DELETE": stored.delete}
        return routes

    def _messages(self, strips_preamble: bool) -> Routes:
        mouth = MessagesMouth(self._policy, self._errors.of(MESSAGES), strips_preamble=strips_preamble)
        return {
            MESSAGES: self._generates(mouth),
            f"{MESSAGES}/count_tokens": self._counts(mouth.decode_prompt, InputTokens),
        }

    def _generates(self, mouth: Mouth[Any]) -> dict[str, Handler]:
        return {"POST": partial(self._inference.serve, mouth)}

    def _counts(
        self, decode: Callable[[bytes], ChatCompletionRequest], answer: Callable[[int], Struct]
    ) -> dict[str, Handler]:
        return {"POST": TokenCounting(self._pipeline, decode, answer).serve}


def _store(config: FrontendConfig, run_dir: Path) -> ResponseStore | None:
    if not config.responses_store_mb:
        return None
    path = Path(config.responses_store_path or run_dir / "responses.sqlite")
    try:
        return ResponseStore(path, int(config.responses_store_mb * MIB))
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"--responses-store-path {path}: {error}") from None
