"""Reads a tokenizer file in a process of its own: `python -m dynamo.frontend.vocabulary_reader`.

Parsing a large vocabulary holds the interpreter for hundreds of milliseconds and leaves tens of megabytes behind; here
neither touches a serving process. It answers one `Request` on stdin with one `Report` on stdout (msgpack): the byte
table for the detokenizer, and a probe text with its ids by Hugging Face `tokenizers`, for whoever encodes faster to
agree with.
"""

from __future__ import annotations

import array
import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

TIMEOUT_S = 120.0
COPY_DONE = b"."
MAX_PROBED_TOKENS = 256
# What tokenizers disagree about: contractions, digit runs, whitespace runs, marks, scripts, emoji sequences, code.
PROBE_TEXT = "\n".join(
    (
        "The quick fox can't jump; it's 7 o'clock, WE'LL see: HTTPServer2's fooBar_baz -> 1234567890.12e-7 $9,999.",
        "  leading  and   inner    runs\t\tof tabs \r\n\r\n\n and trailing   \n",
        'def f(x: int = 0) -> dict[str, int]:\n    if x != 3:\n\t\treturn {"key": [x, ~x >> 2]}  # why\n',
        "Größe façade naïve Ελληνικά русский язык עברית العربية हिन्दी ไทย",
        "日本語の文章です。中文字符,한국어 문장 tiếng Việt",
        "e\u0301 n\u0303 \ufb01 \u00bd \u2167 \u0661\u0662\u0663 \u200b\u00a0\u3000\u2028 \U0001d518",
        "\U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd",
        "<div class='x'>&amp;</div> | a | b |\n|---|---| ```json\n{\"a\": null}\n``` https://example.org/?q=1&r=%20#top",
        "...!!??--==== //// aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa        \n",
    )
)


class Request(Struct):
    """`special_tokens` (text -> id) are those a tiktoken file leaves out; a tokenizer.json holds its own.

    `copy_path`: where to put a copy of a tokenizer.json that fastokens parses in half the time, if anywhere.
    """

    path: str
    is_tiktoken: bool = False
    special_tokens: dict[str, int] = {}
    copy_path: str | None = None


class Probe(Struct):
    """A text and its packed u32 ids, without and with the tokens that an encode may add around it."""

    text: str
    token_ids: bytes
    token_ids_with_special: bytes


class Report(Struct):
    """`blob` is None when the vocabulary is not byte-level; `offsets` are packed u32, one more than there are ids.

    A tiktoken file has no probe: there is only one way to encode with it.
    """

    blob: bytes | None = None
    offsets: bytes = b""
    special_ids: list[int] = []
    probe: Probe | None = None


class ReaderError(Exception):
    """The file cannot be read as a vocabulary; the message says why."""


class VocabularyReader:
    """The process, which starts reading at construction. A context manager: it does not outlive the block."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            bufsize=0,  # `wait_for_copy` must not read ahead of `finish`
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._send()

    def _send(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: `finish` says why
            self._process.stdin.write(msgspec.msgpack.encode(self._request))
            self._process.stdin.close()
        self._process.stdin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left of the process, whether it has finished or not."""
        self._process.kill()
        self._process.communicate()

    def wait_for_copy(self) -> None:
        """Until `copy_path` is complete. Raises ReaderError."""
        assert self._process.stdout is not None
        if self._process.stdout.read(len(COPY_DONE)) != COPY_DONE:
            self.finish()

    def finish(self) -> Report:
        try:
            out, err = self._process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ReaderError(f"not read as a vocabulary within {TIMEOUT_S:.0f} s") from None
        if self._process.returncode:
            reason = err.decode(errors="replace").strip().splitlines()
            raise ReaderError(reason[-1] if reason else f"exit status {self._process.returncode}")
        return msgspec.msgpack.decode(out, type=Report)


def read(request: Request) -> Report:
    if request.is_tiktoken:
        return _read_tiktoken(request)
    return _read_tokenizer_json(request)


# --------------------------------------------------------------------------- tokenizer.json


def write_sorted_copy(path: str, copy_path: str) -> None:
    """fastokens parses the file while it holds the interpreter lock; a vocabulary in order and without blanks, and
    merges as strings instead of pairs, halve that."""
    content = json.loads(Path(path).read_bytes())
    model = content.get("model") or {}
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = dict(sorted(model["vocab"].items()))
    merges = model.get("merges")
    if isinstance(merges, list) and not any(" " in part for pair in merges if isinstance(pair, list) for part in pair):
        model["merges"] = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    with open(copy_path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def _read_tokenizer_json(request: Request) -> Report:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(request.path)
    special_ids = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    report = Report(special_ids=sorted(special_ids), probe=_probe(tokenizer))
    if is_byte_level(tokenizer):
        report.blob, report.offsets = _pack(_byte_level_tokens(tokenizer))
    return report


def is_byte_level(tokenizer: HfTokenizer) -> bool:
    """True when decoding is joining the tokens' bytes, whatever their neighbours."""
    steps = _decoder_steps(json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {})
    return "ByteLevel" in steps and set(steps) <= {"ByteLevel", "Fuse"}


def _decoder_steps(decoder: dict[str, Any]) -> list[str]:
    if decoder.get("type") == "Sequence":
        return [step for part in decoder["decoders"] for step in _decoder_steps(part)]
    return [decoder.get("type", "")]


def _probe(tokenizer: HfTokenizer) -> Probe:
    """Added tokens are probed inside text, where stripping and word boundaries would show."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    text = PROBE_TEXT + "".join(f"word{token} and {token}\n" for token in added[:MAX_PROBED_TOKENS])
    plain, with_special = (tokenizer.encode(text, add_special_tokens=add).ids for add in (False, True))
    return Probe(text, array.array("I", plain).tobytes(), array.array("I", with_special).tobytes())


def _byte_level_tokens(tokenizer: HfTokenizer) -> Iterator[bytes]:
    byte_of = _byte_of_char()
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    for token_id in range(last + 1):
        token = tokenizer.id_to_token(token_id) or ""
        try:
            yield bytes([byte_of[char] for char in token])
        except KeyError:  # an added token written as itself
            yield token.encode()


def _byte_of_char() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the rest from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


# --------------------------------------------------------------------------- tiktoken


def _read_tiktoken(request: Request) -> Report:
    tokens: dict[int, bytes] = {}
    for line in Path(request.path).read_bytes().splitlines():
        if line:
            token, rank = line.split()
            tokens[int(rank)] = base64.b64decode(token)
    tokens |= {token_id: text.encode() for text, token_id in request.special_tokens.items()}
    blob, offsets = _pack(tokens.get(i, b"") for i in range(max(tokens, default=-1) + 1))
    return Report(blob=blob, offsets=offsets, special_ids=sorted(request.special_tokens.values()))


def _pack(tokens: Iterator[bytes]) -> tuple[bytes, bytes]:
    parts: list[bytes] = []
    offsets = array.array("I", [0])
    for token in tokens:
        parts.append(token)
        offsets.append(offsets[-1] + len(token))
    return b"".join(parts), offsets.tobytes()


def main() -> None:
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request)
    if request.copy_path is not None:
        write_sorted_copy(request.path, request.copy_path)
        sys.stdout.buffer.write(COPY_DONE)
        sys.stdout.buffer.flush()
    sys.stdout.buffer.write(msgspec.msgpack.encode(read(request)))


if __name__ == "__main__":
    main()
