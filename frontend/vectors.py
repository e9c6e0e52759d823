"""Vectors as numbers. Imported when the first client asks for some: no acceptor else needs numpy and its 11 MB."""

from __future__ import annotations

import binascii
from base64 import b64decode

import numpy as np
import orjson

from dynamo.shared.errors import BackendFailure


def json_numbers(vector: str | list[float]) -> bytes:
    """A JSON array of the 32-bit floats in this base64 (or of these numbers), each with as few digits as tell it from
    all others; null for what is no number.

    Raises BackendFailure.
    """
    try:
        numbers = (
            np.frombuffer(b64decode(vector, validate=True), "<f4")
            if isinstance(vector, str)
            else np.asarray(vector, "<f4")
        )
    except (binascii.Error, ValueError) as error:
        raise BackendFailure(f"The worker sent an embedding that is no base64 of 32-bit floats: {error}.") from None
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
