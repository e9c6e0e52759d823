from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.shared.card import CardError, mdcsum, read_instance, read_registration, slugify
from dynamo.shared.protocol import ModelDeploymentCard

# What 1.6.1 mockers registered, each with the checksum and the slug that a 1.6.1 frontend filed it under.
RECORDED = msgspec.json.decode((Path(__file__).parent / "cards_1_6_1.json").read_bytes())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["registration"]["component"])
def test_checksum_and_slug_are_those_of_dynamo(recorded: dict[str, Any]) -> None:
    registered = read_registration(msgspec.json.encode(recorded["registration"]))
    assert registered.mdcsum == recorded["mdcsum"]
    assert slugify(registered.card.display_name) == registered.card.slug == recorded["slug"]


BASE = RECORDED[0]["registration"]["card_json"]
FILE = {"path": "/elsewhere/x.json", "checksum": "blake3:" + "0" * 64}


@pytest.mark.parametrize(
    "change",
    [
        {"display_name": "other"},
        {"source_path": None},
        {"gen_config": {"hf_generation_config_json": FILE}},
        {"extra_files": [FILE]},
        {"prompt_context": ["oai_chat"]},
        {"kv_cache_block_size": 128},
        {"runtime_config": {"context_length": 77}},
        {"worker_type": None},
        {"needs": [["prefill"], ["aggregated"]]},
        {"router_config": {"router_mode": "k_v"}},
        {"indexer_identity": {"semantics": {"a": "b"}, "routing_scope": None}},
        {"aliases": ["nick"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_workers_of_a_set_must_agree_on(change: dict[str, Any]) -> None:
    assert checksum(BASE | change) != checksum(BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": {kind: file | {"path": "http://h/t"} for kind, file in BASE["tokenizer"].items()}},
        {"user_data": {"x": 1}},
        {"migration_limit": 3},
        {"router_config": None},
        {"aliases": []},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_they_may_differ_in(change: dict[str, Any]) -> None:
    assert checksum(BASE | change) == checksum(BASE)


def checksum(card: dict[str, Any]) -> str:
    return mdcsum(msgspec.json.decode(msgspec.json.encode(card), type=ModelDeploymentCard))


NESTED = msgspec.Raw(b"[" * 100_000 + b"]" * 100_000)


def registration(**changes: Any) -> bytes:
    return msgspec.json.encode(RECORDED[0]["registration"] | changes)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not a model registration"),
        (b"\xff\xfe", "not a model registration"),
        (b'{"type":"Endpoint"}', "Invalid value 'Endpoint'"),
        (registration(card_json={}), "missing required field `display_name`"),
        (registration(card_json=[]), "Expected `object`, got `array`"),
        (registration(card_json=BASE | {"needs": ["prefill"]}), "needs"),
        (registration(card_json=BASE | {"worker_type": "cook"}), "worker type 'cook' is unknown"),
        (registration(card_json=BASE | {"kv_cache_block_size": -1}), "-1 is not a u32"),
        (registration(instance_id=-5), "instance_id -5 is not a u64"),
        (registration(card_json=BASE | {"user_data": NESTED}), "not a model registration"),
        (b" " * (5 << 20), "over the limit"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_malformed_registrations_say_what_is_wrong(value: bytes, reason: str) -> None:
    with pytest.raises(CardError, match=reason):
        read_registration(value)


INSTANCE = {
    "type": "Endpoint",
    "namespace": "ns",
    "component": "backend",
    "endpoint": "generate",
    "instance_id": 2**64 - 1,
    "transport": {"tcp": "127.0.0.1:1/x"},
}


def test_instance() -> None:
    instance = read_instance(msgspec.json.encode(INSTANCE))
    assert instance.instance_id == 2**64 - 1
    assert instance.request_plane_codec is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"transport": {}}, "one transport"),
        ({"instance_id": "7"}, "Expected `int`"),
        ({"component": None}, "component"),
    ],
)
def test_malformed_instances_say_what_is_wrong(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CardError, match=reason):
        read_instance(msgspec.json.encode(INSTANCE | change))
