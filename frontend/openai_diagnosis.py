"""Says in our own words what is wrong with a body that did not decode. Only failures come here, so it may be slow.

The decoder's report is read for two facts, the kind of failure and the path; the words come from the field's own type.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec
from msgspec import inspect

from dynamo.frontend.openai_messages import shown
from dynamo.shared.errors import InvalidCode, InvalidRequest

_PATH = re.compile(r" - at `(?:key` in `)?\$?(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.+?)`(?: - at `|$)", re.DOTALL)
_BYTE = re.compile(r"\(byte (?P<offset>\d+)\)$")


def explain(error: Exception, body: bytes, kind: Any) -> InvalidRequest:
    """What to tell the client about a `body` that could not be decoded as `kind`."""
    if isinstance(error, msgspec.ValidationError):
        return _explain_value(str(error), body, kind)
    if isinstance(error, RecursionError):
        return InvalidRequest("The body is nested too deeply.", None, "invalid_json")
    return _explain_json(error, body)


def _explain_json(error: Exception, body: bytes) -> InvalidRequest:
    if not body.strip():
        return InvalidRequest("The body is empty; a JSON object was expected.", None, "invalid_json")
    if not_utf8 := _first_non_utf8(body):
        return InvalidRequest(f"The body is not UTF-8 from byte {not_utf8 - 1} on.", None, "invalid_json")
    match = _BYTE.search(str(error))
    if match is None:
        where = f"it ends early, at byte {len(body)}, or a string has half of a surrogate pair"
        return InvalidRequest(f"The body is not valid JSON: {where}.", None, "invalid_json")
    return InvalidRequest(f"The body is not valid JSON near byte {match['offset']}.", None, "invalid_json")


def _first_non_utf8(body: bytes) -> int:
    """Position of the first byte that is not UTF-8, counted from 1; 0 when all is well."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start + 1
    return 0


def _explain_value(report: str, body: bytes, kind: Any) -> InvalidRequest:
    match = _PATH.search(report)
    path = match["path"] if match else ""
    if missing := _MISSING.match(report):
        param = _param(f"{path}.{missing['name']}")
        return InvalidRequest(f"{param} is required.", param, "missing_field")
    expected, known = _at(inspect.type_info(kind), path)
    if unknown := _UNKNOWN.match(report):
        return unsupported(_param(f"{path}.{unknown['name']}"), known)
    return _explain_type(report, body, path, expected)


def _explain_type(report: str, body: bytes, path: str, expected: str) -> InvalidRequest:
    code: InvalidCode = "invalid_type" if ", got `" in report else "out_of_range"
    if report.startswith(("Invalid enum value", "Invalid value")):
        code = "invalid_value"
    param = _param(path)
    given, value = _value_at(body, path)
    got = f", not {shown(value)}" if given else ""
    return InvalidRequest(f"{_subject(path)} must be {expected}{got}.", param or None, code)


def _subject(path: str) -> str:
    """The path of a value in a map does not tell its key."""
    param = _param(path) or "The body"
    return f"Each value of {param}" if path.endswith("[...]") else param


def unsupported(param: str, known: list[str]) -> InvalidRequest:
    head, _, name = param.rpartition(".")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return InvalidRequest(f"{param} is not a field of {head or 'this request'}.{hint}", param, "unsupported_field")


def _param(path: str) -> str:
    return path.replace("[...]", "").removeprefix(".")


def _at(node: inspect.Type, path: str) -> tuple[str, list[str]]:
    """What is expected at `path` below the type `node`, in words, and the field names it may have."""
    for step in _STEP.finditer(path):
        node = _child(node, step)
    known = [field.encode_name for alternative in _alternatives(node) for field in _fields(alternative)]
    return _describe(node), known


def _child(node: inspect.Type, step: re.Match[str]) -> inspect.Type:
    if tags := _tags(node, step["name"]):
        return inspect.LiteralType(tags)
    found = [child for one in _alternatives(node) for child in _children(one, step)]
    return inspect.UnionType(tuple(found)) if found else inspect.AnyType()


def _children(node: inspect.Type, step: re.Match[str]) -> list[inspect.Type]:
    match node:
        case inspect.StructType():
            types = [field.type for field in node.fields if field.encode_name == step["name"]]
        case inspect.ListType():
            types = [node.item_type] if step["index"] else []
        case inspect.DictType():
            types = [node.value_type] if step["any"] else []
        case _:
            types = []
    return [each for one in types for each in _alternatives(one)]


def _tags(node: inspect.Type, field: str | None) -> tuple[str, ...]:
    """What `field` may say if it is the one that tells objects of different types apart."""
    structs = [one for one in _alternatives(node) if isinstance(one, inspect.StructType)]
    return tuple(str(one.tag) for one in structs if field and one.tag_field == field)


def _fields(node: inspect.Type) -> tuple[inspect.Field, ...]:
    return node.fields if isinstance(node, inspect.StructType) else ()


def _alternatives(node: inspect.Type) -> list[inspect.Type]:
    """Without null: it means absent everywhere."""
    if isinstance(node, inspect.UnionType):
        return [one for one in node.types if not isinstance(one, inspect.NoneType)]
    return [node]


def _describe(node: inspect.Type) -> str:
    return " or ".join(dict.fromkeys(_describe_one(one) for one in _alternatives(node)))


def _describe_one(node: inspect.Type) -> str:
    match node:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"an integer{_range(node)}"
        case inspect.FloatType():
            return f"a number{_range(node)}"
        case inspect.StrType():
            return _sized(node, "string", "characters")
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in node.values)
        case inspect.ListType():
            return _sized(node, "array", "items")
        case inspect.DictType() | inspect.StructType():
            return "an object"
    return "a JSON value whose numbers fit into 64 bits"


def _range(node: inspect.IntType | inspect.FloatType) -> str:
    if node.gt is not None:
        return f" above {node.gt:g} and up to {node.le:g}"
    if node.le is None:
        return "" if node.ge is None else f" of at least {node.ge}"
    return f" between {node.ge} and {node.le}"


def _sized(node: inspect.StrType | inspect.ListType, noun: str, unit: str) -> str:
    if isinstance(node, inspect.StrType) and node.pattern is not None:
        return f"a string of the form {node.pattern}"
    if node.max_length is not None:
        return f"{_article(noun)} {noun} of {node.min_length or 0} to {node.max_length} {unit}"
    return f"a non-empty {noun}" if node.min_length else f"{_article(noun)} {noun}"


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _value_at(body: bytes, path: str) -> tuple[bool, Any]:
    """(True, the value at `path`), or (False, None) when the path is not exact or the rest does not parse."""
    try:
        value = msgspec.json.decode(body)
        for step in _STEP.finditer(path):
            value = value[step["name"]] if step["name"] else value[int(step["index"])]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False, None
    return True, value
