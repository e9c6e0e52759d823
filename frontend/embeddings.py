"""`POST /v1/embeddings`: all inputs of a request in one call of one worker.

Workers that take tokens are asked with `TokenCall`; those that take text get the body as it was sent and answer in
OpenAI's words.
"""

from __future__ import annotations

import asyncio
from array import array
from base64 import b64encode
from time import perf_counter
from typing import Any, ClassVar, Self, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from dynamo.frontend.body_fields import DEFAULT_POLICY, RequestPolicy
from dynamo.frontend.embedding_requests import EmbeddingRequest, decode_embedding
from dynamo.frontend.kept_output import KeptOutput
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.model import Model
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.preprocess import context_limit, encode_text, unpack_token_ids
from dynamo.frontend.router_client import Placement
from dynamo.frontend.routing_headers import RoutingHeaders
from dynamo.frontend.routing_wishes import RoutingWishes, routing_wishes
from dynamo.frontend.text_body import guessed_tokens, sent_fields
from dynamo.shared.errors import BackendFailure, InvalidRequest
from dynamo.shared.protocol import ResponseItem
from dynamo.shared.request_plane.stream import ItemDecoders

Vector: TypeAlias = str | list[float]
"""Base64 of little-endian 32-bit floats, as nearly all workers send it, or the numbers."""


class TokenCall(Struct):
    """What a worker with model_input Tokens is asked."""

    token_ids: list[list[int]]
    model: str
    dimensions: int | None
    mdc_sum: str
    annotations: list[str]
    encoding_format: str | UnsetType = UNSET
    truncate_prompt_tokens: int | UnsetType = UNSET


class EmbeddedTokens(Struct):
    """What it answers, once."""

    embeddings: list[Vector]
    prompt_tokens: int = 0
    total_tokens: int = 0

    @property
    def vectors(self) -> list[Vector]:
        return self.embeddings

    @property
    def usage(self) -> EmbeddingUsage:
        return EmbeddingUsage(self.prompt_tokens, self.total_tokens)


