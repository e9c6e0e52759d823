"""Row by row: every field of a request is sent through an acceptor, and has the effect that its row claims.

An example is the field's value and what else the request needs; a forwarded one also says where the worker finds what.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from msgspec import Struct
from openai.types import completion_create_params as of_completions
from openai.types.chat import completion_create_params as of_chat
from openai.types.responses import response_create_params as of_responses
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from dynamo.frontend.anthropic import MESSAGES
from dynamo.frontend.embedding_requests import EMBEDDINGS
from dynamo.frontend.openai_compatibility import APIS, CHAT, COMPLETIONS, NVEXT, Api
from dynamo.frontend.responses import RESPONSES
from dynamo.shared.messages import Place, Placed
from tests.support.raw_worker import Call
from tests.support.served_acceptor import DEMO_MODEL, MODEL, HttpAnswer
from tests.support.stage import WORKER, Stage, open_stage

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
OPEN = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]}
OPEN_END = OPEN | {"add_generation_prompt": False}
OFFERED = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
TABLES = (*APIS, EMBEDDINGS, RESPONSES, MESSAGES)
PATHS = {
    CHAT: "/v1/chat/completions",
    COMPLETIONS: "/v1/completions",
    EMBEDDINGS: "/v1/embeddings",
    RESPONSES: "/v1/responses",
    MESSAGES: "/v1/messages",
}
BASES: dict[Api, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    COMPLETIONS: {"prompt": "hi there", "max_tokens": 9},
    EMBEDDINGS: {"input": "hi there"},
    RESPONSES: {"input": "hi", "max_output_tokens": 9},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
}


BOS = "<|endoftext|>"
VARIABLES = ("enable_thinking", "thinking", "reasoning_effort", "verbosity", "documents", "tools")
TEMPLATE = "".join(f"{{{{ {name} }}}};" for name in VARIABLES) + (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


ALL_TYPES = "Chat | Completions | Embedding"
OPTIONS = {"trust_request_chat_template": True, "enable_anthropic_api": True, "responses_store_mb": 1}
UNKNOWN_OF_RESPONSES = {"access_programs", "background_options", "image"}
MADE_UP = re.compile(r'"(\w*id|\w*_at|created)":("(\w+[-_])?[0-9a-f-]{24,36}"|\d+)')


class Example(Struct, frozen=True):
    value: Any
    path: str = ""  # of what the worker is told, as in `stop_conditions.stop`
    told: Any = None  # what is there; None: the value itself
    needs: dict[str, Any] = {}


IN_BOTH = {
    "model": Example("nobody"),
    "stream": Example(True),
    "stream_options": Example({"include_usage": True}, needs={"stream": True}),
    "max_tokens": Example(2),
    "min_tokens": Example(2),
    "stop": Example("ing"),
    "stop_token_ids": Example([301]),
    "ignore_eos": Example(True),
    "include_stop_str_in_output": Example(True, needs={"stop_token_ids": [301]}),
    "n": Example(2),
    "best_of": Example(2, "sampling_options.best_of"),
    "temperature": Example(0.5, "sampling_options.temperature"),
    "top_p": Example(0.5, "sampling_options.top_p"),
    "top_k": Example(5, "sampling_options.top_k"),
    "min_p": Example(0.5, "sampling_options.min_p"),
    "frequency_penalty": Example(0.5, "sampling_options.frequency_penalty"),
    "presence_penalty": Example(0.5, "sampling_options.presence_penalty"),
    "repetition_penalty": Example(0.5, "sampling_options.repetition_penalty"),
    "logit_bias": Example(
        {"7": -100, "8": 100, "9": 1},
        "extra_args.sampling_options",
        {"bad_words_token_ids": [[7]], "allowed_token_ids": [8]},
    ),
    "seed": Example(5, "sampling_options.seed"),
    "allowed_token_ids": Example([5], "extra_args.sampling_options.allowed_token_ids"),
    "bad_words": Example(["self"], "extra_args.sampling_options.bad_words_token_ids", [[278], [300]]),
    "bad_words_token_ids": Example([[5]], "extra_args.sampling_options.bad_words_token_ids"),
    "use_beam_search": Example(True),
    "length_penalty": Example(0.5),
    "structured_outputs": Example({"regex": "a+"}, "sampling_options.guided_decoding", {"regex": "a+"}),
    "guided_json": Example({"type": "object"}, "sampling_options.guided_decoding.json"),
    "guided_regex": Example("a+", "sampling_options.guided_decoding.regex"),
    "guided_grammar": Example('root ::= "a"', "sampling_options.guided_decoding.grammar"),
    "guided_choice": Example(["a", "b"], "sampling_options.guided_decoding.choice"),
    "guided_decoding_backend": Example(
        "xgrammar", "sampling_options.guided_decoding.backend", needs={"guided_regex": "a"}
    ),
    "guided_whitespace_pattern": Example(
        " ", "sampling_options.guided_decoding.whitespace_pattern", needs={"guided_json": {"type": "object"}}
    ),
    "prompt_logprobs": Example(1, "output_options.prompt_logprobs"),
    "skip_special_tokens": Example(True),
    "detokenize": Example(False, "extra_args.sampling_options.detokenize"),
    "return_tokens_as_token_ids": Example(True, needs={"logprobs": True}),
    "return_token_ids": Example(True),
    "add_special_tokens": Example(True),
    "truncate_prompt_tokens": Example(1),
    "priority": Example(-3, "routing.priority", 3),
    "request_id": Example("mine"),
    "lora_request": Example({"lora_name": "a"}),
    "cache_salt": Example("salt", "routing.cache_salt"),
    "user": Example("somebody"),
    "metadata": Example({"a": "b"}),
    "nvext": Example({"greed_sampling": True}),
}
EXAMPLES: dict[Api, dict[str, Example]] = {
    CHAT: IN_BOTH
    | {
        "messages": Example([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]),
        "max_completion_tokens": Example(2, needs={"max_tokens": 3}),
        "logprobs": Example(True),
        "top_logprobs": Example(1, needs={"logprobs": True}),
        "tools": Example([WEATHER]),
        "tool_choice": Example("required", needs={"tools": [WEATHER]}),
        "parallel_tool_calls": Example(
            False,
            "sampling_options.guided_decoding.json.maxItems",
            1,
            needs={"tools": [WEATHER], "tool_choice": "required"},
        ),
        "response_format": Example(
            {"type": "json_object"}, "sampling_options.guided_decoding.json", {"type": "object"}
        ),
        "echo": Example(True, needs=OPEN),
        "chat_template": Example("{{ messages[0]['content'] }}!"),
        "chat_template_args": Example({"enable_thinking": False}),
        "chat_template_kwargs": Example({"enable_thinking": False}),
        "add_generation_prompt": Example(False),
        "continue_final_message": Example(True, needs=OPEN_END),
        "documents": Example([{"title": "t"}]),
        "thinking": Example(False),
        "reasoning_effort": Example("none"),
        "thinking_token_budget": Example(5, "stop_conditions.max_thinking_tokens"),
        "media_io_kwargs": Example({"video": {"num_frames": 2}}, "media_io_kwargs"),
        "mm_processor_kwargs": Example({"a": 1}, "mm_processor_kwargs"),
        "modalities": Example(["text", "audio"]),
        "audio": Example({"voice": "v", "format": "wav"}),
        "prediction": Example({"type": "content", "content": "hi"}),
        "store": Example(True),
        "service_tier": Example("flex"),
        "prompt_cache_key": Example("k"),
        "prompt_cache_options": Example({"mode": "explicit"}),
        "prompt_cache_retention": Example("24h"),
        "safety_identifier": Example("s"),
        "verbosity": Example("low"),
        "moderation": Example({"model": "m"}),
        "web_search_options": Example({}),
        "functions": Example([{"name": "f"}]),
        "function_call": Example("auto"),
    },
    COMPLETIONS: IN_BOTH
    | {
        "prompt": Example([5, 6]),
        "logprobs": Example(1),
        "return_tokens_as_token_ids": Example(True, needs={"logprobs": 1}),
        "add_special_tokens": Example(False),
        "echo": Example(True),
        "no_stop_trim": Example(True, needs={"stop": ["ing"]}),
        "suffix": Example("x"),
        "prompt_embeds": Example("AAAA"),
    },
    NVEXT: {
        "greed_sampling": Example(True),
        "use_raw_prompt": Example(True),
        "annotations": Example(["request_id"], needs={"stream": True}),
        "backend_instance_id": Example(WORKER),
        "prefill_worker_id": Example(7, "routing.prefill_worker_id"),
        "decode_worker_id": Example(WORKER),
        "dp_rank": Example(1),
        "prefill_dp_rank": Example(1, "routing.prefill_dp_rank"),
        "token_data": Example([5, 6]),
        "max_thinking_tokens": Example(5, "stop_conditions.max_thinking_tokens"),
        "cache_salt": Example("salt", "extra_args.nvext.cache_salt"),
        "extra_fields": Example(["completion_token_ids"]),
        "agent_hints": Example({"priority": 2}),
        "metadata_upload": Example({"url": "http://a/b"}, "extra_args.nvext.metadata_upload"),
        "request_timestamp_ms": Example(1.5, "request_timestamp_ms"),
        "routing_constraints": Example({"required_taints": ["a"]}),
        "allowed_worker_ids": Example([WORKER]),
        "router_config_override": Example({"router_temperature": 0.5}),
        "router": Example({"ttft_ms": 5}, "router"),
    },
    RESPONSES: {
        "model": Example("nobody"),
        "input": Example([{"role": "user", "content": "bye"}]),
        "instructions": Example("Be brief."),
        "tools": Example([OFFERED]),
        "tool_choice": Example("required", needs={"tools": [OFFERED]}),
        "parallel_tool_calls": Example(
            False,
            "sampling_options.guided_decoding.json.maxItems",
            1,
            needs={"tools": [OFFERED], "tool_choice": "required"},
        ),
        "reasoning": Example({"effort": "low"}),
        "text": Example(
            {"format": {"type": "json_object"}}, "sampling_options.guided_decoding.json", {"type": "object"}
        ),
        "previous_response_id": Example("resp_1"),
        "conversation": Example("conv_1"),
        "truncation": Example("auto"),
        "nvext": Example({"greed_sampling": True}),
        "stream": Example(True),
        "stream_options": Example({"include_obfuscation": True}, needs={"stream": True}),
        "max_output_tokens": Example(2),
        "temperature": Example(0.5, "sampling_options.temperature"),
        "top_p": Example(0.5, "sampling_options.top_p"),
        "top_logprobs": Example(2),
        "include": Example(["message.output_text.logprobs"]),
        "store": Example(False),
        "background": Example(True),
        "metadata": Example({"a": "b"}),
        "client_metadata": Example({"turn_id": "t"}),
        "max_tool_calls": Example(3),
        "user": Example("somebody"),
        "service_tier": Example("flex"),
        "safety_identifier": Example("s"),
        "prompt": Example({"id": "p"}),
        "prompt_cache_key": Example("k"),
        "prompt_cache_options": Example({"mode": "explicit"}),
        "prompt_cache_retention": Example("24h"),
        "context_management": Example([{"type": "compaction"}]),
        "moderation": Example({"model": "m"}),
    },
    MESSAGES: {
        "model": Example("nobody"),
        "messages": Example([{"role": "user", "content": "bye"}]),
        "system": Example("Be brief."),
        "tools": Example([{"name": "weather", "input_schema": {"type": "object"}}]),
        "tool_choice": Example(
            {"type": "any"}, needs={"tools": [{"name": "weather", "input_schema": {"type": "object"}}]}
        ),
        "thinking": Example({"type": "disabled"}),
        "output_config": Example({"effort": "low"}),
        "output_format": Example(
            {"type": "json_schema", "schema": {"type": "object"}},
            "sampling_options.guided_decoding.json",
            {"type": "object"},
        ),
        "cache_control": Example({"type": "ephemeral"}),
        "mcp_servers": Example([{"name": "m", "type": "url", "url": "http://a"}]),
        "context_management": Example({"edits": []}),
        "nvext": Example({"greed_sampling": True}),
        "max_tokens": Example(2),
        "stream": Example(True),
        "stop_sequences": Example(["ing"]),
        "temperature": Example(0.5, "sampling_options.temperature"),
        "top_k": Example(5, "sampling_options.top_k"),
        "top_p": Example(0.5, "sampling_options.top_p"),
        "metadata": Example({"user_id": "u"}),
        "service_tier": Example("auto"),
        "container": Example("c"),
        "inference_geo": Example("eu"),
        "speed": Example("fast"),
        "diagnostics": Example({}),
    },
    EMBEDDINGS: {
        "model": Example("nobody"),
        "input": Example("hello"),
        "encoding_format": Example("base64"),
        "dimensions": Example(2, "dimensions"),
        "user": Example("u"),
        "add_special_tokens": Example(False),
        "truncate_prompt_tokens": Example(1),
        "priority": Example(-3),
        "cache_salt": Example("s"),
        "nvext": Example({"annotations": ["a"]}),
    },
}


class Seen(NamedTuple):
    """What came of a request: the answer without what differs each time, and what router and worker were told."""

    status: int
    answer: str
    told: list[dict[str, Any]]
    hints: Any = None


def rows(fate: str) -> list[Any]:
    """Those of all tables, each with the route it is sent to."""
    found = []
    for api in TABLES:
        for name in (name for name, row in api.rows.items() if row.fate == fate):
            route = CHAT if api is NVEXT else api
            found.append(pytest.param(api, route, name, id=f"{PATHS[route]}-{name}"))
    return found


def body_with(api: Api, route: Api, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request without the field, and the same with it."""
    example = EXAMPLES[api][name]
    without = BASES[route] | example.needs
    return without, without | ({"nvext": {name: example.value}} if api is NVEXT else {name: example.value})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, but its template prints what fields of a request stand for, and its tokenizer begins a text with
    a special token."""
    directory = tmp_path_factory.mktemp("model")
    config = json.loads((DEMO_MODEL / "tokenizer_config.json").read_bytes()) | {"chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(DEMO_MODEL / "generation_config.json", directory)
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 16375)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, model: Path) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path_factory.mktemp("stage"), model, ALL_TYPES, **OPTIONS) as stage:
        stage.router.answer = lambda place: Placed(place.request_id, WORKER, "set", place.dp_rank or 0)
        yield stage


async def see(stage: Stage, route: Api, body: dict[str, Any]) -> Seen:
    """The worker tells all that a worker can, of a token whose text is shown, one that may stop, and the model's own
    end."""
    asked = asyncio.create_task(stage.acceptor.ask("POST", PATHS[route], {"model": MODEL} | body))
    told = []
    for _ in range(body.get("n") or 1):
        call = asyncio.create_task(stage.worker.next_call())
        await asyncio.wait([call, asked], return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            call.cancel()
            break
        told.append(call.result().request)
        await _answer(call.result())
    return _seen(await asked, told, _hints(stage))


def _hints(stage: Stage) -> Any:
    """Of the last placement."""
    placed = [message for message in stage.router.heard if isinstance(message, Place)]
    return placed[-1].hints if placed else None


async def _answer(call: Call) -> None:
    call.ack()
    await call.call_home()
    call.prologue()
    if "stop_conditions" not in call.request:
        call.item(data={"embeddings": ["AACAPwAAAEA="], "prompt_tokens": 2, "total_tokens": 2})
        call.complete()
        return
    prompt_logprobs = [None, {"5": {"logprob": -0.5}}]
    tops = [[{"token_id": 300, "logprob": -0.5}, {"token_id": 301, "logprob": -1.5}]]
    call.tokens(300, log_probs=[-0.5], top_logprobs=tops, engine_data={"prompt_logprobs": prompt_logprobs})
    call.tokens(301, log_probs=[-0.25])
    call.tokens(call.request["eos_token_ids"][0] if call.request["eos_token_ids"] else 302, finish_reason="stop")
    call.complete()


def _seen(answer: HttpAnswer, told: list[dict[str, Any]], hints: Any) -> Seen:
    text = MADE_UP.sub(r'"\1":0', answer.body.decode())
    for request in told:
        request.get("extra_args", {}).get("nvext", {}).pop("extra_fields", None)
    return Seen(answer.status, text, told, hints)


def at(told: Any, path: str) -> Any:
    for name in path.split("."):
        told = told[name]
    return told


@pytest.mark.parametrize("api", TABLES, ids=lambda api: api.title)
def test_every_field_has_a_row_and_an_example(api: Api) -> None:
    fields = set(api.body.__struct_encode_fields__)
    assert fields == set(api.rows) == set(EXAMPLES[api])


def test_openais_own_fields_are_all_there() -> None:
    assert set(of_chat.CompletionCreateParamsBase.__annotations__) <= set(CHAT.rows)
    assert set(of_responses.ResponseCreateParamsBase.__annotations__) <= {*RESPONSES.rows, *UNKNOWN_OF_RESPONSES}
    assert set(of_completions.CompletionCreateParamsBase.__annotations__) <= set(COMPLETIONS.rows)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("api", "route", "name"), rows("honoured"))
async def test_an_honoured_field_makes_a_difference(stage: Stage, api: Api, route: Api, name: str) -> None:
    without, with_it = body_with(api, route, name)
    assert await see(stage, route, with_it) != await see(stage, route, without)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("api", "route", "name"), rows("forwarded"))
async def test_a_forwarded_field_reaches_the_worker(stage: Stage, api: Api, route: Api, name: str) -> None:
    example = EXAMPLES[api][name]
    seen = await see(stage, route, body_with(api, route, name)[1])
    assert seen.status == 200
    assert at(seen.told[0], example.path) == (example.value if example.told is None else example.told)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("api", "route", "name"), rows("no effect"))
async def test_what_has_no_effect_has_none(stage: Stage, api: Api, route: Api, name: str) -> None:
    without, with_it = body_with(api, route, name)
    seen, other = await see(stage, route, with_it), await see(stage, route, without)
    assert seen.status == 200
    assert seen.told == other.told
    assert seen.answer == other.answer or route is RESPONSES  # which repeats what it was asked


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("api", "route", "name"), rows("refused"))
async def test_a_refused_field_is_named(stage: Stage, api: Api, route: Api, name: str) -> None:
    without, with_it = body_with(api, route, name)
    seen = await see(stage, route, with_it)
    error = json.loads(seen.answer)["error"]
    assert seen.status in (400, 501)
    assert error.get("param", name) == name  # Anthropic's errors have none
    assert name in error["message"]
    for neutral in (None, *api.rows[name].neutral):
        assert (await see(stage, route, without | {name: neutral})).status == 200
