"""Text to token ids. Ids leave as packed u32, so that a long prompt never becomes a list of Python ints on its way.

`load_tokenizer` picks who encodes: fastokens when it loads the file and agrees with Hugging Face `tokenizers` on a
probe text, else `tokenizers` itself, some hundred times slower. The vocabulary is read in a process of its own
(vocabulary_reader.py).
"""

from __future__ import annotations

import array
import ctypes
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import fastokens
import tokenizers

from dynamo.frontend.detokenizer import HfVocabulary, TokenTable, Vocabulary
from dynamo.frontend.vocabulary_reader import Probe, ReaderError, Report, Request, VocabularyReader

log = logging.getLogger(__name__)

# An acceptor has one core: threads inside one encode would take it from its neighbours, and 34 MB with it.
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")

BACKENDS = ("default", "fastokens", "huggingface")
DEFAULT_CACHE_BYTES = 50 << 20


class TokenizerError(Exception):
    """A tokenizer file cannot be served; the message says why."""


class CacheStats(NamedTuple):
    hits: int
    misses: int
    hit_bytes: int
    miss_bytes: int
    num_entries: int
    num_bytes: int
    max_bytes: int


class Tokenizer(Protocol):
    """`is_slow`: an encode of a long text belongs in a thread, not on the event loop."""

    backend: str
    is_slow: bool

    def encode(self, text: str, add_special_tokens: bool = False) -> bytes:
        """Packed little-endian u32 ids. Special tokens written in the text are recognised."""

    def cache_stats(self) -> CacheStats | None:
        """Counters of the exact segment cache, None when there is none."""


@dataclass(frozen=True, slots=True)
class TokenizerOptions:
    """`backend`: `default` and `fastokens` differ only without `fallback`: then the latter fails where the former asks
    `tokenizers`. `cache_bytes` 0 switches the segment cache off."""

    backend: str = "default"
    fallback: bool = True
    cache_bytes: int = DEFAULT_CACHE_BYTES

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown tokenizer backend {self.backend!r}; expected one of {', '.join(BACKENDS)}")

    @property
    def may_fall_back(self) -> bool:
        return self.fallback or self.backend == "default"


DEFAULT_OPTIONS = TokenizerOptions()


@dataclass(frozen=True, slots=True)
class TiktokenFormat:
    """What a .tiktoken file does not say: the split pattern and the special tokens (text -> id)."""

    pattern: str
    special_tokens: dict[str, int]


class FastTokenizer:
    backend = "fastokens"
    is_slow = False

    def __init__(self, native: fastokens.Tokenizer, cache_bytes: int) -> None:
        native.enable_segment_cache(cache_bytes)
        self._native = native
        self._encode_flat = native.encode_batch_flat

    def encode(self, text: str, add_special_tokens: bool = False) -> bytes:
        token_ids: bytes = self._encode_flat([text], add_special_tokens)[0]
        return token_ids

    def cache_stats(self) -> CacheStats | None:
        stats = self._native.segment_cache_stats()
        if stats is None:
            return None
        names = ("hits", "misses", "hit_bytes", "miss_bytes", "entries", "bytes", "max_bytes")
        return CacheStats(*(stats[name] for name in names))

    def agrees_with(self, probe: Probe) -> bool:
        return (
            self.encode(probe.text) == probe.token_ids
            and self.encode(probe.text, add_special_tokens=True) == probe.token_ids_with_special
        )


class HfTokenizer:
    backend = "huggingface"
    is_slow = True

    def __init__(self, native: tokenizers.Tokenizer) -> None:
        self._encode = native.encode

    def encode(self, text: str, add_special_tokens: bool = False) -> bytes:
        return array.array("I", self._encode(text, add_special_tokens=add_special_tokens).ids).tobytes()

    def cache_stats(self) -> CacheStats | None:
        return None


def load_tokenizer(
    path: Path, tiktoken: TiktokenFormat | None = None, options: TokenizerOptions = DEFAULT_OPTIONS
) -> tuple[Tokenizer, Vocabulary]:
    """Load a tokenizer.json, or a .tiktoken file when its format is given. Takes a second or two: call it in a thread.

    Raises TokenizerError.
    """
    reader = VocabularyReader(Request(str(path), tiktoken is not None, tiktoken.special_tokens if tiktoken else {}))
    try:
        fast = _load_tiktoken(path, tiktoken, options) if tiktoken else _load_fast(path, options)
        report = reader.finish()
    except ReaderError as error:
        raise TokenizerError(f"{path}: {error}") from None
    finally:
        reader.abort()
    _release_free_memory()
    return _choose(path, fast, report, options)


def _load_fast(path: Path, options: TokenizerOptions) -> FastTokenizer | None:
    if options.backend == "huggingface":
        return None
    try:
        return FastTokenizer(fastokens.Tokenizer.from_file(str(path)), options.cache_bytes)
    except ValueError as error:
        if not options.may_fall_back:
            raise TokenizerError(f"{path}: fastokens cannot load it: {error}") from None
        log.info("%s: fastokens cannot load it (%s); tokenizers will encode", path, error)
        return None


def _load_tiktoken(path: Path, tiktoken: TiktokenFormat, options: TokenizerOptions) -> FastTokenizer:
    """Only fastokens reads these files, whatever the backend asked for."""
    try:
        native = fastokens.Tokenizer.from_tiktoken(str(path), tiktoken.pattern, tiktoken.special_tokens)
    except ValueError as error:
        raise TokenizerError(f"{path}: not a tiktoken vocabulary that can be served: {error}") from None
    return FastTokenizer(native, options.cache_bytes)


def _choose(
    path: Path, fast: FastTokenizer | None, report: Report, options: TokenizerOptions
) -> tuple[Tokenizer, Vocabulary]:
    if fast is not None and report.probe is not None and not fast.agrees_with(report.probe):
        if not options.may_fall_back:
            raise TokenizerError(f"{path}: fastokens encodes the probe text differently from tokenizers")
        log.warning("%s: fastokens encodes the probe text differently from tokenizers, which will encode", path)
        fast = None
    table = TokenTable(report.blob, report.offsets, report.special_ids) if report.blob is not None else None
    if fast is not None and table is not None:
        return fast, table
    native = tokenizers.Tokenizer.from_file(str(path))
    native.no_truncation()
    native.no_padding()
    return fast or HfTokenizer(native), table or HfVocabulary(native)


def _release_free_memory() -> None:
    """Give what loading left free back to the system (glibc; elsewhere there is nothing to do)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
