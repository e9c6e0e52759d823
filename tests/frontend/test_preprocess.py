"""Prompts on their way to the wire: token ids, block hashes, and what is left to ask for after some output."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.frontend.artifacts import ArtifactStore
from dynamo.frontend.model import Model, ModelLoader
from dynamo.frontend.openai import RequestPolicy, decode_chat, decode_completion
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.preprocess import TokenPrompt, pack_token_ids, prepare_chat, prepare_completion, unpack_token_ids
from dynamo.shared.errors import InvalidRequest
from dynamo.shared.hashing import hash_seed, packed_sequence_hashes
from tests.frontend.test_model import card

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


PROMPT = list(range(300, 370))
PACKED = array("I", PROMPT).tobytes()


@pytest.fixture(scope="module")
def model() -> Model:
    return ModelLoader(ArtifactStore()).load(card(context_length=4096), "sum")


async def prepared(model: Model, **fields: Any) -> TokenPrompt:
    body = msgspec.json.encode({"model": "demo", "prompt": PROMPT, **fields})
    return await prepare_completion(model, decode_completion(body), PROMPT)


@pytest.mark.parametrize(
    ("of_card", "fields", "seed", "is_eagle"),
    [
        ({}, {}, hash_seed(), False),
        ({}, {"cache_salt": "salt"}, hash_seed(cache_salt="salt"), False),
        ({"lora": {"name": "ad"}}, {"nvext": {"cache_salt": "salt"}}, hash_seed("ad", "salt"), False),
        ({"runtime_config": {"enable_eagle": True}}, {}, hash_seed(), True),
    ],
)
async def test_blocks_are_hashed_as_the_workers_do(
    model: Model, of_card: dict[str, Any], fields: dict[str, Any], seed: int, is_eagle: bool
) -> None:
    request = await prepared(replace(model, card=card(**of_card)), **fields)
    assert request.block_hashes == b""
    request.hash_blocks(16)
    assert request.block_hashes == packed_sequence_hashes(PACKED, 16, seed, is_eagle=is_eagle)
    assert len(request.block_hashes) == 8 * 4
    request.hash_blocks(64)
    assert request.block_hashes == packed_sequence_hashes(PACKED, 64, seed, is_eagle=is_eagle)


async def test_all_choices_share_the_hashes_of_their_prompt(model: Model) -> None:
    request = await prepared(model, n=2, temperature=1)
    request.hash_blocks(16)
    assert {choice.block_hashes for choice in request.choices()} == {request.block_hashes}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, None)),
        ({"max_tokens": 9, "min_tokens": 4}, (6, 1)),
        ({"max_tokens": 3, "min_tokens": 2}, (0, 0)),
    ],
)
async def test_a_request_is_continued_after_its_output(
    model: Model, fields: dict[str, Any], expected: tuple[int | None, int | None]
) -> None:
    request = await prepared(model, **fields)
    request.hash_blocks(16)
    rest = request.continued(array("I", [7, 8, 9]).tobytes())
    assert unpack_token_ids(rest.token_ids) == [*PROMPT, 7, 8, 9]
    assert (rest.stop.max_tokens, rest.stop.min_tokens) == expected
    assert rest.block_hashes == b""
    assert request.num_tokens == len(PROMPT)
    assert request.stop.max_tokens == fields.get("max_tokens")


@pytest.mark.parametrize(("fields", "limit"), [({}, 4026), ({"max_tokens": 9}, 9), ({"max_tokens": 5000}, 4026)])
async def test_an_answer_has_room_for_so_many_tokens(model: Model, fields: dict[str, Any], limit: int) -> None:
    assert (await prepared(model, **fields)).output_limit == limit


@pytest.mark.parametrize(
    ("given_rank", "placed_rank", "told"), [(None, None, None), (3, None, 3), (None, 2, 2), (3, 3, 3)]
)
async def test_the_worker_is_told_the_rank_it_was_chosen_for(
    model: Model, given_rank: int | None, placed_rank: int | None, told: int | None
) -> None:
    request = await prepared(model, nvext={"dp_rank": given_rank})
    assert request.wire_request("msgpack", placed_rank).routing.dp_rank == told


async def test_the_worker_is_told_of_other_weights(model: Model) -> None:
    request = await prepared(model, nvext={"router_config_override": {"router_temperature": 0.5}})
    body = msgspec.msgpack.decode(msgspec.msgpack.encode(request.wire_request("msgpack")))
    assert body["router_config_override"] == {"router_temperature": 0.5}
    assert "agent_context" not in body


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"truncate_prompt_tokens": 3}, PROMPT[-3:]),
        ({"truncate_prompt_tokens": 1000}, PROMPT),
        ({"truncate_prompt_tokens": -1}, PROMPT),
        ({"truncate_prompt_tokens": -1, "max_tokens": 4090}, PROMPT[-6:]),
    ],
)
async def test_a_prompt_keeps_its_end(model: Model, fields: dict[str, Any], expected: list[int]) -> None:
    assert (await prepared(model, **fields)).unpacked == expected


async def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers(model: Model) -> None:
    small = replace(model, card=card(context_length=70))
    with pytest.raises(InvalidRequest) as caught:
        await prepared(small)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    assert "this model's maximum context length is 70 tokens" in caught.value.message
    assert (await prepared(replace(model, card=card(context_length=71)), max_tokens=50)).output_limit == 1


async def test_bad_words_are_told_as_they_are_written_at_a_start_and_within_a_text(model: Model) -> None:
    request = await prepared(model, bad_words=["self", " self"], bad_words_token_ids=[[1]])
    assert request.extra_args == {"sampling_options": {"bad_words_token_ids": [[1], [278], [300]]}}


async def test_what_stopped_a_text_may_stay(model: Model) -> None:
    rules = (await prepared(model, no_stop_trim=True, stop_token_ids=[7])).rules
    assert rules.visible_ids == {7, *model.eos_token_ids}
    assert rules.include_stop_string
    assert rules.named_ids == {7}


async def test_a_request_may_bring_its_own_template(model: Model) -> None:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "hi"}],
        "nvext": {"annotations": ["formatted_prompt"]},
    }
    trusted = RequestPolicy(trusts_chat_templates=True)

    async def rendered(template: str) -> str:
        request = decode_chat(msgspec.json.encode(body | {"chat_template": template}), trusted)
        return (await prepare_chat(model, request)).formatted_prompt

    assert await rendered("<{{ messages[0].content }}>") == "<hi>"
    with pytest.raises(InvalidRequest) as caught:
        await rendered("{% if %}")
    assert caught.value.param == "chat_template"


@pytest.mark.parametrize(
    ("parsers", "told"),
    [({}, True), ({"tool_call_parser": "hermes"}, True), ({"reasoning_parser": "kimi-k3"}, False)],
)
async def test_special_tokens_are_shown_to_parsers_that_read_them(parsers: dict[str, str], told: bool) -> None:
    model = ModelLoader(ArtifactStore()).load(card(runtime_config=parsers), "sum")
    messages = [{"role": "user", "content": "hi"}]
    body = msgspec.json.encode({"model": "demo", "messages": messages, "skip_special_tokens": True})
    assert (await prepare_chat(model, decode_chat(body))).output.skip_special_tokens is told


OBJECT_FORMAT: dict[str, Any] = {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("guide", "is_content"),
    [(OBJECT_FORMAT, True), ({"guided_json": {"type": "object"}}, True), ({"guided_regex": ".*"}, False), ({}, False)],
)
async def test_json_that_was_asked_for_is_not_taken_for_thought(guide: dict[str, Any], is_content: bool) -> None:
    model = ModelLoader(ArtifactStore()).load(card(runtime_config={"reasoning_parser": "deepseek_r1"}), "sum")
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]} | guide
    prepared = await prepare_chat(model, decode_chat(msgspec.json.encode(body)))
    assert prepared.reader_of_message is not None
    delta = Delta(0, '{"a": 1}', 4, "stop")
    prepared.reader_of_message().read(delta)
    assert (delta.text == '{"a": 1}') is is_content
