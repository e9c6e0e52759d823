"""Events of vLLM and SGLang in all their forms. The hashes of tokens are those that 1.6.1's relay gave for the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

from dynamo.shared.hashing import block_hashes, hash_seed, pack_tokens
from dynamo.shared.kv_events import Stored, StoredBlock
from dynamo.worker.engine_blocks import BlockHasher
from dynamo.worker.engine_translator import MAX_SALTED_BLOCKS, EngineTranslator

FIRST, SECOND = [0, 1, 2, 3], [4, 5, 6, 7]
PLAIN = 9143094415614847814  # FIRST
AFTER = 12124091508212882195  # SECOND
SALTED = 12417472354237322316  # FIRST, with the salt x
DIGEST = "ab" * 32
IMAGE = 0xABABABABABABABAB


class Sink:
    """Writes down what routers would be told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, str]] = []

    def stored(self, stored: Stored, tier: str = "device") -> None:
        self.told.append(("stored", stored, tier))

    def removed(self, block_hashes: list[int], tier: str = "device") -> None:
        self.told.append(("removed", block_hashes, tier))

    def cleared(self) -> None:
        self.told.append(("cleared", None, ""))

    @property
    def blocks(self) -> list[StoredBlock]:
        return [block for kind, stored, _ in self.told if kind == "stored" for block in stored.blocks]

    @property
    def tokens_hashes(self) -> list[int]:
        return [block.tokens_hash for block in self.blocks]

    @property
    def names(self) -> list[int]:
        return [block.block_hash for block in self.blocks]


class Engine:
    """Rank 0 of an engine with blocks of four tokens."""

    def __init__(self, *placeholders: int) -> None:
        self.sink = Sink()
        self.translator = EngineTranslator(BlockHasher(4, frozenset(placeholders)), 0, self.sink)

    def say(self, *events: Any, rank: int | None = 0) -> Sink:
        self.translator.push(msgspec.msgpack.encode([1.5, events, rank]))
        return self.sink


@pytest.fixture
def engine() -> Engine:
    return Engine()


def stored(name: int, *tail: Any, tokens: Any = FIRST, parent: int | None = None) -> list[Any]:
    """`tail` begins with the medium."""
    return ["BlockStored", [name], parent, tokens, 4, None, *tail]


def named(**fields: Any) -> dict[str, Any]:
    return {"type": "BlockStored", "block_hashes": [1], "token_ids": FIRST, "block_size": 4, **fields}


def test_a_chain(engine: Engine) -> None:
    sink = engine.say(["BlockStored", [1, 2], 7, FIRST + SECOND, 4, None])
    assert sink.told == [("stored", Stored([StoredBlock(1, PLAIN), StoredBlock(2, AFTER)], 7), "device")]


def test_a_removal_and_a_reset(engine: Engine) -> None:
    sink = engine.say(["BlockRemoved", [-1, 2]], ["AllBlocksCleared"], ["Ignored", 5], {"type": "AllBlocksCleared"})
    assert sink.told == [("removed", [2**64 - 1, 2], "device"), ("cleared", None, ""), ("cleared", None, "")]


def test_maps_instead_of_arrays(engine: Engine) -> None:
    batch = {"ts": 1.5, "events": [named(medium="CPU", unheard_of=1)], "data_parallel_rank": 0}
    engine.translator.push(msgspec.msgpack.encode(batch))
    assert engine.sink.told == [("stored", Stored([StoredBlock(1, PLAIN)]), "host_pinned")]


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        (None, "device"),
        ("", "device"),
        ("GPU", "device"),
        ("DEVICE", "device"),
        ("CPU", "host_pinned"),
        ("CPU_PINNED", "host_pinned"),
        ("CPU_TIER1", "host_pinned"),
        ("CPU_TIER2", "disk"),
        ("DISK", "disk"),
        ("NVME", "disk"),
        ("STORAGE", "disk"),
        ("EXTERNAL", "external"),
        ("NETWORK", "external"),
        ("REMOTE", "external"),
        ("SHARED", "external"),
    ],
)
def test_media_are_tiers(engine: Engine, medium: str | None, tier: str) -> None:
    sink = engine.say(stored(1, medium), ["BlockRemoved", [1], medium])
    assert [told[2] for told in sink.told] == [tier, tier]


@pytest.mark.parametrize("medium", ["MARS", "gpu"])
def test_media_that_nobody_knows(engine: Engine, medium: str) -> None:
    assert engine.say(stored(1, medium)).told == []
    assert engine.translator.num_filtered == 1


