"""Text for an engine without a model: words of the vocabulary, the same for the same prompt and seed everywhere."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

TOKENS_PER_DRAW = 64
_DRAW = struct.Struct(f"<{TOKENS_PER_DRAW}I")

# Whole ASCII words after a space: no special token, no part of a character, nothing a template would notice.
# Vocabularies without leading spaces have bare words.
_SPACED_WORD = re.compile("[Ġ▁ ][A-Za-z]+")
_BARE_WORD = re.compile("[A-Za-z]+")

# For a model whose vocabulary cannot be read; ordinary words in most.
ANY_VOCABULARY = range(1000, 2000)


def words_of(model_dir: Path) -> Sequence[int]:
    """Token ids to make text of, in ascending order."""
    tokenizer = model_dir / "tokenizer.json"
    if not tokenizer.is_file():
        return ANY_VOCABULARY
    content = msgspec.json.decode(tokenizer.read_bytes(), type=dict[str, Any])
    special = {token["id"] for token in content.get("added_tokens", ())}
    entries = [(text, id) for text, id in _entries(content["model"]["vocab"]) if id not in special]
    for word in (_SPACED_WORD, _BARE_WORD):
        if ids := sorted(id for text, id in entries if word.fullmatch(text)):
            return ids
    return ANY_VOCABULARY


def made_up_tokens(words: Sequence[int], prompt_digest: int, seed: int) -> Iterator[int]:
    """An endless text."""
    key = struct.pack("<QQ", prompt_digest, seed & (2**64 - 1))
    num_words, draw = len(words), 0
    while True:
        digest = hashlib.shake_128(key + struct.pack("<Q", draw)).digest(_DRAW.size)
        for number in _DRAW.unpack(digest):
            yield words[number % num_words]
        draw += 1


def _entries(vocab: dict[str, int] | list[list[Any]]) -> Iterator[tuple[str, int]]:
    """BPE and WordPiece map text to id, Unigram lists [text, score] by id."""
    if isinstance(vocab, dict):
        yield from vocab.items()
    else:
        yield from ((text, id) for id, (text, _score) in enumerate(vocab))
