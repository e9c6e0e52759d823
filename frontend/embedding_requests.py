"""Bodies of `POST /v1/embeddings`, decoded and checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from dynamo.frontend.body_fields import DEFAULT_POLICY, BodyReader, RequestPolicy
from dynamo.frontend.openai_compatibility import Api, Row, forwarded, honoured, no_effect
from dynamo.frontend.openai_diagnosis import explain
from dynamo.frontend.openai_requests import U32_MAX, NonEmptyStr, NvExt, RequestBody, TokenId
from dynamo.frontend.openai_rules import check_worker_ids
from dynamo.shared.errors import InvalidRequest

MAX_INPUTS = 2048

Text: TypeAlias = NonEmptyStr
Tokens: TypeAlias = Annotated[list[TokenId], Meta(min_length=1)]
_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": U32_MAX}
INPUT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_INPUTS},
        {"type": "array", "items": _TOKEN_ID, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": _TOKEN_ID, "minItems": 1},
            "minItems": 1,
            "maxItems": MAX_INPUTS,
        },
    ]
}


class EmbeddingRequest(RequestBody, kw_only=True):
    """`input` is a text, token ids, or an array of either; `inputs` has it as an array of one kind."""

    model: NonEmptyStr
    input: Annotated[Any, Meta(extra_json_schema=INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=U32_MAX)] | None = None
    user: NonEmptyStr | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=U32_MAX)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31) + 1, le=2**31 - 1)] | None = None
    cache_salt: str | None = None
    nvext: NvExt | None = None

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


_ROWS: dict[str, Row] = {
    "model": honoured("Any name that `/v1/models` lists and whose workers embed."),
    "input": honoured(f"A text, token ids, or an array of up to {MAX_INPUTS} of either; none may be empty."),
    "encoding_format": honoured("`float`, as numbers, or `base64`, as little-endian 32-bit floats."),
    "dimensions": forwarded("How long a vector is to be, for models that can cut theirs short."),
    "user": no_effect("Must not be empty."),
    "add_special_tokens": honoured("On by default, as in vLLM; of no effect on token ids."),
    "truncate_prompt_tokens": honoured("The first so many tokens of each input; -1 keeps what the model can read."),
    "priority": honoured("Lower is earlier, as in vLLM; for the router's queue."),
    "cache_salt": no_effect("There is nothing in a cache to tell apart."),
    "nvext": honoured("Of Dynamo's extension: `annotations`, and what chooses a worker."),
}

EMBEDDINGS = Api("Embeddings: `POST /v1/embeddings`", EmbeddingRequest, _ROWS)
_EMBEDDINGS = BodyReader(EMBEDDINGS)


def decode_embedding(body: bytes, policy: RequestPolicy = DEFAULT_POLICY) -> EmbeddingRequest:
    """Raises InvalidRequest naming the field."""
    request: EmbeddingRequest = _EMBEDDINGS.read(body, policy)
    _check_input(request.input)
    if request.truncate_prompt_tokens == 0:
        raise InvalidRequest("truncate_prompt_tokens of 0 leaves no input.", "truncate_prompt_tokens", "out_of_range")
    if request.nvext is not None:
        check_worker_ids(request.nvext)
    return request


class _Texts(Struct):
    input: list[Text]


class _TokenIds(Struct):
    input: list[TokenId]


class _ArraysOfTokenIds(Struct):
    input: list[Tokens]


_KINDS: dict[type, type[Struct]] = {str: _Texts, int: _TokenIds, list: _ArraysOfTokenIds}


def _check_input(given: Any) -> None:
    """What it begins with says which kind all of it must be."""
    if isinstance(given, str):
        if not given:
            raise InvalidRequest("input must not be empty.", "input", "out_of_range")
        return
    kind = _KINDS.get(type(given[0])) if isinstance(given, list) and given else None
    if kind is None:
        raise _wrong_kind(given)
    try:
        msgspec.convert({"input": given}, kind)
    except msgspec.ValidationError as error:
        raise explain(error, msgspec.json.encode({"input": given}), kind) from None
    if kind is not _TokenIds and len(given) > MAX_INPUTS:
        raise InvalidRequest(
            f"input has {len(given)} items; at most {MAX_INPUTS} are allowed.", "input", "out_of_range"
        )


def _wrong_kind(given: Any) -> InvalidRequest:
    if given == []:
        return InvalidRequest("input must not be empty.", "input", "out_of_range")
    return InvalidRequest(
        "input must be a string, token ids, an array of strings or an array of arrays of token ids.",
        "input",
        "invalid_type",
    )
