"""The bytes that 1.6.1's routers send each other, recorded from running ones."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.shared.hashing import block_hashes, pack_tokens, sequence_hashes
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds
from dynamo.shared.replica_events import (
    FREE,
    PREFILL_COMPLETED,
    ActiveSequenceEvent,
    Addition,
    AddRequest,
    AffinityBinding,
    Alive,
    AskSnapshot,
    Leaving,
    Position,
    Predicted,
    PrefillLoad,
    RunningRequest,
    SnapshotSlice,
    ThresholdsSet,
    VersionedThresholds,
    decode_active_sequences,
    decode_binding,
    decode_update,
    encode,
    join_events,
    join_update,
    pack_hashes,
    unpack_hashes,
)

REQUEST_ID = "c7203805-a213-4cea-aacc-eb92ee33b2e2"
WORKER = WorkerRank(11248888893037452992)
ROUTER_ID = 5740368737824939872

_START = (
    "85aa726571756573745f6964d92463373230333830352d613231332d346365612d616163632d656239326565333362326532a6776f726b65"
    "7282a9776f726b65725f6964cf9c1c14d95b559ec0a764705f72616e6b00a464617461"
)
_END = "a9726f757465725f6964cf4fa9e2f409d01f60a96c6f72615f6e616d65c0"
ADDED = bytes.fromhex(
    _START
    + "81aa4164645265717565737484ae746f6b656e5f73657175656e636592cff7e6c5a1896bad24cf3d5ff0dd2a93fd39b4747261636b5f"
    "70726566696c6c5f746f6b656e73c3b665787065637465645f6f75747075745f746f6b656e73c0b170726566696c6c5f6c6f61645f68696e"
    "7482d920696e697469616c5f6566666563746976655f70726566696c6c5f746f6b656e7328b965787065637465645f70726566696c6c5f64"
    "75726174696f6ec0" + _END
)
COMPLETED = bytes.fromhex(_START + "b44d61726b50726566696c6c436f6d706c65746564" + _END)
FREED = bytes.fromhex(_START + "a446726565" + _END)
BATCH = bytes.fromhex("81a66576656e747391") + ADDED
BOUND = bytes.fromhex(
    "85aa73657373696f6e5f6964a6736573732d31a9776f726b65725f6964cf9c1c14d95b559ec0a764705f72616e6b00a873657175656e6365"
    "cf18ea34b687e66817a97772697465725f6964cf4fa9e2f409d01f60"
)


def hashes_of(*token_ids: int) -> bytes:
    hashes = sequence_hashes(block_hashes(pack_tokens(token_ids), 16))
    return b"".join(value.to_bytes(8, "little") for value in hashes)


def event(data: Addition | str) -> ActiveSequenceEvent:
    return ActiveSequenceEvent(REQUEST_ID, WORKER, data, ROUTER_ID)


PROMPT = hashes_of(*range(1000, 1040))
ADDITION = Addition(AddRequest(pack_hashes(PROMPT), True, None, PrefillLoad(40)))


@pytest.mark.parametrize(("data", "recorded"), [(ADDITION, ADDED), (PREFILL_COMPLETED, COMPLETED), (FREE, FREED)])
def test_events_are_those_of_dynamo_byte_for_byte(data: Addition | str, recorded: bytes) -> None:
    assert encode(event(data)) == recorded
    [decoded] = decode_active_sequences(recorded)
    assert encode(decoded) == recorded


def test_several_events_share_a_payload() -> None:
    assert join_events([ADDED]) == BATCH
    assert [each.data for each in decode_active_sequences(join_events([FREED] * 256))] == [FREE] * 256
    [added] = decode_active_sequences(BATCH)
    assert isinstance(added.data, Addition)
    assert isinstance(added.data.add_request, AddRequest)
    assert unpack_hashes(added.data.add_request.token_sequence) == PROMPT
    assert added.data.add_request.num_prefill_tokens == 40


def test_bindings_are_those_of_dynamo_byte_for_byte() -> None:
    binding = AffinityBinding("sess-1", WORKER.worker_id, 0, 1795305360029280279, ROUTER_ID)
    assert encode(binding) == BOUND
    assert decode_binding(BOUND) == binding


@pytest.mark.parametrize(
    ("track_prefill_tokens", "hint", "num_tokens"),
    [(True, PrefillLoad(40), 40), (True, None, 0), (False, PrefillLoad(40), 0)],
)
def test_what_is_left_to_prefill(track_prefill_tokens: bool, hint: PrefillLoad | None, num_tokens: int) -> None:
    added = AddRequest(pack_hashes(b""), track_prefill_tokens, None, hint)
    assert added.num_prefill_tokens == num_tokens


def test_kinds_of_events_that_are_not_known_are_no_error() -> None:
    payload = msgspec.msgpack.encode(
        {"request_id": "r", "worker": {"worker_id": 1, "dp_rank": 0}, "data": {"Moved": 1}, "router_id": 2, "x": 3}
    )
    assert [each.data for each in decode_active_sequences(payload)] == [Addition()]


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_hashes_are_packed_and_unpacked(values: list[int]) -> None:
    packed = b"".join(value.to_bytes(8, "little") for value in values)
    as_array = pack_hashes(packed)
    assert msgspec.msgpack.decode(bytes(as_array)) == values
    assert unpack_hashes(as_array) == packed
    assert unpack_hashes(msgspec.Raw(msgspec.msgpack.encode(values))) == packed


@pytest.mark.parametrize("num", [0, 15, 16, 65_535, 65_536])
def test_long_prompts(num: int) -> None:
    packed = bytes(range(1, 9)) * num
    assert len(msgspec.msgpack.decode(bytes(pack_hashes(packed)))) == num
    assert unpack_hashes(pack_hashes(packed)) == packed


@pytest.mark.parametrize("value", [[0xCF] * 9, [2**63, 1, 2], [2**64 - 1] * 3 + [0], None])
def test_short_numbers_and_no_array(value: list[int] | None) -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode(value))
    assert unpack_hashes(raw) == b"".join(each.to_bytes(8, "little") for each in value or ())


@pytest.mark.parametrize("value", ["text", {"a": 1}, [1, "x"], [-1], 5])
def test_what_are_no_hashes(value: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        unpack_hashes(msgspec.Raw(msgspec.msgpack.encode(value)))


def test_our_own_messages_survive_the_way() -> None:
    position = Position(1, 2, 3)
    versioned = VersionedThresholds(Thresholds("m", 0.5, 10, None), 4, ROUTER_ID)
    binding = AffinityBinding("s", 1, None, 5, ROUTER_ID)
    running = RunningRequest("r", WORKER, PROMPT, 40, 7, "lora")
    messages = [
        Alive(position, 6),
        AskSnapshot(ROUTER_ID),
        SnapshotSlice(1, 0, True, position, [running], [versioned], [binding]),
        ThresholdsSet(versioned),
        Predicted(WORKER, PROMPT),
        Leaving(),
    ]
    update = decode_update(join_update(ROUTER_ID, [encode(message) for message in messages]))
    assert update.router_id == ROUTER_ID
    assert update.messages == messages


@pytest.mark.parametrize("num_tokens", [-1, 2**40, 2**64 - 1])
def test_numbers_that_would_break_sums_are_refused(num_tokens: int) -> None:
    added = AddRequest(pack_hashes(PROMPT), True, None, PrefillLoad(num_tokens))
    with pytest.raises(msgspec.ValidationError):
        decode_active_sequences(encode(ActiveSequenceEvent("r", WORKER, Addition(added), ROUTER_ID)))
    update = join_update(ROUTER_ID, [encode(SnapshotSlice(1, 0, True, Position(1, 2, 3), [_running(num_tokens)]))])
    with pytest.raises(msgspec.ValidationError):
        decode_update(update)


def _running(num_tokens: int) -> RunningRequest:
    return RunningRequest("r", WORKER, PROMPT, num_tokens)


@pytest.mark.parametrize("sequence", [-1, 2**63 - 1, 2**64 - 1])
def test_a_binding_after_which_none_could_be_newer_is_refused(sequence: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_binding(encode(AffinityBinding("s", 1, None, sequence, ROUTER_ID)))
