"""Tool-call formats, one family per file; `TOOL_PARSERS` are all names that a model card may give."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ToolParserFactory
from dynamo.frontend.parsers.tools.json_calls import JSON_PARSERS
from dynamo.frontend.parsers.tools.qwen3_coder import qwen3_coder

TOOL_PARSERS: dict[str, ToolParserFactory] = {
    **JSON_PARSERS,
    "nemotron_nano": qwen3_coder,
    "qwen3_coder": qwen3_coder,
}
