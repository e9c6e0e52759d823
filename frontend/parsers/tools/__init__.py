"""Tool-call formats, one family per file; `TOOL_PARSERS` are all names that a model card may give."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ToolParserFactory
from dynamo.frontend.parsers.tools.dsml import deepseek_v3_2, deepseek_v4, deepseek_v41
from dynamo.frontend.parsers.tools.gemma4 import Gemma4Parser
from dynamo.frontend.parsers.tools.glm import glm
from dynamo.frontend.parsers.tools.harmony import Harmony
from dynamo.frontend.parsers.tools.inkling import Inkling
from dynamo.frontend.parsers.tools.json_calls import JSON_PARSERS
from dynamo.frontend.parsers.tools.kimi_k3 import KIMI_K3_PARSERS
from dynamo.frontend.parsers.tools.minimax_m2 import minimax_m2
from dynamo.frontend.parsers.tools.minimax_m3 import MinimaxM3Parser
from dynamo.frontend.parsers.tools.muse import MuseCalls
from dynamo.frontend.parsers.tools.named_calls import NAMED_PARSERS
from dynamo.frontend.parsers.tools.pythonic import PYTHONIC_PARSERS
from dynamo.frontend.parsers.tools.qwen3_coder import qwen3_coder

TOOL_PARSERS: dict[str, ToolParserFactory] = {
    **JSON_PARSERS,
    **KIMI_K3_PARSERS,
    **NAMED_PARSERS,
    **PYTHONIC_PARSERS,
    "deepseek-v4": deepseek_v4,
    "deepseek_v3_2": deepseek_v3_2,
    "deepseek_v4": deepseek_v4,
    "deepseek_v41": deepseek_v41,
    "deepseekv4": deepseek_v4,
    "gemma-4": Gemma4Parser,
    "gemma4": Gemma4Parser,
    "glm45": glm,
    "glm47": glm,
    "harmony": Harmony,
    "inkling": Inkling,
    "minimax-m3": MinimaxM3Parser,
    "minimax-m3-nom": MinimaxM3Parser,
    "minimax_m2": minimax_m2,
    "minimax_m3": MinimaxM3Parser,
    "minimax_m3_nom": MinimaxM3Parser,
    "muse": MuseCalls,
    "muse_glimmer": MuseCalls,
    "nemotron_nano": qwen3_coder,
    "qwen3_coder": qwen3_coder,
}
