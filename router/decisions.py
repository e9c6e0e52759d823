"""The decision log: one JSON line per placement, with everything it was decided on.

`replay` reads it again. The file is written by the router's process alone and closed at a size limit, not rotated: a
log is for looking into one question, and is switched off by default.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import msgspec
from msgspec import Struct

from dynamo.router.selectors import Choice, Question
from dynamo.router.weights import Weights
from dynamo.shared.messages import Candidate

log = logging.getLogger("dynamo.router")

MAX_UNWRITTEN = 1024  # decisions between two writes
MAX_LINE_BYTES = 16 << 20  # of a decision among many thousand ranks


class Row(Struct, frozen=True, omit_defaults=True):
    """One candidate, as `messages.Candidate` but by name, for people read these lines too."""

    instance_id: int
    dp_rank: int = 0
    device_blocks: int = 0
    host_blocks: int = 0
    disk_blocks: int = 0
    external_blocks: int = 0
    prefill_tokens: int = 0
    decode_blocks: float = 0.0
    new_blocks: int = 0
    num_requests: int = 0
    cost: float | None = None


class Decision(Struct, frozen=True, omit_defaults=True):
    """`at` in Unix seconds. `reason` is that of a receipt. Blocks and tokens as in `messages.Candidate`."""

    at: float
    label: str
    model: str
    worker_set: str
    num_tokens: int
    block_size: int
    instance_id: int
    dp_rank: int | None
    reason: str
    candidates: list[Row]
    waited_ms: float = 0.0
    session_id: str = ""
    priority_jump: float = 0.0
    strict_priority: int = 0
    lora_name: str | None = None
    weights: Weights | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Decision).decode


class DecisionLog:
    """Goes on with a file that is there, after its last whole line. What finds it full or out of reach is dropped."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Raises OSError when the file cannot be opened."""
        self._path = path
        self._max_bytes = max_bytes
        self._file: FileIO | None = FileIO(path, "a+")
        self._size = _cut_to_whole_lines(self._file)
        self._unwritten: list[bytes] = []
        self._counts: Counter[str] = Counter()

    def take_counts(self) -> dict[str, int]:
        """Decisions "written" and "dropped" since the last call."""
        counts, self._counts = self._counts, Counter()
        return counts

    def note(self, question: Question, choice: Choice, reason: str, compared: list[Candidate], waited_s: float) -> None:
        if self._file is None:
            self._counts["dropped"] += 1
            return
        self._unwritten.append(_encode(_decision(question, choice, reason, compared, waited_s)))
        if len(self._unwritten) >= MAX_UNWRITTEN:
            self.flush()

    def flush(self) -> None:
        lines, self._unwritten = self._unwritten, []
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        try:
            self._append(data)
        except OSError as error:
            log.error("the decision log %s ends here: %s", self._path, error)
            self._counts["dropped"] += len(lines)
            self._close_file()
        else:
            self._counts["written"] += len(lines)

    def close(self) -> None:
        self.flush()
        self._close_file()

    def _append(self, data: bytes) -> None:
        """All of it or nothing, as far as the disk allows. Raises OSError."""
        if self._size + len(data) > self._max_bytes:
            raise OSError("it has reached --router-decision-log-max-mb; move it away and restart the router")
        assert self._file is not None
        if self._file.write(data) != len(data):
            self._file.truncate(self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(data)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _cut_to_whole_lines(file: FileIO) -> int:
    """A process that was killed may have left half a line, and another must not be glued to it. Returns the size."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - MAX_LINE_BYTES)
    if start < size and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        tail = os.pread(file.fileno(), size - start, start)
        size = start + tail.rfind(b"\n") + 1
        file.truncate(size)
    return size


class UnreadableLog(Exception):
    """Names the file, the line and what is wrong with it."""


def read(path: Path) -> Iterator[Decision]:
    """A last line that was cut off is left out, unless it is the only one. Raises UnreadableLog, OSError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _decode(line)
            except msgspec.MsgspecError as error:
                if number > 1 and not line.endswith(b"\n"):
                    return
                raise UnreadableLog(f"{path}, line {number}: not a decision: {error}") from None


def _decision(question: Question, choice: Choice, reason: str, compared: list[Candidate], waited_s: float) -> Decision:
    place, hints = question.place, question.place.hints
    return Decision(
        at=time.time(),
        label=place.label,
        model=place.model,
        worker_set=question.live.key,
        num_tokens=place.num_tokens,
        block_size=question.live.block_size,
        instance_id=choice.instance_id,
        dp_rank=choice.dp_rank,
        reason=reason,
        candidates=[_row(candidate) for candidate in compared],
        waited_ms=waited_s * 1000,
        session_id="" if hints is None else hints.session_id,
        priority_jump=0.0 if hints is None else hints.priority_jump,
        strict_priority=0 if hints is None else hints.strict_priority,
        lora_name=None if hints is None else hints.lora_name,
        weights=choice.weights,
    )


def _row(candidate: Candidate) -> Row:
    return Row(**{name: getattr(candidate, name) for name in Row.__struct_fields__})
