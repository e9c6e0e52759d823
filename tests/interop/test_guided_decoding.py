"""What a worker is told of a request that prescribes its output, by our frontend and by the real one.

Equal but for what `DIFFERENT` lists: guides that the real frontend lets through although no engine can follow them, and
guides of vLLM that it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.interop.anchor import AnchorFrontend, ScriptedWorker, Store, file_store
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
INK = 1000  # a token of the demo model
RUNTIME_CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hermes": {"tool_call_parser": "hermes", "structural_tag": {}},
    "qwen3_coder": {"tool_call_parser": "qwen3_coder", "structural_tag": {"scope": "always"}},
    "deepseek_v3_2": {"tool_call_parser": "deepseek_v3_2", "structural_tag": {"schema": "strict"}},
    "deepseek_v4": {"tool_call_parser": "deepseek_v4", "structural_tag": {"scope": "always", "schema": "strict"}},
    "mistral": {"tool_call_parser": "mistral", "structural_tag": {"scope": "always"}},
}


class GuidedWorker(ScriptedWorker):
    def __init__(self, store: Store, model: str, runtime_config: Mapping[str, Any]) -> None:
        super().__init__(store, f"custom.{model}.generate", model)
        self._runtime_config = runtime_config

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "RUNTIME_CONFIG": json.dumps(self._runtime_config)}


@dataclass
class Frontends:
    ours: str
    real: str
    workers: dict[str, GuidedWorker]

    def told(self, model: str, path: str, body: dict[str, Any]) -> tuple[list[int], list[Any]]:
        """Status and guide of the same request to ours and to the real frontend; None for no guide."""
        worker = self.workers[model]
        num_before = len(worker.calls)
        messages = {} if path != CHAT else {"messages": [{"role": "user", "content": "hi"}]}
        statuses = [
            httpx.post(base_url + path, json={"model": model, **messages, **body}, timeout=60).status_code
            for base_url in (self.ours, self.real)
        ]
        calls = worker.calls[num_before:]
        return statuses, [call["request"]["sampling_options"].get("guided_decoding") for call in calls]


@pytest.fixture(scope="module")
def frontends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontends]:
    store = file_store(tmp_path_factory.mktemp("store"))
    workers = {model: GuidedWorker(store, model, config) for model, config in RUNTIME_CONFIGS.items()}
    ours = Gateway(store.flag, mock_workers=0, environment=store.environment)
    real = AnchorFrontend(store)
    with ExitStack() as stack:
        for server in (*workers.values(), ours, real):
            stack.enter_context(server)
        for worker in workers.values():
            worker.plan({"token_ids": [INK], "finish_reason": "length"})
        wait_until(lambda: ours.models() == real.models() == set(workers), "all models")
        yield Frontends(ours.base_url, real.base_url, workers)
        assert "Traceback" not in ours.log


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}}


OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**OPEN, "required": ["a"], "additionalProperties": False}
DEFINED = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}}
NAMED = {"type": "function", "function": {"name": "f"}}
REQUIRED: dict[str, Any] = {"tool_choice": "required"}

SAME: list[dict[str, Any]] = [
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "text", "json_schema": {"name": "n", "schema": CLOSED}}},
    json_schema(CLOSED),
    json_schema(CLOSED, strict=True),
    json_schema(OPEN, strict=True),
    json_schema({}),
    json_schema(DEFINED),
    {"guided_json": CLOSED},
    {"guided_json": '{"type":"object"}'},
    {"guided_json": {}},
    {"guided_json": None},
    {"guided_regex": "a+"},
    {"guided_choice": ["a", ""]},
    {"guided_grammar": 'root ::= "a"'},
    {"guided_decoding_backend": "xgrammar"},
    {"guided_whitespace_pattern": "[ ]"},
    {"guided_regex": "a", "guided_decoding_backend": "xgrammar", "guided_whitespace_pattern": "[ ]"},
    {"guided_regex": "a", "response_format": {"type": "text"}},
    {"guided_regex": "a", "tools": [tool()]},
    {"tools": [tool()], **json_schema(CLOSED)},
    {"tools": [tool()], **REQUIRED},
    {"tools": [tool(parameters=None)], **REQUIRED},
    {"tools": [tool(parameters={})], **REQUIRED},
    {"tools": [tool(parameters=CLOSED), tool("g", parameters=OPEN)], **REQUIRED},
    {"tools": [tool(parameters=CLOSED)], "parallel_tool_calls": False, **REQUIRED},
    {"tools": [tool(parameters=CLOSED)], "parallel_tool_calls": True, **REQUIRED},
    {"tools": [tool(parameters=DEFINED), tool("g", parameters=DEFINED)], **REQUIRED},
    {"tools": [tool(parameters=CLOSED)], **REQUIRED, **json_schema({"type": "string"})},
    {"tools": [tool("g"), tool(parameters=CLOSED)], "tool_choice": NAMED},
    {"tools": [tool(parameters=DEFINED)], "tool_choice": NAMED},
    {"tools": [tool(parameters={})], "tool_choice": NAMED},
    {"tools": [tool()], "tool_choice": NAMED},
    {"tools": [tool(parameters=CLOSED, strict=True)]},
    {"tools": [tool(strict=True)]},
    {"tools": [tool(parameters=CLOSED)], "parallel_tool_calls": False},
    {"tools": [tool(parameters=CLOSED)], "tool_choice": "none", "parallel_tool_calls": False},
]


@pytest.mark.parametrize("body", SAME, ids=json.dumps)
def test_a_guide_is_told_as_by_the_real_frontend(frontends: Frontends, body: dict[str, Any]) -> None:
    statuses, [ours, real] = frontends.told("plain", CHAT, body)
    assert statuses == [200, 200]
    assert ours == real


def test_a_guide_of_a_completion(frontends: Frontends) -> None:
    _, [ours, real] = frontends.told("plain", "/v1/completions", {"prompt": "a", "guided_json": CLOSED})
    assert ours == real == {"json": CLOSED}


CALLS: list[dict[str, Any]] = [
    {"tools": [tool(parameters=CLOSED), tool("g")], **REQUIRED},
    {"tools": [tool(parameters={}), tool("g", parameters=OPEN, strict=False)], **REQUIRED},
    {"tools": [tool(parameters=CLOSED)], "parallel_tool_calls": False, **REQUIRED},
    {"tools": [tool("g"), tool(parameters=DEFINED)], "tool_choice": NAMED},
    {"tools": [tool(parameters=CLOSED)], "tool_choice": NAMED, "parallel_tool_calls": False},
    {"tools": [tool(parameters=OPEN), tool("g")]},
    {"tools": [tool(parameters=OPEN)], "tool_choice": "auto", "parallel_tool_calls": False},
    {"tools": [tool(parameters=CLOSED, strict=True), tool("g", parameters=OPEN, strict=False)]},
    {"tools": [tool(parameters=CLOSED, strict=True)], "tool_choice": "none"},
    {"tools": [tool(parameters=CLOSED, strict=True)], **json_schema(CLOSED)},
    {"tools": [tool(parameters=CLOSED)], **json_schema(CLOSED)},
    {"tools": [tool(parameters=CLOSED, strict=True)], "guided_regex": "a"},
    {"tools": [tool(parameters=CLOSED)], **REQUIRED, **json_schema(OPEN)},
    {"tools": [tool(parameters=CLOSED, strict=True)], "response_format": {"type": "json_object"}},
]


@pytest.mark.parametrize("model", [model for model in RUNTIME_CONFIGS if model != "plain"])
@pytest.mark.parametrize("body", CALLS, ids=json.dumps)
def test_calls_in_the_model_s_own_format(frontends: Frontends, model: str, body: dict[str, Any]) -> None:
    statuses, [ours, real] = frontends.told(model, CHAT, body)
    assert statuses == [200, 200]
    assert ours == real


def test_only_one_guide(frontends: Frontends) -> None:
    for body in (
        {"guided_regex": "a", "guided_json": CLOSED},
        {"guided_regex": "a", **json_schema(CLOSED)},
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        {"guided_regex": "a", "tools": [tool()], **REQUIRED},
        {"guided_json": CLOSED, "tools": [tool()], "tool_choice": NAMED},
    ):
        assert frontends.told("plain", CHAT, body) == ([400, 400], [])


def strict(parameters: Any) -> dict[str, Any]:
    """A call that cannot be made, as the tools would otherwise be too long for the prompt."""
    return {"tools": [tool(parameters=parameters, strict=True)], "tool_choice": "none"}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = closed(a=schema)
    return schema


STRICT: list[Any] = [
    closed(),
    closed(a={}, b=True, c={"type": ["string", "null"]}, d={"anyOf": [{"type": "string"}, closed()]}),
    {},
    OPEN,
    {"properties": {}, "required": [], "additionalProperties": False},
    {"type": ["object"], "additionalProperties": False},
    {"type": ["object", "null"], "additionalProperties": False},
    {"type": "string"},
    {"anyOf": [closed()]},
    closed() | {"anyOf": [closed()]},
    {**closed(a={}), "required": []},
    {**closed(a={}), "required": ["a", "b"]},
    {**closed(a={}), "additionalProperties": {}},
    closed(a={"type": "object"}),
    closed(a=closed(b={})),
    closed(a={"allOf": [{}]}),
    closed(a={"oneOf": [{}]}),
    closed(a={"not": {}}),
    closed(a={"type": "array", "uniqueItems": True}),
    closed(a={"type": "array", "items": {"type": "object"}}),
    closed(a={"type": "array", "prefixItems": [{"type": "object"}]}),
    closed(a={"pattern": "a", "minimum": 1, "format": "date", "default": 1, "x": 2}),
    closed(a={"$ref": "#"}),
    closed(a={"$ref": "#/$defs/x"}) | {"$defs": {"x": {}}},
    closed(a={"$ref": "#/$defs/x"}) | {"$defs": {"x": {"type": "object"}}},
    closed(a={"$ref": "#/$defs/y"}) | {"$defs": {"x": {}}},
    closed(a={"$ref": "#/$defs/x"}) | {"$defs": {"x": {"$ref": "#/$defs/x"}}},
    closed(a={"$ref": "http://localhost/x"}),
    {"$ref": "#/$defs/x", "$defs": {"x": closed()}},
    {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}},
    nested(11),
    nested(12),
    closed(**{f"p{i}": {} for i in range(5000)}),
    closed(**{f"p{i}": {} for i in range(5001)}),
    closed(a={"enum": list(range(1000))}),
    closed(a={"enum": list(range(600))}, b={"enum": list(range(600))}),
    closed(a={"enum": [f"{i:060}" for i in range(251)]}),
    closed(a={"enum": [f"{i:060}" for i in range(250)]}),
    closed(a={"enum": [0, *(f"{i:060}" for i in range(251))]}),
    closed(**{f"{i:01000}": {} for i in range(119)}),
    closed(**{f"{i:01000}": {} for i in range(121)}),
    closed(a={"const": "x" * 130_000}),
    closed(a={"description": "x" * 130_000}),
]


@pytest.mark.parametrize("parameters", STRICT, ids=lambda schema: json.dumps(schema)[:80])
def test_strict_functions_are_refused_as_by_the_real_frontend(frontends: Frontends, parameters: Any) -> None:
    [ours, real], _ = frontends.told("plain", CHAT, strict(parameters))
    assert ours == real


SELF = {"type": "object", "properties": {"a": {"$ref": "#"}}}
DIFFERENT: list[tuple[dict[str, Any], list[int]]] = [
    (json_schema({"type": "objectx"}), [400, 200]),
    (json_schema({"$ref": "#/$defs/a"}), [400, 200]),
    (json_schema({"$ref": "http://localhost/a"}), [400, 200]),
    (json_schema({"pattern": "("}), [400, 200]),
    (json_schema({"maximum": 2**70}), [400, 200]),
    ({"guided_json": 5}, [400, 200]),
    ({"guided_json": "x"}, [400, 200]),
    ({"guided_json": {}, **json_schema({})}, [400, 200]),
    ({"guided_regex": "("}, [400, 200]),
    ({"guided_choice": []}, [400, 200]),
    ({"guided_grammar": ""}, [400, 200]),
    ({"tools": [tool(parameters={"type": "objectx"})], **REQUIRED}, [400, 200]),
    ({"structured_outputs": {"regex": "a"}}, [200, 400]),
    ({"response_format": {"type": "grammar", "grammar": 'root ::= "a"'}}, [200, 400]),
    ({"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}}, [200, 400]),
]


@pytest.mark.parametrize(("body", "statuses"), DIFFERENT, ids=json.dumps)
def test_what_is_refused_by_one_frontend_alone(frontends: Frontends, body: dict[str, Any], statuses: list[int]) -> None:
    assert frontends.told("plain", CHAT, body)[0] == statuses


def test_definitions_of_the_same_name_are_told_apart(frontends: Frontends) -> None:
    """The real frontend refuses those, and breaks references to anything but `$defs`."""
    other = {**DEFINED, "$defs": {"x": {"type": "integer"}}}
    body = {"tools": [tool(parameters=DEFINED), tool("g", parameters=other), tool("h", parameters=SELF)], **REQUIRED}
    statuses, [ours] = frontends.told("plain", CHAT, body)
    assert statuses == [200, 400]
    assert [call["properties"]["parameters"] for call in ours["json"]["items"]["anyOf"]] == [
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}},
        {"$ref": "#/$defs/g"},
        {"$ref": "#/$defs/h"},
    ]
    assert ours["json"]["$defs"] == {
        "x": {"type": "string"},
        "g": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/g/$defs/x"}},
            "$defs": {"x": {"type": "integer"}},
        },
        "h": {"type": "object", "properties": {"a": {"$ref": "#/$defs/h"}}},
    }


def test_a_backend_is_told_with_calls_that_must_be_made_too(frontends: Frontends) -> None:
    """The real frontend drops it in silence."""
    body = {"tools": [tool()], "guided_decoding_backend": "xgrammar", **REQUIRED}
    _, [ours, real] = frontends.told("plain", CHAT, body)
    assert ours == real | {"backend": "xgrammar"}