def test_byte_strings_are_named_by_their_last_eight_bytes(engine: Engine) -> None:
    name = bytes(range(32))
    sink = engine.say(["BlockStored", [name], b"\xff" * 32, FIRST, 4, None], ["BlockRemoved", [name]])
    expected = int.from_bytes(name[24:], "big")
    assert sink.told == [
        ("stored", Stored([StoredBlock(expected, PLAIN)], 2**64 - 1), "device"),
        ("removed", [expected], "device"),
    ]


def test_pairs_of_tokens_are_eagles(engine: Engine) -> None:
    assert engine.say(stored(1, tokens=[[0, 1], [1, 2], [2, 3], [3, 4]])).tokens_hashes == [14562210786876287112]


def test_adapters(engine: Engine) -> None:
    sink = engine.say(stored(1, None, "ad", [["ad"]]), named(lora_name="ad", cache_salt="s"))
    assert sink.tokens_hashes == [726693251599441319, 17191329023762747975]


def test_salts_wherever_they_are(engine: Engine) -> None:
    sink = engine.say(
        stored(1, "GPU", None, [["dynamo-cache-salt:x"]]),
        stored(2, "GPU", {"cache_salt": "x"}),
        named(cache_salt="x"),
        stored(3, "GPU", None, [["x"]]),  # a bare string may be anything
        stored(4, "GPU", None, [["dynamo-cache-salt:"]]),
        named(cache_salt=""),
    )
    assert sink.tokens_hashes == [SALTED, SALTED, SALTED, PLAIN, PLAIN, PLAIN]


def test_children_inherit_the_salt(engine: Engine) -> None:
    sink = engine.say(
        stored(1, "GPU", None, [["dynamo-cache-salt:x"]]),
        stored(2, "GPU", None, [None], tokens=SECOND, parent=1),
        stored(3, tokens=SECOND, parent=2),
        stored(4, tokens=SECOND, parent=99),
        ["BlockRemoved", [1]],
        stored(5, tokens=SECOND, parent=1),
    )
    assert sink.tokens_hashes == [SALTED, 7456743930491904909, 7456743930491904909, AFTER, AFTER]


def test_a_child_of_a_block_with_two_salts_is_left_out(engine: Engine) -> None:
    sink = engine.say(
        stored(51, "GPU", None, [["dynamo-cache-salt:x"]]),
        stored(51, "GPU", None, [["dynamo-cache-salt:y"]]),
        stored(52, tokens=SECOND, parent=51),
        stored(53, "GPU", None, [["dynamo-cache-salt:x"]], tokens=SECOND, parent=51),
    )
    assert sink.tokens_hashes == [SALTED, 2320574546721276972, 7456743930491904909]
    assert engine.translator.num_filtered == 1


def test_salts_of_blocks_long_ago_are_forgotten(engine: Engine) -> None:
    names = list(range(MAX_SALTED_BLOCKS))
    engine.say(named(block_hashes=[-1], cache_salt="x"))
    engine.say(named(block_hashes=names, token_ids=FIRST * len(names), cache_salt="x"))
    engine.sink.told.clear()
    assert engine.say(stored(-2, parent=-1), stored(-3, parent=5)).tokens_hashes == [PLAIN, SALTED]


def test_objects_of_prompts(engine: Engine) -> None:
    given = {"mm_objects": [{"mm_hash": 7, "offsets": [[0, 1]]}]}
    sink = engine.say(
        stored(1, "GPU", None, [[[DIGEST, 1]]]),
        stored(2, "GPU", None, [[DIGEST]]),
        stored(3, "GPU", None, [[["short", -1]]]),
        stored(4, "GPU", DIGEST, [[DIGEST]]),  # the name of an adapter
        stored(5, "GPU", None, [[True, 1.5, b"embedding", ["", 1], None]]),
        stored(6, "GPU", None, None, [given]),
        named(block_mm_infos=[given]),
    )

    def appended(*mm_hashes: int, lora_name: str | None = None) -> int:
        return block_hashes(pack_tokens(FIRST), 4, hash_seed(lora_name), mm_hashes=[mm_hashes])[0]

    short = xxh3_64_intdigest(b"short", 0)
    assert sink.tokens_hashes == [
        appended(IMAGE),
        appended(IMAGE),
        appended(short),
        appended(lora_name=DIGEST),
        PLAIN,
        1757030409100500455,
        1757030409100500455,
    ]
    infos = [msgspec.to_builtins(block.mm_extra_info) for block in sink.blocks]
    assert infos == [
        {"mm_objects": [{"mm_hash": IMAGE, "offsets": []}]},
        {"mm_objects": [{"mm_hash": IMAGE, "offsets": []}]},
        {"mm_objects": [{"mm_hash": short, "offsets": []}]},
        None,
        None,
        given,
        given,
    ]


