"""Token ids on their way to the wire."""

from __future__ import annotations

from array import array

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dynamo.frontend.preprocess import pack_token_ids, unpack_token_ids

token_ids = st.lists(st.integers(0, 2**24 - 1), max_size=40)


@given(token_ids)
def test_packed_ids_are_a_msgpack_array_of_the_same_ids(ids: list[int]) -> None:
    assert msgspec.msgpack.decode(pack_token_ids(array("I", ids).tobytes())) == ids


def test_every_length_class_of_msgpack_arrays() -> None:
    for num in (0, 1, 15, 16, 65_535, 65_536):
        ids = list(range(num))
        assert msgspec.msgpack.decode(pack_token_ids(array("I", ids).tobytes())) == ids


@given(token_ids)
def test_unpacked_ids_are_plain_ints(ids: list[int]) -> None:
    assert unpack_token_ids(array("I", ids).tobytes()) == ids
