"""The functions that requests of these tests offer."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.parsers.context import Functions


def _tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"function": {"name": name, "parameters": {"type": "object", "properties": parameters}}}


TEXT, INTEGER, NUMBER, BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))
LIST = {"type": "array", "items": TEXT}

FUNCTIONS = Functions(
    [
        _tool("get_weather", city=TEXT, days=INTEGER),
        _tool("search", query=TEXT, limit=INTEGER, exact=BOOLEAN, tags=LIST, score=NUMBER),
        _tool("run", code=TEXT, options={"type": "object"}),
        _tool("either", value={"anyOf": [TEXT, INTEGER, {"type": "null"}]}, note={"type": ["string", "null"]}),
        _tool("ping"),
    ]
)
