"""/openapi.json and /docs of a running gateway: valid, complete, and true to what the gateway accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from jsonschema import Draft202012Validator

from dynamo.frontend.openapi import document
from dynamo.frontend.operations import OPERATIONS
from tests.support.gateway import Gateway

CASES = Path(__file__).parents[1] / "captures" / "cases.jsonl"
METASCHEMA_FIELDS = {"openapi", "info", "servers", "paths", "components"}


@pytest.fixture(scope="module")
def published() -> Iterator[dict[str, Any]]:
    """Of a gateway with every route that is not there by default."""
    with Gateway("--responses-store-mb=1", mock_workers=0) as gateway:
        answer = httpx.get(f"{gateway.base_url}/openapi.json", timeout=60)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        yield answer.json()


def parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inside in value.values():
            yield from parts(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from parts(inside)


def validator(published: dict[str, Any], name: str) -> Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": published["components"]}
    return Draft202012Validator(schema)


# ---- the document


def test_it_loads_where_schema_tests_would_load_it(published: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(published)
    schema.validate()
    assert len(list(schema.get_all_operations())) == sum(map(len, published["paths"].values()))
    assert published.keys() == METASCHEMA_FIELDS


def test_its_schemas_are_schemas(published: dict[str, Any]) -> None:
    for schema in published["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_references_lead_somewhere_and_names_tell_nothing_of_our_modules(published: dict[str, Any]) -> None:
    schemas = published["components"]["schemas"]
    references = {part["$ref"] for part in parts(published) if isinstance(part.get("$ref"), str)}
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= schemas.keys()
    assert all(re.fullmatch(r"[A-Za-z0-9_.]+", name) and "dynamo" not in name for name in schemas)


def test_operations_are_told_apart(published: dict[str, Any]) -> None:
    ids = [operation["operationId"] for methods in published["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


def test_it_says_which_version_of_which_api(published: dict[str, Any]) -> None:
    info = published["info"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", info["version"])
    assert info["x-openai-api"] in info["description"]


def test_everything_in_the_table_is_served_somewhere(published: dict[str, Any]) -> None:
    described = {f"{m.upper()} {path}" for path, methods in published["paths"].items() for m in methods}
    assert described == OPERATIONS.keys()


def test_what_is_off_is_left_out(gateway: Gateway) -> None:
    paths = httpx.get(f"{gateway.base_url}/openapi.json", timeout=60).json()["paths"]
    assert "/v1/chat/completions" in paths
    assert [path for path in paths if "response_id" in path] == []


def test_a_route_that_is_not_in_the_table_is_left_out() -> None:
    routes = {"/v1/models": ["GET"], "/v1/models/": ["GET"], "/v1/new": ["POST"]}
    assert list(document(routes)["paths"]) == ["/v1/models", "/v1/models/{model}", "/v1/models/{model}/ready"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_paths_answer_as_documented(published: dict[str, Any], gateway: Gateway, name: str) -> None:
    """Without a body, a field or a model, errors have the documented shape; a GET without parameters succeeds."""
    method, path = name.split()
    if method not in published["paths"][path].keys() | {method} or path.startswith("/v1/messages"):
        return
    answer = httpx.request(method, gateway.base_url + path, json={} if method != "GET" else None, timeout=60)
    assert answer.status_code < 500
    if 400 <= answer.status_code < 500:
        schema = published["paths"][path][method.lower()]["responses"]["4XX"]["content"]["application/json"]["schema"]
        assert Draft202012Validator(schema | {"components": published["components"]}).is_valid(answer.json())


# ---- is it true?


def captured(path: str) -> list[Any]:
    """Bodies that a 1.6.1 took, and so do we."""
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    return [case["body"] for case in cases if (case["path"], case["status"], type(case["body"])) == (path, 200, dict)]


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/chat/completions", "ChatCompletionRequest"), ("/v1/completions", "CompletionRequest")]
)
def test_bodies_that_are_accepted_are_valid(published: dict[str, Any], path: str, name: str) -> None:
    known = validator(published, name)
    bodies = captured(path)
    assert len(bodies) > 5
    assert [(body, str(error)[:300]) for body in bodies for error in known.iter_errors(body)] == []


MESSAGES: list[tuple[dict[str, Any], bool]] = [
    ({"role": "user", "content": "hi"}, True),
    ({"role": "user", "content": "hi", "name": None}, True),
    ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, True),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, True),
    ({"role": "assistant"}, True),
    ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, True),
    ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}, True),
    ({"role": "tool", "content": "1", "tool_call_id": "1"}, True),
    ({"role": "function", "name": "f", "content": None}, True),
    ({"content": "hi"}, False),
    ({"role": "nobody", "content": "hi"}, False),
    ({"role": "user"}, False),
    ({"role": "user", "content": None}, False),
    ({"role": "user", "content": []}, False),
    ({"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}, False),
    ({"role": "user", "content": "hi", "name": 5}, False),
    ({"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, False),
    ({"role": "tool", "content": "1"}, False),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, False),
]


@pytest.mark.parametrize(("message", "is_right"), MESSAGES, ids=str)
def test_the_schema_of_messages_says_what_the_check_says(
    published: dict[str, Any], gateway: Gateway, message: dict[str, Any], is_right: bool
) -> None:
    assert validator(published, "ChatMessage").is_valid(message) == is_right
    body = {"model": "nobody", "messages": [message]}
    answer = httpx.post(f"{gateway.base_url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == (404 if is_right else 400)


def test_the_schema_of_an_embedding_request_says_what_the_check_says(
    published: dict[str, Any], gateway: Gateway
) -> None:
    inputs: list[Any] = ["a", ["a"], [1], [[1], [2]], "", [], [""], [[]], ["a", 1], None, 5, ["a"] * 2049]
    for given in inputs:
        body = {"model": "nobody", "input": given}
        answer = httpx.post(f"{gateway.base_url}/v1/embeddings", json=body, timeout=60)
        is_valid = validator(published, "EmbeddingRequest").is_valid(body)
        assert answer.status_code == (404 if is_valid else 400), body


# ---- the page


class Page(HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.links += [link for name in ("href", "src") if (link := found.get(name))]
        self.anchors |= {anchor} if (anchor := found.get("id")) else set()


def test_docs_is_one_page_that_asks_for_nothing(gateway: Gateway) -> None:
    moved = httpx.get(f"{gateway.base_url}/docs", timeout=60)
    assert (moved.status_code, moved.headers["location"]) == (303, "/docs/")
    answer = httpx.get(f"{gateway.base_url}/docs/", timeout=60)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page()
    page.feed(answer.text)
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert {link.lstrip("#") for link in page.links} <= page.anchors | {"../openapi.json"}
    assert "/v1/chat/completions" in answer.text
    assert "temperature" in answer.text


def test_nothing_is_below_docs(gateway: Gateway) -> None:
    assert httpx.get(f"{gateway.base_url}/docs/swagger-ui.css", timeout=60).status_code == 404


def test_the_document_is_small_enough_to_read(published: dict[str, Any]) -> None:
    assert len(msgspec.json.encode(published)) < 200_000