class EmbeddingUsage(Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class Embedding(Struct):
    """`embedding` is a string where base64 was asked for, else an array of numbers."""

    index: int
    object: str
    embedding: Vector


class EmbeddingResponse(Struct):
    """What clients get, and what a worker with model_input Text answers, once."""

    object: str
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage

    @property
    def vectors(self) -> list[Vector]:
        return [entry.embedding for entry in sorted(self.data, key=lambda entry: entry.index)]


Answered: TypeAlias = EmbeddedTokens | EmbeddingResponse

_OF_TOKENS: ItemDecoders[EmbeddedTokens] = {
    "msgpack": msgspec.msgpack.Decoder(ResponseItem[EmbeddedTokens]).decode,
    "json": msgspec.json.Decoder(ResponseItem[EmbeddedTokens]).decode,
}
_OF_TEXT: ItemDecoders[EmbeddingResponse] = {
    "msgpack": msgspec.msgpack.Decoder(ResponseItem[EmbeddingResponse]).decode,
    "json": msgspec.json.Decoder(ResponseItem[EmbeddingResponse]).decode,
}


class EmbeddingErrand(Struct):
    """`call` is what the worker is asked; its prefix cache knows nothing of such prompts, so none are hashed."""

    model: Model
    wishes: RoutingWishes
    call: TokenCall | dict[str, Any]
    num_inputs: int
    num_tokens: int
    block_hashes: bytes = b""

    @property
    def is_guided(self) -> bool:
        return False

    @property
    def items(self) -> ItemDecoders[Any]:
        return _OF_TOKENS if isinstance(self.call, TokenCall) else _OF_TEXT

    def hash_blocks(self, block_size: int) -> None:
        """There is nothing to find in a cache."""

    def continued(self, output: bytes) -> Self:
        """There is no output to continue."""
        return self

    def wire_request(self, codec: str, dp_rank: int | None = None) -> TokenCall | dict[str, Any]:
        return self.call


class EmbeddingAnswer:
    """Takes the one item of an answer."""

    def __init__(self, num_inputs: int, kept: KeptOutput) -> None:
        self._num_inputs = num_inputs
        self._kept = kept
        self._answered: Answered | None = None
        self.is_ended_by_worker = False

    def follow(self, placement: Placement) -> None:
        """Another worker is asked the same."""

    def take(self, outputs: list[Answered]) -> bool:
        self._answered = outputs[-1]
        self._kept.drop()
        return True

    async def ready(self) -> bool:
        return True

    def cut_off(self) -> bool:
        return self._answered is not None

    def finish(self) -> None:
        if self._answered is None:
            raise BackendFailure("The worker completed its answer without an embedding.")
        num_vectors = len(self._answered.vectors)
        if num_vectors != self._num_inputs:
            raise BackendFailure(f"The worker sent {num_vectors} embeddings of {self._num_inputs} inputs.")

    @property
    def answered(self) -> Answered:
        """Once it is finished."""
        assert self._answered is not None
        return self._answered


class Embeddings:
    """What `inference` serves at this route."""

    endpoint: ClassVar[str] = "embeddings"

    def __init__(self, policy: RequestPolicy = DEFAULT_POLICY) -> None:
        self._policy = policy

    def decode(self, body: bytes) -> EmbeddingRequest:
        return decode_embedding(body, self._policy)

    async def prepare(
        self, pipeline: Pipeline, request: EmbeddingRequest, record: RequestRecord, headers: RoutingHeaders
    ) -> EmbeddingErrand:
        model = await pipeline.model(request.model, "Embedding", record)
        wishes = routing_wishes(request, headers, model.lora_name)
        if model.takes_text:
            body = sent_fields(request)
            errand = EmbeddingErrand(model, wishes, body, len(request.inputs), guessed_tokens(body))
        else:
            call = await _token_call(model, request)
            num_tokens = sum(map(len, call.token_ids))
            errand = EmbeddingErrand(model, wishes, call, len(call.token_ids), num_tokens)
            record.num_prompt_tokens = num_tokens
        record.prepared_at = perf_counter()
        return errand

    async def answer(
        self, pipeline: Pipeline, request: EmbeddingRequest, errand: EmbeddingErrand, record: RequestRecord
    ) -> bytes:
        """The body."""
        embedded: EmbeddingAnswer = await pipeline.send(
            errand, record, lambda kept: EmbeddingAnswer(errand.num_inputs, kept)
        )
        answered = embedded.answered
        if errand.model.takes_text:
            record.num_prompt_tokens = answered.usage.prompt_tokens
        if request.encoding_format == "base64":
            vectors = list(map(_base64, answered.vectors))
        else:
            vectors = await asyncio.to_thread(_numbers, answered.vectors)
        return _body(record.model, vectors, answered.usage)


async def _token_call(model: Model, request: EmbeddingRequest) -> TokenCall:
    token_ids = [await _token_ids(model, item, request) for item in request.inputs]
    for index, ids in enumerate(token_ids):
        _check_length(model, len(ids), "input" if len(token_ids) == 1 else f"input[{index}]")
    return TokenCall(
        token_ids=token_ids,
        model=model.name,
        dimensions=request.dimensions,
        mdc_sum=model.mdcsum,
        annotations=(request.nvext and request.nvext.annotations) or [],
        encoding_format=request.encoding_format or UNSET,
        truncate_prompt_tokens=UNSET if request.truncate_prompt_tokens is None else request.truncate_prompt_tokens,
    )


async def _token_ids(model: Model, item: str | list[int], request: EmbeddingRequest) -> list[int]:
    if isinstance(item, str):
        ids = unpack_token_ids(await encode_text(model, item, request.add_special_tokens is not False))
    elif (highest := max(item)) < model.vocab_size:
        ids = item
    else:
        raise InvalidRequest(f"Token id {highest} is outside the vocabulary of {model.vocab_size} tokens.", "input")
    limit = request.truncate_prompt_tokens
    if limit == -1:
        limit = model.max_context_length or None
    return ids[:limit]


def _check_length(model: Model, num_tokens: int, param: str) -> None:
    limit = model.max_context_length
    if num_tokens == 0:
        raise InvalidRequest(f"{param} has no tokens.", param, "out_of_range")
    if limit and num_tokens > limit:
        raise InvalidRequest(
            f"{param} is too long: it has {num_tokens} tokens, and {context_limit(limit)}.",
            param,
            "context_length_exceeded",
        )


def _base64(vector: Vector) -> bytes:
    return msgspec.json.encode(vector if isinstance(vector, str) else b64encode(array("f", vector)).decode())


def _numbers(vectors: list[Vector]) -> list[bytes]:
    """Slow enough, the first time above all, for a thread."""
    from dynamo.frontend.vectors import json_numbers

    return list(map(json_numbers, vectors))


def _body(model: str, vectors: list[bytes], usage: EmbeddingUsage) -> bytes:
    data = b",".join(
        b'{"index":%d,"object":"embedding","embedding":%b}' % (index, vector) for index, vector in enumerate(vectors)
    )
    return b'{"object":"list","model":%b,"data":[%b],"usage":%b}' % (
        msgspec.json.encode(model),
        data,
        msgspec.json.encode(usage),
    )
