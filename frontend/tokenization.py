"""`POST /tokenize` and `/detokenize`, in vLLM's shapes. The model's own tokenizer answers; no worker is asked."""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from dynamo.frontend.inference import JSON, RequestIds, require_json
from dynamo.frontend.model import Model
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.openai_diagnosis import explain
from dynamo.frontend.openai_requests import MAX_TOOLS, ChatCompletionRequest, JsonObject, Message, NonEmptyStr, TokenId
from dynamo.frontend.openai_rules import check_chat
from dynamo.frontend.preprocess import encode_text, render_chat, unpack_token_ids
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.shared.errors import InvalidRequest

MAX_TOKENS = 2**20  # in one request to detokenize

T = TypeVar("T")


class TokenizeRequest(Struct, kw_only=True):
    """A `prompt`, or the `messages` of a chat with all that its template is given. `model` may be left out where only
    one is served. Special tokens are added to a prompt by default, to a chat only if asked for."""

    model: NonEmptyStr | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: Annotated[list[JsonObject], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: NonEmptyStr | None = None
    chat_template_kwargs: JsonObject | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    def chat(self, model: str) -> ChatCompletionRequest:
        """The chat that these messages are of."""
        assert self.messages is not None
        return ChatCompletionRequest(
            model=model,
            messages=self.messages,
            tools=self.tools,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
        )


class TokenizeResponse(Struct):
    """`max_model_len` is null where nobody knows it, `token_strs` unless asked for. What is not UTF-8 by itself, as a
    part of a character, is U+FFFD there."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    model: NonEmptyStr | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]


class DetokenizeResponse(Struct):
    """Special tokens are part of the text."""

    prompt: str


class Tokenization:
    """The handlers of both routes."""

    def __init__(self, models: ModelRegistry, *, trusts_chat_templates: bool = False) -> None:
        self._models = models
        self._trusts_chat_templates = trusts_chat_templates

    async def tokenize(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        request = await _read(exchange, TokenizeRequest)
        _check_prompt(request)
        model = await self._model(request.model)
        tokens = unpack_token_ids(await self._encode(model, request))
        answer = TokenizeResponse(len(tokens), model.max_context_length or None, tokens)
        if request.return_token_strs:
            answer.token_strs = [model.vocabulary.token_bytes(token).decode("utf-8", "replace") for token in tokens]
        exchange.respond(200, JSON + headers, msgspec.json.encode(answer))

    async def detokenize(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        request = await _read(exchange, DetokenizeRequest)
        model = await self._model(request.model)
        _check_tokens(model, request.tokens)
        text = await asyncio.to_thread(_text, model, request.tokens)
        exchange.respond(200, JSON + headers, msgspec.json.encode(DetokenizeResponse(text)))

    async def _encode(self, model: Model, request: TokenizeRequest) -> bytes:
        if request.prompt is not None:
            return await encode_text(model, request.prompt, request.add_special_tokens is not False)
        chat = request.chat(model.name)
        check_chat(chat, trusts_templates=self._trusts_chat_templates)
        return await encode_text(model, render_chat(model, chat), bool(request.add_special_tokens))

    async def _model(self, name: str | None) -> Model:
        """Raises what the registry does, and InvalidRequest for one that only its workers can tokenize for."""
        model = await self._models.get(name or self._only_name(), None)
        model.check_tokenizer()
        return model

    def _only_name(self) -> str:
        names = {model.name for _, model in self._models.ready_models()}
        if len(names) != 1:
            raise InvalidRequest(f"This gateway serves {len(names)} models; say which.", "model", "missing_field")
        return names.pop()


async def _read(exchange: Exchange, kind: type[T]) -> T:
    require_json(exchange)
    body = await exchange.read_body()
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise explain(error, body, kind) from None


def _check_prompt(request: TokenizeRequest) -> None:
    if request.prompt is None and request.messages is None:
        raise InvalidRequest("Either prompt or messages is required.", "prompt", "missing_field")
    if request.prompt is not None and request.messages is not None:
        raise InvalidRequest("prompt and messages exclude each other.", "prompt", "conflicting_fields")


def _check_tokens(model: Model, tokens: list[int]) -> None:
    for index, token in enumerate(tokens):
        if token >= model.vocab_size:
            raise InvalidRequest(
                f"tokens[{index}] is {token}, outside the vocabulary of {model.vocab_size} tokens.",
                f"tokens[{index}]",
                "out_of_range",
            )


def _text(model: Model, tokens: list[int]) -> str:
    detokenizer = model.detokenizer()
    return detokenizer.push(tokens) + detokenizer.flush()
