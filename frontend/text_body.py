"""The body of a request as a worker with model_input Text gets it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

BYTES_PER_TOKEN = 4  # about, in English


def sent_fields(request: Struct) -> dict[str, Any]:
    """What the client sent, without fields that are null or unknown here."""
    given = ((name, getattr(request, field)) for field, name in _names(request))
    return {name: _sent(value) for name, value in given if value is not None}


def guessed_tokens(body: dict[str, Any]) -> int:
    """How long the prompt may be, for who must weigh requests before a worker has counted."""
    return len(msgspec.json.encode(body)) // BYTES_PER_TOKEN


def _names(request: Struct) -> zip[tuple[str, str]]:
    return zip(request.__struct_fields__, request.__struct_encode_fields__, strict=True)


def _sent(value: Any) -> Any:
    return sent_fields(value) if isinstance(value, Struct) else value
