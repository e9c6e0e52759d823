"""Parsers that published chat templates imply, and such as imply none."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo.frontend.parsers.detect import detect
from dynamo.frontend.parsers.registry import reasoning_parser, tool_parser

TEMPLATES = Path(__file__).parents[1] / "templates"
IMPLIED: dict[str, tuple[str | None, str | None]] = {
    "apertus": (None, None),
    "by_hand/command-r/tool_use": (None, None),
    "by_hand/deepseek-v3": ("deepseek_v3", None),
    "by_hand/gemma-3": (None, None),
    "by_hand/hermes/default": (None, None),
    "by_hand/hermes/tool_use": ("hermes", None),
    "by_hand/kimi-k2": ("kimi_k2", "kimi_k2"),
    "by_hand/llama-3": ("llama3_json", None),
    "by_hand/minimax-m2": ("minimax_m2", "minimax_m2"),
    "by_hand/nemotron": ("qwen3_coder", "qwen3"),
    "by_hand/phi-4": (None, None),
    "deepseek-r1-distill-qwen": ("deepseek_v3", "deepseek_r1"),
    "deepseek-v3.1": ("deepseek_v3_1", "deepseek_v3_1"),
    "devstral-small": ("mistral", None),
    "glm-4.6": ("glm45", "glm45"),
    "gpt-oss": ("harmony", "gpt_oss"),
    "granite-3.3": (None, None),
    "granite-4.0": ("hermes", None),
    "ministral-3-reasoning": ("mistral", "mistral"),
    "mistral-nemo": ("mistral", None),
    "phi-3.5-mini": (None, None),
    "qwen2.5": ("hermes", None),
    "qwen3": ("hermes", "qwen3"),
    "qwen3-coder": ("qwen3_coder", None),
    "qwq": ("hermes", "qwen3"),
    "seed-oss": (None, None),
    "smollm3": (None, "qwen3"),
}
WRITTEN: list[tuple[str, tuple[str | None, str | None]]] = [
    ("", (None, None)),
    ("{{ messages[0].content }}", (None, None)),
    ("{# <tool_call> and <think>, </think>: <|im_start|> #}{{ x }}", (None, None)),
    ("'<TOOLCALL>' + (calls | tojson) + '</TOOLCALL>'", ("nemotron_deci", None)),
    ("<tool_call> or [TOOL_CALLS]: which?", (None, None)),
    ("<|channel>thought\n<channel|><|tool_call>call:f{}<tool_call|>", ("gemma4", "gemma4")),
    ("<｜DSML｜tool_calls>", ("deepseek_v4", None)),  # noqa: RUF001
    ("<｜DSML｜function_calls>", ("deepseek_v3_2", None)),  # noqa: RUF001
    ("◁think▷", (None, "kimi")),
    ("<|im_start|>assistant\n<think>", (None, None)),
]


@pytest.mark.parametrize(("name", "implied"), IMPLIED.items())
def test_published_templates(name: str, implied: tuple[str | None, str | None]) -> None:
    assert detect((TEMPLATES / f"{name}.jinja").read_text()) == implied


@pytest.mark.parametrize(("source", "implied"), WRITTEN)
def test_markers_in_templates(source: str, implied: tuple[str | None, str | None]) -> None:
    assert detect(source) == implied


def test_what_is_implied_exists() -> None:
    """Looking a parser up raises where there is none of this name."""
    for tool, reasoning in (*IMPLIED.values(), *(implied for _, implied in WRITTEN)):
        if tool is not None:
            tool_parser(tool)
        if reasoning is not None:
            reasoning_parser(reasoning)
