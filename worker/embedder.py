"""The embedder engine: vectors of length 1, the same for the same tokens and near each other for similar ones."""

from __future__ import annotations

import math
from array import array
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.exceptions import InvalidArgument

NUM_DIMENSIONS = 64
MAX_DIMENSIONS = 4096


class EmbeddingCall(Struct):
    token_ids: list[list[int]]
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None


class Embeddings(Struct):
    """Each in base64, of little-endian 32-bit floats."""

    embeddings: list[str]
    prompt_tokens: int
    total_tokens: int


async def embed(request: dict[str, Any], context: Context) -> AsyncIterator[Embeddings]:
    """The handler to serve."""
    try:
        call = msgspec.convert(request, EmbeddingCall)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"not a request to embed: {error}") from None
    num_tokens = sum(map(len, call.token_ids))
    vectors = [vector_of(token_ids, call.dimensions or NUM_DIMENSIONS) for token_ids in call.token_ids]
    yield Embeddings([b64encode(vector).decode() for vector in vectors], num_tokens, num_tokens)


def vector_of(token_ids: Sequence[int], num_dimensions: int) -> array[float]:
    """The directions of its tokens, added up."""
    total = [0.0] * num_dimensions
    for token_id in token_ids:
        direction = Random(token_id)
        total = [part + direction.gauss() for part in total]
    length = math.hypot(*total) or 1.0
    return array("f", [part / length for part in total])
