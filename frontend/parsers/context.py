"""What a parser may know of the request whose answer it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from dynamo.frontend.parsers.parts import Parser

JsonObject = dict[str, Any]


class Functions:
    """The functions a request offers. Formats whose values carry no types ask here what a parameter takes."""

    __slots__ = ("_schemas",)

    def __init__(self, tools: Sequence[JsonObject]) -> None:
        """`tools` are those of a chat completion, already checked."""
        self._schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}

    def __contains__(self, name: object) -> bool:
        return name in self._schemas

    def schema_of(self, name: str) -> JsonObject:
        """JSON schema of the arguments object, empty for a function that is not known."""
        schema: JsonObject = self._schemas.get(name, {})
        return schema

    def schema_of_parameter(self, name: str, parameter: str) -> Any:
        """JSON schema of one argument; None where nothing is said of it."""
        properties = self.schema_of(name).get("properties")
        return properties.get(parameter) if isinstance(properties, dict) else None


class ReasoningContext(Struct, frozen=True):
    """`prompt_end` is the last piece of the rendered prompt, empty where the client sent tokens. `is_thinking` is what
    the request asks for, None where it leaves that to the model."""

    prompt_end: str = ""
    is_thinking: bool | None = None


ToolParserFactory: TypeAlias = Callable[[Functions], Parser]
ReasoningParserFactory: TypeAlias = Callable[[ReasoningContext], Parser]
