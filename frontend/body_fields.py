"""The names of a body's fields: given twice, unknown, refused. A struct does not keep them.

Duplicate and unknown names leave no trace in a struct, so a body is decoded into an object that keeps both as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from dynamo.frontend.openai_compatibility import Api
from dynamo.frontend.openai_diagnosis import explain, unsupported
from dynamo.frontend.openai_requests import NvExt
from dynamo.frontend.openai_rules import refuse
from dynamo.shared.errors import InvalidRequest

UnknownFields = Literal["reject", "warn", "ignore"]


class RequestPolicy(Struct, frozen=True):
    """What the operator makes of requests. Without `takes_nvext`, `nvext` is its `cache_salt` and no more;
    `forces_usage` has every stream end with its usage."""

    unknown_fields: UnknownFields = "warn"
    trusts_chat_templates: bool = False
    takes_nvext: bool = True
    forces_usage: bool = False


DEFAULT_POLICY = RequestPolicy()


class Body(Protocol):
    """A decoded request."""

    nvext: NvExt | None
    __dict__: dict[str, Any]


class FieldName(str):
    """A name equal only to itself, so that a dict keeps both entries of a duplicate."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


OBJECT = msgspec.json.Decoder(dict[FieldName, Any], dec_hook=operator.call)
NAMES = msgspec.json.Decoder(dict[FieldName, msgspec.Raw], dec_hook=operator.call)


class BodyFields:
    """Names of one API's fields, and what is to be done about those of a body."""

    def __init__(self, api: Api) -> None:
        self._known = frozenset(api.rows)
        self._refused = frozenset(api.refused)
        self._api = api

    def check(self, request: Body, names: Mapping[FieldName, object], policy: RequestPolicy) -> None:
        distinct = set(map(str.__str__, names))
        if len(distinct) != len(names):
            raise _duplicate(names)
        if not distinct <= self._known:
            self._note_unknown(request, sorted(distinct - self._known), policy.unknown_fields)
        if not distinct.isdisjoint(self._refused):
            refuse(request, sorted(distinct & self._refused), self._api)
        if request.nvext is not None and not policy.takes_nvext:
            salt = request.nvext.cache_salt
            request.nvext = None if salt is None else NvExt(cache_salt=salt)

    def _note_unknown(self, request: Body, unknown: list[str], policy: UnknownFields) -> None:
        if policy == "reject":
            raise unsupported(unknown[0], sorted(self._known))
        if policy == "warn":
            request.__dict__["unknown_fields"] = tuple(unknown)


class BodyReader:
    """Bodies of one API, whose table names the struct that they are decoded into."""

    def __init__(self, api: Api) -> None:
        self._kind = api.body
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(api.body)
        self._fields = BodyFields(api)

    def read(self, body: bytes, policy: RequestPolicy, check_first: Callable[[Any], None] | None = None) -> Any:
        """Raises InvalidRequest naming the field, or what `check_first` raises before the table's own rules."""
        try:
            request, names = self._decoder.decode(body), NAMES.decode(body)
        except (ValueError, RecursionError) as error:
            raise explain(error, body, self._kind) from None
        if check_first is not None:
            check_first(request)
        self._fields.check(request, names, policy)
        return request


def _duplicate(names: Mapping[FieldName, object]) -> InvalidRequest:
    seen: set[str] = set()
    for name in map(str.__str__, names):
        if name in seen:
            return InvalidRequest(f"{name} is given twice.", name, "duplicate_field")
        seen.add(name)
    raise AssertionError("no name is given twice")
