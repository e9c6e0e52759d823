"""`/openapi.json` and `/docs/`: the document, and the same as a page that asks nobody else for anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

import msgspec

from dynamo.frontend.inference import JSON, RequestIds
from dynamo.frontend.openapi import document
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.shared.errors import RouteNotFound

_HTML = (
    b"content-type: text/html; charset=utf-8\r\n"
    b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
h2 { margin-top: 2em; border-top: 1px solid #ccc; padding-top: .5em; font-size: 1.1em }
code, .type { font-family: ui-monospace, monospace; font-size: .9em }
b.method { display: inline-block; min-width: 4em }
table { border-collapse: collapse; width: 100% }
td { vertical-align: top; padding: .2em .8em .2em 0 }
tr + tr td { border-top: 1px solid #eee } .type { color: #666 }
"""


class ApiDocs:
    """Both are written once, when somebody asks first."""

    def __init__(self, routes: Mapping[str, Iterable[str]]) -> None:
        self._routes = routes
        self._json = b""
        self._page = b""

    async def openapi(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        await self._write()
        exchange.respond(200, JSON + headers, self._json)

    async def to_page(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        exchange.respond(303, b"location: /docs/\r\n" + headers, b"")

    async def page(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        if exchange.path != "/docs/":
            raise RouteNotFound(f"There is nothing at {exchange.path}.")
        await self._write()
        exchange.respond(200, _HTML + headers, self._page)

    async def _write(self) -> None:
        if not self._page:
            written = await asyncio.to_thread(document, {path: list(methods) for path, methods in self._routes.items()})
            self._json, self._page = msgspec.json.encode(written), page_of(written).encode()


def page_of(written: dict[str, Any]) -> str:
    info, schemas = written["info"], written["components"]["schemas"]
    operations = [
        part
        for path, methods in written["paths"].items()
        for method, operation in methods.items()
        for part in _operation(method, path, operation)
    ]
    types = [part for name, schema in sorted(schemas.items()) for part in _schema(name, schema)]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}</title><style>{_STYLE}</style>',
            f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}</p>",
            '<p>For programs: <a href="../openapi.json">openapi.json</a></p>',
            *operations,
            "<h1>Types</h1>",
            *types,
            "</html>",
        ]
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{operation["operationId"]}"><b class="method">{method.upper()}</b> <code>{escape(path)}</code></h2>'
    yield f"<p>{_text(operation['description'])}</p>"
    if body := operation.get("requestBody"):
        yield f'<p>Takes <span class="type">{_type(body["content"]["application/json"]["schema"])}</span></p>'
    for parameter in operation.get("parameters", ()):
        yield f"<p>Parameter <code>{escape(parameter['name'])}</code>, in the {parameter['in']}</p>"
    answer = operation["responses"].get("200", {}).get("content", {})
    for content_type, content in answer.items():
        yield f'<p>Answers {escape(content_type)}: <span class="type">{_type(content["schema"])}</span></p>'


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>'
    if about := schema.get("description"):
        yield f"<p>{_text(about)}</p>"
    properties = schema.get("properties")
    if properties is None:
        yield f'<p class="type">{_type(schema)}</p>'
        return
    required = schema.get("required", ())
    rows = (_row(field, kind, field in required) for field, kind in properties.items())
    yield f"<table>{''.join(rows)}</table>"


def _row(field: str, kind: dict[str, Any], is_required: bool) -> str:
    mark = " <b>required</b>" if is_required else ""
    about = _text(kind.get("description", ""))
    return f'<tr><td><code>{escape(field)}</code>{mark}<td class="type">{_type(kind)}<td>{about}'


def _type(schema: dict[str, Any]) -> str:
    """In a few words; null, which means absent, is left out."""
    if ref := schema.get("$ref"):
        name = escape(ref.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in alternatives if one.get("type") != "null"))
    if "const" in schema or "enum" in schema:
        return ", ".join(escape(str(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if fields := schema.get("properties"):
        return f"{{{', '.join(f'{escape(name)}: {_type(one)}' for name, one in fields.items())}}}"
    return escape(str(schema.get("type", "anything"))) + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    lowest, highest = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if lowest is None and highest is None:
        return ""
    return f" {'' if lowest is None else lowest}…{'' if highest is None else highest}"


def _text(about: str) -> str:
    """Words between backquotes are code."""
    parts = escape(about).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
