"""KV events of a publisher that is not to be trusted."""

from __future__ import annotations

import msgspec
import pytest

from dynamo.shared.kv_events import (
    Change,
    KvEvent,
    Removed,
    RouterEvent,
    Stored,
    StoredBlock,
    decode_events,
    encode_events,
)

LARGEST = 2**64 - 1


def payload_of(change: Change) -> bytes:
    return encode_events([RouterEvent(1, KvEvent(1, change))])


@pytest.mark.parametrize(
    "change",
    [
        Change(stored=Stored([StoredBlock(-1, 1)])),
        Change(stored=Stored([StoredBlock(1, -1)])),
        Change(stored=Stored([StoredBlock(1, 1)], parent_hash=-1)),
        Change(removed=Removed([-1])),
    ],
)
def test_what_is_no_hash_is_refused_before_anybody_keeps_it(change: Change) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_events(payload_of(change))


def test_all_hashes_are_read() -> None:
    change = Change(stored=Stored([StoredBlock(LARGEST, LARGEST), StoredBlock(0, 0)], parent_hash=LARGEST))
    assert decode_events(payload_of(change))[0].event.data == change