def test_placeholders_become_values_of_their_objects() -> None:
    engine = Engine(900, 901)
    infos = [{"mm_objects": [{"mm_hash": 7}]}]
    sink = engine.say(
        named(token_ids=[1, 900, 900, 2], block_mm_infos=infos),
        named(token_ids=[900, 1, 900, 2], block_mm_infos=infos),
        named(token_ids=[1, 900, 900, 2], extra_keys=[[[DIGEST, 1]]]),
    )
    assert sink.tokens_hashes == [8034794259272125583, 2475227207908691888, 16544528068720869557]


@pytest.mark.parametrize(
    ("tail", "is_told"),
    [
        ((0, "full_attention"), True),
        ((3, "mla_attention", None, "LOCAL", None), True),
        ((3, "sink_full_attention"), True),
        (("full_attention",), True),  # older engines leave out what they have not
        ((1, "sliding_window", 512), False),
        ((1, "sliding_window", 512, "LOCAL", None), False),
        ((2, "mamba"), False),
        ((0, "unheard_of"), False),
        ((0,), True),
        ((3,), False),  # a group of which nothing was said yet
        ((0, "full_attention", None, "REMOTE"), False),
        ((0, "full_attention", None, "ELSEWHERE"), False),
        ((0, "full_attention", None, "LOCAL", "other"), False),
        ((None, None, None, None, None, 7), True),
    ],
)
def test_only_what_a_worker_can_reuse_on_its_own_is_told(engine: Engine, tail: tuple[Any, ...], is_told: bool) -> None:
    assert bool(engine.say(stored(1, "GPU", None, None, *tail)).told) == is_told
    assert engine.translator.num_filtered == (not is_told)


def test_a_removal_is_of_the_kind_that_its_group_was_said_to_be(engine: Engine) -> None:
    sink = engine.say(
        stored(1, "GPU", None, None, 0, "sliding_window"),
        stored(2, "GPU", None, None, 2, "full_attention"),
        ["BlockRemoved", [1], "GPU", 0],
        ["BlockRemoved", [2], "GPU", 2],
        ["BlockRemoved", [3], "GPU", 3],
        ["BlockRemoved", [4], "GPU"],
    )
    assert [told[1] for told in sink.told if told[0] == "removed"] == [[2], [4]]


def test_another_source_does_not_clear(engine: Engine) -> None:
    assert engine.say(["AllBlocksCleared", "other"]).told == []


@pytest.mark.parametrize(
    "event",
    [
        ["BlockStored"],
        [],
        ["Zork", 1],
        "BlockStored",
        7,
        {"type": "BlockStored"},
        ["BlockStored", ["x"], None, FIRST, 4],
        ["BlockStored", [1], None, [-1, 2, 3, 4], 4],
        ["BlockStored", [1], None, [1, 2, [3, 4], 5], 4],
        ["BlockStored", [1], None, [[0, 1], 2, 3, 4], 4],
        ["BlockStored", [1], None, [[0, 1], [2]], 4],
        ["BlockStored", [1], None, FIRST, 4, None, 5],
    ],
)
def test_an_event_that_cannot_be_read_spoils_no_other(engine: Engine, event: Any) -> None:
    assert engine.say(event, stored(9)).names == [9]
    assert engine.translator.num_malformed == 1


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01", b"\x93\x01\x02\x03", msgspec.msgpack.encode({"a": 1})])
def test_batches_that_cannot_be_read(engine: Engine, payload: bytes) -> None:
    engine.translator.push(payload)
    assert engine.translator.num_malformed == 1
    assert engine.say(stored(9)).names == [9]


def test_a_batch_that_is_nested_too_deeply_cannot_be_read(engine: Engine) -> None:
    engine.translator.push(b"\x91" * 1_000_000)
    assert engine.translator.num_malformed == 1
    assert engine.say(stored(9)).names == [9]


def test_events_of_another_rank_are_left_out(engine: Engine) -> None:
    engine.say(stored(1), rank=1)
    assert engine.say(stored(2), rank=None).names == [2]
    assert engine.translator.num_foreign == 1
