"""What a parser makes of a model's text, and what every parser looks like."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from msgspec import Struct


class Reasoning(Struct, frozen=True, gc=False):
    """Text the model thinks with, apart from its answer."""

    text: str


class CallStart(Struct, frozen=True, gc=False):
    """A call of the function `name` begins; all `CallArguments` up to the next start are its own. `id` is given where
    the model writes one."""

    name: str
    id: str | None = None


class CallArguments(Struct, frozen=True, gc=False):
    """The next piece of a call's arguments, which together are the text of one JSON object."""

    json: str


Part: TypeAlias = str | Reasoning | CallStart | CallArguments
"""A plain string is content."""


class Parser(Protocol):
    """Reads what a model writes, however it is cut into pieces. It never raises: what it cannot read is content.

    Nothing of a marker is ever part of the result, so text that may be the beginning of one is held back.
    """

    def push(self, text: str) -> list[Part]:
        """What has become certain; empty strings are left out."""

    def flush(self) -> list[Part]:
        """What was held back, once no more text comes."""
