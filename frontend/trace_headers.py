"""W3C trace context: a worker is told of the trace as the client told it here, so that its spans join that trace.

This gateway makes no spans, and therefore names the client's own span as their parent. 1.6.1 names one of its own, and
only where its log or its exporter records spans.
"""

from __future__ import annotations

import re
from typing import Protocol

TRACE_PARENT = "traceparent"
TRACE_STATE = "tracestate"
MAX_TRACE_STATE = 512  # characters; a longer one is left out, as W3C allows, for the headers of a frame are bounded
MAX_TRACE_PARENT = 128  # characters

# Version 00 ends with the flags, a later one may go on after them, and ff is none.
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-[\x21-\x7e]*)?"
)
_STATE = re.compile(r"[\x20-\x7e]+")


class HasHeader(Protocol):
    def header(self, name: str) -> str | None: ...


def trace_headers(request: HasHeader) -> dict[str, str] | None:
    """For the frame to the worker; None without a valid `traceparent`. An invalid one is ignored, as W3C asks for."""
    parent = request.header(TRACE_PARENT)
    if parent is None or not _is_valid(parent):
        return None
    state = request.header(TRACE_STATE)
    if state is None or len(state) > MAX_TRACE_STATE or not _STATE.fullmatch(state):
        return {TRACE_PARENT: parent}
    return {TRACE_PARENT: parent, TRACE_STATE: state}


def _is_valid(parent: str) -> bool:
    if len(parent) > MAX_TRACE_PARENT or (found := _PARENT.fullmatch(parent)) is None:
        return False
    return found["more"] is None or not parent.startswith("00")
