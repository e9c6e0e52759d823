"""Token ids to text as they arrive: `push` what came, `flush` at the end.

A vocabulary says how: byte-level ones (GPT-2 style BPE, tiktoken) are a `TokenTable` of byte strings whose
concatenation is the text; every other kind asks Hugging Face `tokenizers` (`HfVocabulary`), whose decoders look at
neighbours.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

REPLACEMENT = "\ufffd"
MAX_HELD_IDS = 3  # a character of four bytes lacks at least one


class Detokenizer(Protocol):
    """One stream. Text that ends inside a character is held back until the rest arrives."""

    def push(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str:
        """The end: an unfinished character becomes U+FFFD."""


class Vocabulary(Protocol):
    """Its length is one more than the highest id."""

    special_ids: frozenset[int]

    def __len__(self) -> int: ...

    def detokenizer(self, skip_special_tokens: bool = False, context: Sequence[int] = ()) -> Detokenizer:
        """`context`: the last ids of the prompt, for decoders that strip the first token's leading space."""

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, alone; empty for an id outside the vocabulary."""


# --------------------------------------------------------------------------- byte-level


class _Pieces(dict[int, bytes]):
    """id -> bytes, filled on first use: of a large vocabulary a process only ever sees a part."""

    __slots__ = ("_table",)

    def __init__(self, table: TokenTable, hidden: Iterable[int] = ()) -> None:
        super().__init__(dict.fromkeys(hidden, b""))
        self._table = table

    def __missing__(self, token_id: int) -> bytes:
        piece = self._table.token_bytes(token_id)
        if token_id in self._table:
            self[token_id] = piece
        return piece


class TokenTable:
    """A byte-level vocabulary: token i is `blob[offsets[i]:offsets[i + 1]]`, and ids without a token are empty."""

    __slots__ = ("_all", "_blob", "_offsets", "_visible", "special_ids")

    def __init__(self, blob: bytes, offsets: bytes, special_ids: Iterable[int]) -> None:
        """`offsets`: native u32, one more than there are ids."""
        self._blob = blob
        self._offsets = memoryview(offsets).cast("I")
        self.special_ids = frozenset(special_ids)
        self._all = _Pieces(self)
        self._visible = _Pieces(self, self.special_ids)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __contains__(self, token_id: int) -> bool:
        return 0 <= token_id < len(self._offsets) - 1

    def token_bytes(self, token_id: int) -> bytes:
        if token_id not in self:
            return b""
        return self._blob[self._offsets[token_id] : self._offsets[token_id + 1]]

    def detokenizer(self, skip_special_tokens: bool = False, context: Sequence[int] = ()) -> ByteDetokenizer:
        return ByteDetokenizer(self._visible if skip_special_tokens else self._all)


class ByteDetokenizer:
    """Joins bytes and decodes as much of them as is whole; at most three bytes are held."""

    __slots__ = ("_held", "_pieces")

    def __init__(self, pieces: _Pieces) -> None:
        self._pieces = pieces
        self._held = b""

    def push(self, token_ids: Sequence[int]) -> str:
        pieces = self._pieces
        data = pieces[token_ids[0]] if len(token_ids) == 1 else b"".join([pieces[i] for i in token_ids])
        if not self._held and data.isascii():
            return data.decode()
        data = self._held + data
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def flush(self) -> str:
        text = self._held.decode("utf-8", "replace")
        self._held = b""
        return text


# --------------------------------------------------------------------------- everything else


class HfVocabulary:
    """SentencePiece-like and WordPiece vocabularies, decoded by Hugging Face `tokenizers`."""

    __slots__ = ("_size", "_tokenizer", "special_ids")

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer
        self._size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special)

    def __len__(self) -> int:
        return self._size

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode([token_id]).encode()

    def detokenizer(self, skip_special_tokens: bool = False, context: Sequence[int] = ()) -> HfDetokenizer:
        return HfDetokenizer(self, skip_special_tokens, context)


class HfDetokenizer:
    """Decodes a window of ids, those of the last emitted piece and all since, and emits what the window gained.

    A byte-fallback decoder turns a whole run of byte tokens into U+FFFD while the run's last character is unfinished,
    so the last ids are held back as long as leaving them out ends the text well; after MAX_HELD_IDS the bytes are
    simply wrong. The window never starts with ids that decode to nothing: what follows them would lose its leading
    space as if it were the start of the text.
    """

    __slots__ = ("_decode", "_emitted", "_hidden", "_num_old", "_window")

    def __init__(self, vocabulary: HfVocabulary, skip_special_tokens: bool, context: Sequence[int]) -> None:
        self._decode = vocabulary.decode
        self._hidden = vocabulary.special_ids if skip_special_tokens else frozenset()
        self._window = list(context)
        self._num_old = len(self._window)
        self._emitted = len(self._decode(self._window))

    def push(self, token_ids: Sequence[int]) -> str:
        self._window += [i for i in token_ids if i not in self._hidden]
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._emit(len(self._window), text)
        end = self._num_finished()
        return self._emit(end, self._decode(self._window[:end]))

    def flush(self) -> str:
        return self._emit(len(self._window), self._decode(self._window))

    def _num_finished(self) -> int:
        size = len(self._window)
        for end in range(size - 1, max(size - MAX_HELD_IDS, self._num_old) - 1, -1):
            if end == self._num_old or not self._decode(self._window[:end]).endswith(REPLACEMENT):
                return end
        return size

    def _emit(self, end: int, text: str) -> str:
        """What `text`, the window up to `end`, adds; then start the window after what was emitted before."""
        new = text[self._emitted :]
        self._emitted += len(new)
        if recent_text := self._decode(self._window[self._num_old : end]):
            del self._window[: self._num_old]
            self._num_old = end - self._num_old
            self._emitted = len(recent_text)
        return new
