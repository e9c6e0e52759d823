"""Whatever a model writes, every parser makes a message of it, and always the same however the text is cut."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.examples.parser_plug_in.bracket_parsers import BracketCalls, UntilAnswer
from dynamo.frontend.parsers.context import ReasoningContext, ReasoningParserFactory, ToolParserFactory
from dynamo.frontend.parsers.message import MessageParser, MessagePart, ToolCallDelta
from dynamo.frontend.parsers.parts import Parser, Reasoning
from dynamo.frontend.parsers.reasoning import REASONING_PARSERS
from dynamo.frontend.parsers.tools import TOOL_PARSERS
from dynamo.frontend.parsers.tools.guided import named_call, required_calls
from tests.frontend.parsers.golden import Call, Message, parse
from tests.frontend.parsers.offered import FUNCTIONS
from tests.fuzz.budget import budget
from tests.fuzz.fragments import JSON_PIECES, LITTER, REASONING_FRAGMENTS, TOOL_FRAGMENTS, WORDS, cuts, texts

OTHERS = [*WORDS, *LITTER, *JSON_PIECES]
PROMPT_ENDS = ["", "<think>", "<think>\n\n</think>\n\n", "<|message_model|>", "<|open|>think<|sep|>", "[THINK]"]
WRITE_JSON = {  # arguments are the model's own JSON, with or without faults
    "hermes",
    "jamba",
    "nemotron_deci",
    "phi4",
    "llama3_json",
    "default",
    "mistral",
    "deepseek_v3",
    "kimi_k2",
    "inkling",
    "harmony",
}
CONTEXTS = st.builds(ReasoningContext, st.sampled_from(PROMPT_ENDS), st.sampled_from([None, True, False]))


def aliases(parsers: dict[str, ToolParserFactory] | dict[str, ReasoningParserFactory]) -> dict[int, list[str]]:
    """Names of each parser."""
    found: dict[int, list[str]] = {}
    for name, factory in parsers.items():
        found.setdefault(id(factory), []).append(name)
    return found


def test_all_parsers_have_fragments() -> None:
    for names in aliases(TOOL_PARSERS).values():
        assert not TOOL_FRAGMENTS.keys().isdisjoint(names), names
    for names in aliases(REASONING_PARSERS).values():
        assert not REASONING_FRAGMENTS.keys().isdisjoint(names), names


def check_message(message: Message) -> None:
    """It can be sent."""
    message.content.encode()
    message.reasoning.encode()
    for call in message.calls:
        assert call.name
        call.arguments.encode()


@pytest.mark.parametrize("family", TOOL_FRAGMENTS)
@budget(40)
@given(data=st.data())
def test_tool_parsers(family: str, data: st.DataObject) -> None:
    text = data.draw(texts(TOOL_FRAGMENTS[family], OTHERS))
    factory = TOOL_PARSERS[family]
    message = parse(factory(FUNCTIONS), [text])
    for pieces in (data.draw(cuts(text)), list(text)):
        assert parse(factory(FUNCTIONS), pieces) == message
    check_message(message)
    if family not in WRITE_JSON:
        assert all(isinstance(json.loads(call.arguments), dict) for call in message.calls[:-1])


@pytest.mark.parametrize("family", TOOL_FRAGMENTS)
@budget(15)
@given(data=st.data())
def test_words_outside_of_calls_are_content(family: str, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from([*WORDS, "x < y", "1", "[0]", "é"]), max_size=12).map("".join))
    for pieces in ([words], data.draw(cuts(words))):
        assert parse(TOOL_PARSERS[family](FUNCTIONS), pieces) == Message(words)


@pytest.mark.parametrize("family", REASONING_FRAGMENTS)
@budget(40)
@given(data=st.data())
def test_reasoning_parsers(family: str, data: st.DataObject) -> None:
    context, text = data.draw(CONTEXTS), data.draw(texts(REASONING_FRAGMENTS[family], OTHERS))
    factory = REASONING_PARSERS[family]
    message = parse(factory(context), [text])
    for pieces in (data.draw(cuts(text)), list(text)):
        assert parse(factory(context), pieces) == message
    check_message(message)
    assert not message.calls


@pytest.mark.parametrize("family", REASONING_FRAGMENTS)
@budget(15)
@given(data=st.data())
def test_words_are_thought_or_content(family: str, data: st.DataObject) -> None:
    context, text = data.draw(CONTEXTS), data.draw(st.lists(st.sampled_from(WORDS), max_size=12).map("".join))
    message = parse(REASONING_PARSERS[family](context), data.draw(cuts(text)))
    assert text in (message.reasoning, message.content.removeprefix("<think>"))


def folded(parts: Iterable[MessagePart]) -> Message:
    """Checks that the news of calls come in their order, each call's name first."""
    message = Message()
    for part in parts:
        match part:
            case str():
                message.content += part
            case Reasoning(text):
                message.reasoning += text
            case ToolCallDelta(index, id, name, arguments):
                if name is not None:
                    assert index == len(message.calls)
                    message.calls.append(Call(name, "", id and None))
                assert index == len(message.calls) - 1
                message.calls[index].arguments += arguments
    return message


@budget(400)
@given(data=st.data())
def test_any_two_parsers_together(data: st.DataObject) -> None:
    reasoning, tool = data.draw(st.sampled_from([*REASONING_FRAGMENTS])), data.draw(st.sampled_from([*TOOL_FRAGMENTS]))
    context = data.draw(CONTEXTS)
    fragments = [*REASONING_FRAGMENTS[reasoning], *TOOL_FRAGMENTS[tool]]
    text = data.draw(texts(fragments, OTHERS))
    guide = data.draw(st.sampled_from([None, None, None, "required", "named"]))

    def message(pieces: list[str]) -> Message:
        stage: Parser = TOOL_PARSERS[tool](FUNCTIONS)
        if guide is not None:
            stage = required_calls(FUNCTIONS, stage) if guide == "required" else named_call("run", stage)
        parser = MessageParser([REASONING_PARSERS[reasoning](context), stage], lambda: "id")
        parts = [part for piece in pieces for part in parser.push(piece)] + parser.flush()
        assert parser.has_calls == any(isinstance(part, ToolCallDelta) for part in parts)
        return folded(parts)

    whole = message([text])
    assert message(data.draw(cuts(text))) == whole
    assert message(list(text)) == whole
    check_message(whole)


@budget(100)
@given(data=st.data())
def test_the_example_of_a_plug_in(data: st.DataObject) -> None:
    text = data.draw(texts(["[answer]", '[[run {"a": 1}]]', "[[nope]]", "[[run", "]]"], OTHERS))

    def message(pieces: list[str]) -> Message:
        parser = MessageParser([UntilAnswer(ReasoningContext()), BracketCalls(FUNCTIONS)], lambda: "id")
        return folded([part for piece in pieces for part in parser.push(piece)] + parser.flush())

    assert message(data.draw(cuts(text))) == message([text])
