"""What models write and the message it stands for; the message must not depend on how the text is cut."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct

from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser, Part, Reasoning

NUM_RANDOM_CUTS = 30


class Call(Struct):
    """`arguments` of a golden message are a JSON value, or a string: the exact text, for what is no JSON. `id` is what
    the model wrote."""

    name: str
    arguments: Any = ""
    id: str | None = None


class Message(Struct):
    content: str = ""
    reasoning: str = ""
    calls: list[Call] = []


class Golden(Struct, frozen=True):
    name: str
    text: str
    message: Message


def golden(name: str, text: str, content: str = "", *calls: Call, reasoning: str = "") -> Golden:
    return Golden(name, text, Message(content, reasoning, list(calls)))


def fold(parts: Iterable[Part]) -> Message:
    """All parts of a message; the arguments of its calls are text."""
    message = Message()
    for part in parts:
        match part:
            case str():
                assert part, "an empty piece of content"
                message.content += part
            case Reasoning(text):
                assert text, "an empty piece of reasoning"
                message.reasoning += text
            case CallStart(name, id):
                message.calls.append(Call(name, "", id))
            case CallArguments(piece):
                assert piece, "an empty piece of arguments"
                message.calls[-1].arguments += piece
    return message


def parse(parser: Parser, pieces: Iterable[str]) -> Message:
    parts: list[Part] = []
    for piece in pieces:
        parts += parser.push(piece)
    return fold([*parts, *parser.flush()])


def check_golden(factory: Callable[[], Parser], case: Golden) -> None:
    """The text whole gives the message of `case`, and cut in any way it gives the very same."""
    whole = parse(factory(), [case.text])
    assert _comparable(whole, case.message) == case.message, case.name
    check_cuts(factory, case.text, whole)


def check_cuts(factory: Callable[[], Parser], text: str, whole: Message) -> None:
    for pieces in ways_to_cut(text):
        assert parse(factory(), pieces) == whole, pieces


def ways_to_cut(text: str) -> Iterator[list[str]]:
    """In two at every character, at every character, at every byte, and at random places."""
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]
    yield list(text)
    decoder = codecs.getincrementaldecoder("utf-8")()
    yield [decoder.decode(bytes((byte,))) for byte in text.encode()]
    dice = random.Random(text)
    for _ in range(NUM_RANDOM_CUTS):
        places = sorted(dice.choices(range(len(text) + 1), k=dice.randint(1, 12)))
        yield [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def _comparable(message: Message, expected: Message) -> Message:
    """Arguments as JSON values where those of `expected` are."""
    wanted = [call.arguments for call in expected.calls]
    calls = [
        call if index < len(wanted) and isinstance(wanted[index], str) else Call(call.name, _value(call), call.id)
        for index, call in enumerate(message.calls)
    ]
    return Message(message.content, message.reasoning, calls)


def _value(call: Call) -> Any:
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments
