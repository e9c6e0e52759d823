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
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import fastokens

from dynamo.frontend.detokenizer import HfVocabulary, TokenTable, Vocabulary
from dynamo.frontend.vocabulary_reader import PROBE_TEXT, Probe, ReaderError, Report, Request, VocabularyReader

if TYPE_CHECKING:
    from tokenizers import Tokenizer as NativeTokenizer  # 5 MB, and rarely needed

log = logging.getLogger(__name__)

# An acceptor has one core: threads inside one encode would take it from its neighbours, and 34 MB with it.
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")

BACKENDS = ("default", "fastokens", "huggingface")
DEFAULT_CACHE_BYTES = 50 << 20

Result = TypeVar("Result")


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

    def __init__(self, native: NativeTokenizer) -> None:
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
    try:
        if tiktoken is not None:
            return _load_tiktoken(path, tiktoken, options)
        return _load_json(path, options)
    except ReaderError as error:
        raise TokenizerError(f"{path}: {error}") from None
    finally:
        _release_free_memory()


def _load_tiktoken(path: Path, tiktoken: TiktokenFormat, options: TokenizerOptions) -> tuple[Tokenizer, Vocabulary]:
    """Only fastokens reads these files, whatever the backend asked for."""
    with VocabularyReader(Request(str(path), is_tiktoken=True, special_tokens=tiktoken.special_tokens)) as reader:
        try:
            native = fastokens.Tokenizer.from_tiktoken(str(path), tiktoken.pattern, tiktoken.special_tokens)
        except ValueError as error:
            raise TokenizerError(f"{path}: not a tiktoken vocabulary that can be served: {error}") from None
        report = reader.finish()
    assert report.blob is not None
    fast = FastTokenizer(native, options.cache_bytes)
    _in_passing_thread(lambda: fast.encode(PROBE_TEXT))
    return fast, TokenTable(report.blob, report.offsets, report.special_ids)


def _load_json(path: Path, options: TokenizerOptions) -> tuple[Tokenizer, Vocabulary]:
    fast, report = _load_fast(path, options)
    table = TokenTable(report.blob, report.offsets, report.special_ids) if report.blob is not None else None
    if fast is not None and table is not None:
        return fast, table
    from tokenizers import Tokenizer

    native = Tokenizer.from_file(str(path))
    native.no_truncation()
    native.no_padding()
    return fast or HfTokenizer(native), table or HfVocabulary(native)


def _load_fast(path: Path, options: TokenizerOptions) -> tuple[FastTokenizer | None, Report]:
    """fastokens where it serves this file, and the report on the file."""
    if options.backend == "huggingface":
        with VocabularyReader(Request(str(path))) as reader:
            return None, reader.finish()
    with _temporary_file() as copy_path, VocabularyReader(Request(str(path), copy_path=copy_path)) as reader:
        if copy_path is not None:
            reader.wait_for_copy()
        try:
            native = fastokens.Tokenizer.from_file(copy_path or str(path))
        except ValueError as error:
            _fall_back(f"{path}: fastokens cannot load it: {error}", options)
            return None, reader.finish()
        report = reader.finish()
    fast = FastTokenizer(native, options.cache_bytes)
    probe = report.probe
    if probe is None or _in_passing_thread(lambda: fast.agrees_with(probe)):
        return fast, report
    _fall_back(f"{path}: fastokens encodes the probe text differently from tokenizers", options)
    return None, report


def _fall_back(reason: str, options: TokenizerOptions) -> None:
    if not options.may_fall_back:
        raise TokenizerError(reason)
    log.warning("%s; tokenizers will encode", reason)


@contextmanager
def _temporary_file() -> Iterator[str | None]:
    """Its path; None where nothing can be written."""
    with ExitStack() as stack:
        path = None
        with suppress(OSError):
            path = stack.enter_context(tempfile.NamedTemporaryFile(prefix="dynamo-tokenizer-")).name
        yield path


def _in_passing_thread(function: Callable[[], Result]) -> Result:
    """The first encode builds what all threads share, and a cache of 16 MB that lives as long as the thread."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def _release_free_memory() -> None:
    """Give what loading left free back to the system (glibc; elsewhere there is nothing to do)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
