"""Marked-up tool calls, read by the real frontend and by ours: what is well formed means the same to both, and where
they differ is what the parsers say of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.frontend.parsers import (
    test_dsml,
    test_gemma4,
    test_glm,
    test_inkling_calls,
    test_minimax_m2,
    test_minimax_m3,
    test_muse_calls,
    test_qwen3_coder,
)
from tests.interop.parser_oracle import ParserOracle
from tests.interop.test_tool_calls import said_by_ours, said_by_real

GOLDENS = {
    "qwen3_coder": test_qwen3_coder.GOLDENS,
    "nemotron_nano": test_qwen3_coder.GOLDENS,
    "minimax_m2": test_minimax_m2.GOLDENS,
    "minimax_m3": test_minimax_m3.GOLDENS,
    "minimax_m3_nom": test_minimax_m3.GOLDENS,
    "deepseek_v4": test_dsml.GOLDENS,
    "glm47": test_glm.GOLDENS,
    "gemma4": test_gemma4.GOLDENS,
    "muse_glimmer": test_muse_calls.GOLDENS,
    "inkling": test_inkling_calls.GOLDENS,
}
QWEN_NAMES = [
    "content before",
    "several calls and content between",
    "several calls in a block",
    "blocks begun twice",
    "quoted name",
    "types",
    "Python's literals",
    "null",
    "unions",
    "unknown parameters",
    "unknown function",
    "empty value",
    "a call without an end",
    "text in a call",
    "the end in a name",
]
M3_NAMES = ["content and calls", "types", "objects without a schema", "JSON", "empty values", "text beside tags"]
SAME = {
    "qwen3_coder": QWEN_NAMES,
    "nemotron_nano": QWEN_NAMES,
    "minimax_m2": ["content and calls", "blocks", "types", "null", "a parameter without a name", "the end in a name"],
    "minimax_m3": M3_NAMES,
    "minimax_m3_nom": M3_NAMES,
    "deepseek_v4": ["content and calls", "the model's types go before those of the schema", "null", "a broken object"],
    "glm47": ["on one line", "types", "unknown parameters", "text is kept", "markers in values", "the end in a name"],
    "gemma4": ["content and calls", "space", "the end in a name"],
    "muse_glimmer": ["messages"],
    "inkling": ["arguments before the name", "no arguments", "markers in strings", "text after a call"],
}
DIFFERENT = {
    "qwen3_coder": ["no block", "white space and entities are kept", "values of other types stay strings"],
    "minimax_m2": ["no block", "text is kept", "the end in a value"],
    "minimax_m3": ["no block", "text is kept", "a string without an end"],
    "deepseek_v4": ["one object", "text is kept", "the end in a value"],
    "glm47": ["line by line", "a value without an end"],
    "gemma4": ["bare words", "text is kept", "quoted keys", "missing brackets"],
    "muse_glimmer": ["no messages", "types"],
    "inkling": ["messages and calls", "thought", "no JSON"],
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[ParserOracle]:
    with ParserOracle((family, None) for family in GOLDENS) as oracle:
        yield oracle


@pytest.mark.parametrize("family", SAME)
def test_what_is_well_formed_means_the_same(oracle: ParserOracle, family: str) -> None:
    for case in GOLDENS[family]:
        if case.name in SAME[family]:
            assert said_by_real(oracle, family, case.text) == said_by_ours(family, case.text), case.name


@pytest.mark.parametrize("family", DIFFERENT)
def test_differences(oracle: ParserOracle, family: str) -> None:
    texts = {case.name: case.text for case in GOLDENS[family]}
    for name in DIFFERENT[family]:
        assert said_by_real(oracle, family, texts[name]) != said_by_ours(family, texts[name]), name
