"""The OpenAPI document, made of the types that requests are decoded into and of the tables they are checked by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from types import UnionType
from typing import Any

import msgspec

from dynamo.frontend.anthropic import MESSAGES
from dynamo.frontend.embedding_requests import EMBEDDINGS
from dynamo.frontend.message_schemas import MESSAGE, PROMPT, TOOL, TOOL_CHOICE, Schema
from dynamo.frontend.openai_compatibility import APIS, OPENAI_API, Api
from dynamo.frontend.operations import EVENTS, OPERATIONS, Operation
from dynamo.frontend.responses import RESPONSES

_REF = "#/components/schemas/"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_RENAMED = {"CompletionBody": "CompletionRequest", "Replacement": "AllThresholdsOfAModel"}
_MODULE = re.compile(r"dynamo\.frontend\.")

# Fields whose type cannot say what they may hold.
_BY_HAND: dict[str, dict[str, Schema]] = {
    "ChatCompletionRequest": {
        "messages": {"type": "array", "items": {"$ref": f"{_REF}ChatMessage"}, "minItems": 1},
        "tools": {"anyOf": [{"type": "array", "items": {"$ref": f"{_REF}ChatTool"}, "minItems": 1}, {"type": "null"}]},
        "tool_choice": TOOL_CHOICE,
    },
    "TokenizeRequest": {
        "messages": {
            "anyOf": [{"type": "array", "items": {"$ref": f"{_REF}ChatMessage"}, "minItems": 1}, {"type": "null"}]
        },
        "tools": {"anyOf": [{"type": "array", "items": {"$ref": f"{_REF}ChatTool"}}, {"type": "null"}]},
    },
    "CompletionRequest": {"prompt": PROMPT},
}


def document(routes: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The document of these paths and their methods. A path that ends with a slash has whatever is below it."""
    served = {name: operation for name, operation in OPERATIONS.items() if _is_served(name, routes)}
    paths: dict[str, dict[str, Any]] = {}
    for name, operation in served.items():
        method, path = name.split()
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation)
    return {
        "openapi": "3.1.0",
        "info": _info(),
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _components(served.values()),
            "securitySchemes": {"admin_key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _info() -> dict[str, Any]:
    own = version("dynamo-gateway")
    return {
        "title": "Dynamo gateway",
        "version": own,
        "description": (
            f"An OpenAI-compatible gateway for LLM fleets, version {own}. OpenAI's API is meant as of {OPENAI_API}. "
            "Routes of Dynamo 1.6.1 and of vLLM keep their names and shapes."
        ),
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        "x-openai-api": OPENAI_API,
    }


def _is_served(name: str, routes: Mapping[str, Iterable[str]]) -> bool:
    method, path = name.split()
    return method in routes.get(_key(path), ())


def _key(path: str) -> str:
    return path.partition("{")[0]


def _operation(method: str, path: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": operation.about,
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path.rstrip('/') or '/'}") + "_page" * (path == "/docs/"),
        "responses": _responses(operation),
    }
    parameters = [_parameter("path", name) for name in _PLACEHOLDER.findall(path)]
    parameters += [_parameter("query", name) for name in operation.query]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = _schema_of(operation.body)
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.is_admin:
        described["security"] = [{}, {"admin_key": []}]
    return described


def _parameter(where: str, name: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": True, "schema": {"type": "string"}}


def _responses(operation: Operation) -> dict[str, Any]:
    if operation.redirects:
        return {"303": {"description": operation.about}}
    errors = {"application/json": {"schema": _schema_of(operation.errors)}}
    return {
        "200": {"description": operation.about, "content": _content(operation)},
        "4XX": {"description": "The request is at fault.", "content": errors},
        "5XX": {"description": "The gateway or a worker is at fault, or busy.", "content": errors},
    }


def _content(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        return {operation.answer: {"schema": {"type": "string"}}}
    schema = {"type": "object"} if operation.answer is None else _schema_of(operation.answer)
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if operation.streams:
        content[EVENTS] = {"schema": {"type": "string"}}
    return content


# ---- schemas


def _schema_of(kind: Any) -> Schema:
    if isinstance(kind, UnionType):
        return {"anyOf": [_schema_of(one) for one in kind.__args__]}
    return {"$ref": _REF + _RENAMED.get(kind.__name__, kind.__name__)}


def _components(operations: Iterable[Operation]) -> dict[str, Schema]:
    kinds = {kind for operation in operations for kind in _kinds(operation)}
    _, schemas = msgspec.json.schema_components(sorted(kinds, key=str), ref_template=_REF + "{name}")
    schemas = _renamed(schemas)
    for name, fields in _BY_HAND.items():
        if name in schemas:
            schemas[name]["properties"] |= {field: dict(schema) for field, schema in fields.items()}
    if "TokenizeRequest" in schemas:
        schemas["TokenizeRequest"]["anyOf"] = [{"required": ["prompt"]}, {"required": ["messages"]}]
    for api in (*APIS, RESPONSES, EMBEDDINGS, MESSAGES):
        _describe(schemas, api)
    return schemas | {"ChatMessage": MESSAGE, "ChatTool": TOOL}


def _kinds(operation: Operation) -> Iterator[Any]:
    for kind in (operation.body, operation.answer, operation.errors):
        if isinstance(kind, UnionType):
            yield from kind.__args__
        elif kind is not None and not isinstance(kind, str):
            yield kind


def _renamed(schemas: dict[str, Any]) -> dict[str, Schema]:
    """By names that are no secret of ours, here and in all references."""
    text = msgspec.json.encode(schemas).decode()
    names = {name: _new_name(name) for name in schemas}
    for old, new in names.items():
        text = text.replace(f'"{_REF}{old}"', f'"{_REF}{new}"')
    renamed: dict[str, Schema] = {names[name]: schema for name, schema in msgspec.json.decode(text).items()}
    for name, schema in renamed.items():
        schema["title"] = name
    return renamed


def _new_name(name: str) -> str:
    name = _MODULE.sub("", name)
    return _RENAMED.get(name.partition("_")[0], name)


def _describe(schemas: dict[str, Schema], api: Api) -> None:
    """Each field by its row; the docstring of a type is for those who read the code."""
    schema = schemas.get(_RENAMED.get(api.body.__name__, api.body.__name__))
    if schema is None:
        return
    schema["description"] = api.title.replace("`", "")
    for name, row in api.rows.items():
        if name in schema["properties"]:
            schema["properties"][name] |= {"description": f"{row.fate.capitalize()}. {row.about}"}
