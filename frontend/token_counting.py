"""How many tokens a prompt will have, by the model's own template and tokenizer. No worker is asked."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from dynamo.frontend.inference import JSON, RequestIds, require_json
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.server.exchange import Exchange, HeaderBlock


class TokenCounting:
    """One API's route: `decode` makes the chat of a body, and `answer` the body that tells the number."""

    def __init__(
        self, pipeline: Pipeline, decode: Callable[[bytes], ChatCompletionRequest], answer: Callable[[int], Struct]
    ) -> None:
        self._pipeline = pipeline
        self._decode = decode
        self._answer = answer

    async def serve(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        """Raises what the preparation of that chat raises, except that a prompt may be longer than the context."""
        require_json(exchange)
        chat = self._decode(await exchange.read_body())
        num_tokens = await self._pipeline.count_tokens(chat)
        exchange.respond(200, JSON + headers, msgspec.json.encode(self._answer(num_tokens)))


class InputTokens(Struct):
    """As Anthropic says it."""

    input_tokens: int


class ResponseInputTokens(Struct, tag_field="object", tag="response.input_tokens"):
    """As the Responses API says it."""

    input_tokens: int
