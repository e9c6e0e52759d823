"""Token ids and logprobs of prompts in an answer, by the names that vLLM gives them."""

from __future__ import annotations

from typing import Any, Protocol

from dynamo.frontend.openai_requests import GenerateRequest
from dynamo.frontend.worker_news import WorkerNews

JsonObject = dict[str, Any]


class Told(Protocol):
    """A delta, or a whole choice."""

    news: WorkerNews | None
    stop_reason: str | int | None


class NewsFields:
    """Which of these fields one request asks for. A field of which nothing is known is left out."""

    def __init__(self, *, token_ids: bool, prompt_logprobs: bool, stop_reason: bool) -> None:
        self._token_ids = token_ids
        self._prompt_logprobs = prompt_logprobs
        self._stop_reason = stop_reason

    def of_chunk(self, told: Told) -> JsonObject:
        """Of a choice in mid-stream."""
        return {"token_ids": told.news.token_ids} if self._token_ids and told.news is not None else {}

    def of_choice(self, told: Told) -> JsonObject:
        """Of a whole choice, or of the chunk that ends one."""
        fields = self.of_chunk(told)
        if self._stop_reason:
            fields["stop_reason"] = told.stop_reason
        return fields

    def of_prompt(self, told: Told) -> JsonObject:
        """In a chat these belong to the answer, in a completion to the choice."""
        fields: JsonObject = {}
        if told.news is None:
            return fields
        if self._token_ids and told.news.prompt_token_ids is not None:
            fields["prompt_token_ids"] = told.news.prompt_token_ids
        if self._prompt_logprobs and told.news.prompt_logprobs is not None:
            fields["prompt_logprobs"] = told.news.prompt_logprobs
        return fields


def news_fields(request: GenerateRequest) -> NewsFields | None:
    """None for a request that asks for nothing of this."""
    stop_reason = request.nvext is not None and "stop_reason" in (request.nvext.extra_fields or ())
    if not (request.return_token_ids or request.prompt_logprobs is not None or stop_reason):
        return None
    return NewsFields(
        token_ids=bool(request.return_token_ids),
        prompt_logprobs=request.prompt_logprobs is not None,
        stop_reason=stop_reason,
    )
